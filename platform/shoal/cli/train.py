"""`shoal train`: check a job, start it on the cluster, show it to its end."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

if TYPE_CHECKING:
    from shoal.config import Job

__all__ = ["stop", "train"]


def train(
    job_file: Annotated[
        Path, typer.Argument(help="The job: a YAML file, see docs/configuration.md.", metavar="JOB.yaml")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings to change.", metavar="[KEY.SUB=VALUE]...")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the last whole checkpoint of run_id.")] = False,
    check: Annotated[bool, typer.Option(help="Only check the job; start nothing.")] = False,
    explain_timeouts: Annotated[
        bool, typer.Option(help="Print every timeout that follows from the job's patience, in order; start nothing.")
    ] = False,
) -> None:
    """Train a job on the Ray cluster this runs in: `ray job submit -- shoal train job.yaml`.

    The run goes on if this command dies; the same command with the same run_id follows it again. Ctrl-C and
    `ray job stop` end the run in order. Exit code: 0 done, 1 failed or
    stopped, 2 the job cannot start (the message says what to change).
    """
    from shoal import submit
    from shoal.config import load_job
    from shoal.timeouts import Timeouts

    wanted = load_job(job_file, overrides or [])
    if explain_timeouts:
        for name, seconds, meaning in Timeouts(wanted.patience).explained():
            print(f"{seconds:8.2f} s  {name:12} {meaning}")
        return
    if not check and submit.unfinished(wanted):
        submit.connect()
        if found := submit.running(wanted):
            print(f"run {wanted.run_id} is running: following it")
            watch(wanted, *found)
            return
    ready = submit.preflight(wanted, resume=resume)
    job = ready.job
    print(
        f"run {job.run_id}: "
        + ", ".join(f"{key.replace('_', ' ')} {show(value)}" for key, value in ready.about.items())
    )
    if check:
        return
    submit.connect()
    print(f"cluster: {submit.nodes_in_words(job.slot_resource)}; asking for {job.cells} cells x {job.workers_per_cell}")
    watch(job, *submit.launch(ready, resume=resume))


def watch(job: Job, controller: Any, outcome: Any) -> None:
    """Show a run to its end. Raises typer.Exit: it was not done."""
    from shoal import submit

    path = job.storage.absolute() / str(job.run_id)
    printer = Printer(job.steps, sys.stdout)
    # Ray prints what it thinks of every dead node, at length: kept, but not between the lines of the run.
    with (path / "ray.log").open("a") as log, contextlib.redirect_stdout(log):
        status, reason = submit.follow(controller, outcome, path, printer.show)
    print(f"run {job.run_id}: {status} ({reason}); record: {path}", flush=True)
    if status != "done":
        raise typer.Exit(1)


def stop(run: Annotated[str, typer.Argument(help="Id of a run on this cluster.")]) -> None:
    """End a run in order: workers reaped, record closed. It can be resumed from its last checkpoint."""
    from shoal import submit

    submit.connect()
    submit.stop(run)
    print(f"run {run} was told to end")


def show(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


class Printer:
    """A line for every event people care about, and for about fifty steps of a run."""

    QUIET = frozenset({"drain", "generation", "worker_ready", "config_changed", "run_ending", "pipeline_step"})

    def __init__(self, steps: int, out: TextIO) -> None:
        self.steps, self.every, self.out = steps, max(1, steps // 50), out

    def show(self, kind: str, line: dict[str, Any]) -> None:
        from shoal.record.sentences import sentence

        if kind == "event":
            text = None if line["kind"] in self.QUIET else sentence(line)
            if text:
                print(f"  {text}", file=self.out, flush=True)
        elif (line["step"] + 1) % self.every == 0:
            rate = line["tokens"] / max(line["seconds"], 1e-9)
            print(
                f"step {line['step'] + 1:>5}/{self.steps}  loss {line['loss']:.4f}  grad norm {line['grad_norm']:.3f}"
                f"  lr {line['lr']:.2e}  {line['cells']} cells  {rate:,.0f} tokens/s",
                file=self.out,
                flush=True,
            )
