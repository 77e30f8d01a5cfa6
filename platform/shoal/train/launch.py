"""The one way to a run: a job is checked, the cluster joined, a run that is going followed or a new one started, and
shown to its end. The command line and `ShoalTrainer` both go it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from shoal.printable import printable

if TYPE_CHECKING:
    from shoal.config import Job
    from shoal.preflight import Preflight

__all__ = ["Ended", "Resume", "check", "done", "go", "on_record"]

Resume = Literal["no", "must", "if begun"]
"""Whether a run goes on from its last checkpoint: not at all, it is to be there, or it is started if it is not."""


@dataclass(frozen=True)
class Ended:
    """How a run ended. `status`: done, failed or stopped; left: it goes on, its controller does not answer; `signal`:
    what ended it, if this process was sent one."""

    job: Job
    status: str
    reason: str
    signal: int | None = None


def check(job: Job, resume: Resume = "no", allow: Collection[str] = ()) -> Preflight | None:
    """All that can be checked without a cluster, shown; None: all of the run's steps are done.

    Raises:
        UserError: what is wrong, and the remedy.
    """
    from shoal.preflight import preflight  # torch: seconds

    if job.worker_runtime_env:
        from shoal.on_ray.environment import check_environment  # Ray: seconds

        check_environment(job.worker_runtime_env)
    goes_on = resume == "must"
    if resume == "if begun":
        goes_on = on_record(job)
        if goes_on and done(job):
            print(f"run {job.run_id}: all of its {job.steps} steps are done; record: {job.place}")
            return None
    ready = preflight(job, resume=goes_on, allow=allow)
    about = ", ".join(f"{key.replace('_', ' ')} {show(value)}" for key, value in ready.about.items())
    print(f"run {ready.job.run_id}: {about}")
    for note in ready.notes:
        print(f"note: {printable(note)}")
    return ready


def go(job: Job, resume: Resume, allow: Collection[str], connect: Callable[[], None], callbacks: bytes = b"") -> Ended:
    """Bring a job to its end. `connect`: joins the cluster; `callbacks`: `shoal.on_ray.callbacks.packed`.

    Raises:
        UserError: it cannot start, or runs now with other settings.
    """
    from shoal import driver
    from shoal.on_ray import handle, submit  # Ray: seconds
    from shoal.on_ray.slots import Slot
    from shoal.record.sentences import count
    from shoal.train.watch import watch

    if driver.unfinished(job):
        connect()
        if found := handle.find_run(str(job.run_id)):
            driver.check_same(job)
            print(f"run {job.run_id} is running: following it")
            print(watched(job))
            if callbacks:
                print("note: of callbacks it has those that it was started with")
            return watch(job, found)
    ready = check(job, resume, allow)
    if ready is None:
        return Ended(job, "done", "all of its steps were done before")
    connect()
    asked = f"{count(ready.job.cells, 'cell')} of {count(ready.job.workers_per_cell, 'worker')}"
    print(f"cluster: {submit.nodes_in_words(Slot.of(ready.job))}; asking for {asked}")
    print(watched(ready.job))
    return watch(ready.job, submit.submit(ready, resume=ready.resumes, callbacks=callbacks))


def watched(job: Job) -> str:
    """Where a run can be watched, in one line."""
    from shoal.on_ray.join import dashboard

    at = dashboard()
    ways = [
        f"shoal top {job.run_id}",
        f"shoal dashboard {job.run_id}",
        *([f"http://{at}/api/train/v2/runs/v1"] if at else []),
    ]
    return f"watch it: {', '.join(ways)}"


def on_record(job: Job) -> bool:
    """Whether the job's run was begun before.

    Raises:
        UserError: the job does not name its run.
    """
    from shoal.record.place import local_record
    from shoal_core.errors import UserError

    if job.run_id is None:
        raise UserError("--resume-or-start needs the run's name, to find it again", "name it: run_id=NAME")
    return local_record(job.place).is_dir()


def done(job: Job) -> bool:
    """Whether the job's run has ended with all the steps that the job asks for."""
    from shoal.record import layout
    from shoal.record.jsonl import read_json
    from shoal.record.place import local_record

    ended = read_json(local_record(job.place) / layout.RUN) or {}
    steps = ended.get("steps")
    return ended.get("status") == "done" and isinstance(steps, int) and steps >= job.steps


def show(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
