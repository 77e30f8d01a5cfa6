"""The end of a run: workers reaped, record closed, report and mirror finished. No part of it keeps another from being
done."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
import traceback
from pathlib import Path

from shoal import tracking
from shoal.config import Job
from shoal.control.notifier import Notifier
from shoal.control.press import Press
from shoal.control.run import Outcome, Run
from shoal.record.lease import LeaseLost
from shoal.record.masking import mask_text
from shoal.record.publish import Publisher
from shoal.record.rundir import RunDir
from shoal.record.summary import summarize

__all__ = ["bury", "finish", "mirror"]

logger = logging.getLogger(__name__)
REAPED = 5.0
"""Seconds within which the lifelines of workers that were ended close."""
REPORT = 120.0
"""Seconds after which a report that is not finished is given up."""


def mirror(job: Job, rundir: Path) -> subprocess.Popen[bytes] | None:
    """Start the mirror to MLflow; a run does without one that cannot be started."""
    try:
        return tracking.start(rundir, job.mlflow.uri, job.mlflow.experiment) if job.mlflow.enabled else None
    except OSError as error:
        logger.warning("the mirror to MLflow was not started: %s", error)
        return None


def finish(one: Run, outcome: Outcome, tracker: subprocess.Popen[bytes] | None) -> tuple[str, str]:
    """Reap every worker, then close the record: nothing of the run is left when `run.json` says that it ended.

    Returns (status, reason), the reason with what of the record could not be written.
    """
    status, reason, by_controller = outcome
    one.asker.close(withdraw=not one.lease.succeeded)
    for name in list(one.spawner.started):
        one.spawner.kill(name)
    deadline = time.monotonic() + REAPED
    while one.lifelines.lines and time.monotonic() < deadline:
        time.sleep(0.05)
    one.lifelines.close()
    if one.lease.lost:  # another session's record, report and mirror are not touched
        logger.warning("%s: this one wrote no more and ended its workers", one.lease.lost)
        if tracker is not None:
            tracker.terminate()
        return status, reason
    try:
        one.forecast.close()
    except Exception as error:
        one.mishaps.note(error)
    try:
        unwritten = one.scribe.ended(status, reason, one.state.committed, by_controller=by_controller)
    except Exception as error:
        unwritten = one.mishaps.note(error)
    if unwritten:
        reason = f"{reason}; {unwritten}"
        logger.warning(unwritten)
    one.notifier.close()
    try:
        subprocess.run([sys.executable, "-m", "shoal.report", str(one.rundir)], check=False, timeout=REPORT)
        to = one.job.mlflow
        if tracker is not None and (problem := tracking.finish(tracker, one.rundir, to.uri, to.experiment)):
            logger.warning(problem)
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("at the end of the run: %s", error)
    if one.press is not None and (unpublished := publish(one.press)):
        reason = f"{reason}; {unpublished}"
        logger.warning(unpublished)
    one.lease.release()
    return status, reason


def publish(press: Press) -> str:
    """Bring all of the record to its store. Returns what could not be done."""
    try:
        return press.close()
    except LeaseLost as error:
        return error.words


def bury(
    rundir: Path,
    actor: str,
    outcome: tuple[str, str],
    error: BaseException,
    publisher: Publisher | None = None,
    job: Job | None = None,
) -> None:
    """Close the record of a run whose controller could not live, as far as it can be written, and published; then
    people are told that it ended: whoever looks at the record at their word finds it closed."""
    status, reason = outcome
    ended = {"status": status, "reason": mask_text(reason), "by_controller": True}
    try:
        run = RunDir(rundir)
        run.append_event("error", actor=actor, trace=mask_text("".join(traceback.format_exception(error))))
        run.append_event("run_ended", **ended)
        run.write_run(summarize(rundir) | {"status": status, "reason": ended["reason"]})
        run.close()
        if publisher is not None:
            publisher.round()
            publisher.release()
    except Exception as another:
        logger.warning("the record of the run could not be closed: %s: %s", type(another).__name__, another)
    if job is not None:
        notifier = Notifier(job, 0, lambda kind, **fields: None)
        notifier.event({"kind": "run_ended", "time": time.time(), **ended})
        notifier.close()
