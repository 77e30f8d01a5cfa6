"""`shoal train`: check a job, start it on the cluster, show it to its end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli.figures import AsJson, alone, give

if TYPE_CHECKING:
    from shoal.config import Job
    from shoal.train.launch import Ended

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
    as_json: AsJson = False,
) -> None:
    """Train a job on the Ray cluster this runs in: `ray job submit -- shoal train job.yaml`.

    The run goes on if this command dies; the same command with the same run_id follows it again. Ctrl-C and
    `ray job stop` end the run once its state is saved; a second time ends it at once. Exit code: 0 done, 1 failed or
    stopped, 2 the job cannot start (the message says what to change).
    """
    from shoal.config import load_job

    wanted = load_job(job_file, overrides or [])
    if explain_timeouts:
        show_timeouts(wanted, as_json)
        return
    with alone(as_json):
        figures, code = _done(wanted, job_file, resume, resume_or_start, allow_change, check)
    if as_json:
        give(figures)
    if not check:
        from shoal.on_ray import join

        join.leave(code)
    if code:
        raise typer.Exit(code)


def _done(
    wanted: Job, job_file: Path, resume: bool, resume_or_start: bool, allow_change: list[str] | None, check: bool
) -> tuple[dict[str, Any], int]:
    """Check the job or bring it to its end; what came of it, and the exit code."""
    from shoal.cluster.token import check_environment
    from shoal.record.masking import has_secret
    from shoal.storage import settle
    from shoal.train import ShoalTrainer
    from shoal.train.launch import Resume

    storage = settle(wanted.storage if "storage" in wanted.model_fields_set else None, job_file)
    wanted = wanted.model_copy(update={"storage": storage})
    if wanted.mlflow.uri is not None and has_secret(wanted.mlflow.uri):
        print("mlflow.uri holds a password, which the job file or the command line shows; better: MLFLOW_TRACKING_URI")
    how: Resume = "if begun" if resume_or_start else "must" if resume else "no"
    trainer = ShoalTrainer.of(wanted, how, allow_change or ())
    if check:
        ready = trainer.check()
        about = {} if ready is None else {"about": dict(ready.about), "notes": list(ready.notes)}
        return {"run": trainer.job.run_id if ready is None else ready.job.run_id, "done": ready is None, **about}, 0
    check_environment()
    from shoal.on_ray import join  # Ray: seconds

    ended = trainer.run(join.connect)
    return _figures(ended), 0 if ended.status == "done" else 1


def _figures(ended: Ended) -> dict[str, Any]:
    """How a run ended, with the summary that its record closes with (`run.json`), if it has closed."""
    from shoal.record import layout
    from shoal.record.jsonl import read_json
    from shoal.record.place import local_record

    place = ended.job.place
    summary = read_json(local_record(place) / layout.RUN)
    told = {"run": ended.job.run_id, "status": ended.status, "reason": ended.reason, "record": place}
    return {**told, "summary": summary}


def show_timeouts(job: Job, as_json: bool) -> None:
    """Print what follows from the job: every timeout, and what its workers' environment tells NCCL and kernels."""
    from shoal.timeouts import Timeouts
    from shoal.worker.environment import variables

    timeouts = Timeouts(job.patience, job.cells * job.workers_per_cell)
    asked = variables(timeouts, None, exact=job.reduce == "exact")
    if as_json:
        names = ("name", "seconds", "meaning")
        rows = [dict(zip(names, row, strict=True)) for row in timeouts.explained()]
        give({"timeouts": rows, "environment": [variable._asdict() for variable in asked]})
        return
    for name, seconds, meaning in timeouts.explained():
        print(f"{seconds:8.2f} s  {name:12} {meaning}")
    print("\nIn the environment of every worker:")
    for name, value, why, fixed in asked:
        print(f"{name}={value}  {why}{'' if fixed else ' One that you set is kept.'}")


def stop(
    run: Annotated[str, typer.Argument(help="Id of a run on this cluster.")],
    now: Annotated[bool, typer.Option("--now", help="At once, without saving the state first.")] = False,
    as_json: AsJson = False,
) -> None:
    """End a run in order: state saved, workers reaped, record closed. It can be resumed from its last checkpoint."""
    from shoal.cluster.token import check_environment

    check_environment()
    from shoal.on_ray import handle, join  # Ray: seconds

    join.connect()
    handle.order_stop(run, "stopped by `shoal stop`", save=not now)
    if as_json:
        give({"run": run, "now": now})
        return
    print(f"run {run} was told to end" + (" at once" if now else ", once its state is saved"))
