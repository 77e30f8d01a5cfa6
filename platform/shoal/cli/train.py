"""`shoal train`: check a job, start it on the cluster, show it to its end."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from shoal.printable import printable
from shoal.record.masking import mask_text

if TYPE_CHECKING:
    from shoal.config import Job
    from shoal.driver import Run

__all__ = ["stop", "train"]


def train(
    job_file: Annotated[
        Path, typer.Argument(help="The job: a YAML file, see docs/configuration.md.", metavar="JOB.yaml")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings to change.", metavar="[KEY.SUB=VALUE]...")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last whole checkpoint of run_id.")] = False,
    resume_or_start: Annotated[
        bool,
        typer.Option("--resume-or-start", help="Go on with run_id if it is on record, else start it: for retries."),
    ] = False,
    allow_change: Annotated[
        list[str] | None, typer.Option(help="With --resume: `data`, train on with other data than so far.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Only check the job; start nothing.")] = False,
    explain_timeouts: Annotated[
        bool,
        typer.Option(
            "--explain-timeouts",
            help="Print every timeout that follows from the job's patience, in order; start nothing.",
        ),
    ] = False,
) -> None:
    """Train a job on the Ray cluster this runs in: `ray job submit -- shoal train job.yaml`.

    The run goes on if this command dies; the same command with the same run_id follows it again. Ctrl-C and
    `ray job stop` end the run once its state is saved; a second time ends it at once. Exit code: 0 done, 1 failed or
    stopped, 2 the job cannot start (the message says what to change).
    """
    from shoal.cluster.token import check_environment
    from shoal.config import load_job
    from shoal.record.masking import has_secret
    from shoal.record.sentences import count
    from shoal.storage import settle

    wanted = load_job(job_file, overrides or [])
    if explain_timeouts:
        show_timeouts(wanted)
        return
    storage = settle(wanted.storage if "storage" in wanted.model_fields_set else None, job_file)
    wanted = wanted.model_copy(update={"storage": storage})
    if wanted.mlflow.uri is not None and has_secret(wanted.mlflow.uri):
        print("mlflow.uri holds a password, which the job file or the command line shows; better: MLFLOW_TRACKING_URI")
    if not check:
        check_environment()
    from shoal import driver
    from shoal.on_ray import handle, join, submit  # Ray and torch: seconds
    from shoal.preflight import preflight

    if not check and driver.unfinished(wanted):
        join.connect()
        if found := handle.find_run(str(wanted.run_id)):
            driver.check_same(wanted)
            print(f"run {wanted.run_id} is running: following it")
            watch(wanted, found)
            return
    if resume_or_start:
        resume = on_record(wanted)
        if resume and done(wanted):
            print(f"run {wanted.run_id}: all of its {wanted.steps} steps are done; record: {wanted.place}")
            return
    ready = preflight(wanted, resume=resume, allow=allow_change or ())
    job = ready.job
    print(
        f"run {job.run_id}: "
        + ", ".join(f"{key.replace('_', ' ')} {show(value)}" for key, value in ready.about.items())
    )
    for note in ready.notes:
        print(f"note: {printable(note)}")
    if check:
        return
    join.connect()
    asked = f"{count(job.cells, 'cell')} of {count(job.workers_per_cell, 'worker')}"
    print(f"cluster: {submit.nodes_in_words(job.slot_resource)}; asking for {asked}")
    watch(job, submit.submit(ready, resume=resume))


def show_timeouts(job: Job) -> None:
    """Print what follows from the job: every timeout, and what its workers' environment tells NCCL and kernels."""
    from shoal.timeouts import Timeouts
    from shoal.worker.environment import variables

    timeouts = Timeouts(job.patience, job.cells * job.workers_per_cell)
    for name, seconds, meaning in timeouts.explained():
        print(f"{seconds:8.2f} s  {name:12} {meaning}")
    print("\nIn the environment of every worker:")
    for name, value, why, fixed in variables(timeouts, None, exact=job.reduce == "exact"):
        print(f"{name}={value}  {why}{'' if fixed else ' One that you set is kept.'}")


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


def watch(job: Job, run: Run) -> None:
    """Show a run to its end. Raises typer.Exit: it was not done."""
    from shoal import driver, tracking
    from shoal.on_ray import join
    from shoal.record.place import local_record

    path = local_record(job.place)
    printer = Printer(job.steps, sys.stdout)
    # Ray prints what it thinks of every dead node, at length: kept, but not between the lines of the run.
    with (path / driver.log_of(path)).open("a") as log, contextlib.redirect_stdout(log), threads_tell(log):
        status, reason = driver.follow(run, path, printer.show)
    print(f"run {job.run_id}: {status} ({printable(mask_text(reason))}); record: {printable(job.place)}", flush=True)
    if status != "left" and job.mlflow.enabled and (unmirrored := tracking.behind(path)):
        print(f"shoal: {printable(unmirrored)}", flush=True)
    code = 0 if status == "done" else 1
    join.leave(code)
    if code:
        raise typer.Exit(code)


@contextlib.contextmanager
def threads_tell(log: TextIO) -> Iterator[None]:
    """What threads other than this one raise (Ray's, when its cluster is gone) goes to `log`."""
    before = threading.excepthook

    def tell(raised: threading.ExceptHookArgs) -> None:
        name = raised.thread.name if raised.thread else "a thread"
        print(f"{name}: {raised.exc_type.__name__}: {raised.exc_value}", file=log, flush=True)

    threading.excepthook = tell
    try:
        yield
    finally:
        threading.excepthook = before


def stop(
    run: Annotated[str, typer.Argument(help="Id of a run on this cluster.")],
    now: Annotated[bool, typer.Option("--now", help="At once, without saving the state first.")] = False,
) -> None:
    """End a run in order: state saved, workers reaped, record closed. It can be resumed from its last checkpoint."""
    from shoal.cluster.token import check_environment

    check_environment()
    from shoal.on_ray import handle, join  # Ray: seconds

    join.connect()
    handle.order_stop(run, "stopped by `shoal stop`", save=not now)
    print(f"run {run} was told to end" + (" at once" if now else ", once its state is saved"))


def show(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


class Printer:
    """A line for every event people care about, and for about fifty steps of a run."""

    QUIET = frozenset({"drain", "generation", "worker_ready", "config_changed", "run_ending", "pipeline_step"})

    def __init__(self, steps: int, out: TextIO) -> None:
        self.steps, self.every, self.out = steps, max(1, steps // 50), out
        self._tokens = self._seconds = 0.0
        """Of the steps since the last line."""

    def show(self, kind: str, line: Mapping[str, Any]) -> None:
        from shoal.record.sentences import sentence

        if kind == "event":
            text = None if line["kind"] in self.QUIET else sentence(line)
            if text:
                print(f"  {text}", file=self.out, flush=True)
            return
        # by the workers' clock: commits may arrive late, and several at once
        self._tokens += line["tokens"]
        self._seconds += line.get("worker_seconds") or line["seconds"]
        if (line["step"] + 1) % self.every == 0:
            print(self.words(line), file=self.out, flush=True)
            self._tokens = self._seconds = 0.0

    def words(self, line: Mapping[str, Any]) -> str:
        from shoal.cli.status import figure
        from shoal.record.sentences import count, gpu_words

        told = [f"loss {figure(line.get('loss'), '.4f')}"]
        if line.get("lm_loss") is not None and line["lm_loss"] != line.get("loss"):
            told.append(f"lm_loss {line['lm_loss']:.4f}")
        told += [f"grad norm {figure(line.get('grad_norm'), '.3f')}", f"lr {figure(line.get('lr'), '.2e')}"]
        told += [count(line["cells"], "cell"), f"{self._tokens / max(self._seconds, 1e-9):,.0f} tokens/s"]
        told += gpu_words(line)
        return f"step {line['step'] + 1:>5}/{self.steps}  " + "  ".join(told)
