"""The start of a run, as far as no cluster is needed: everything is checked, and what it goes on from is found."""

from __future__ import annotations

import random
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from typing import Any

from shoal import batching, hooks, tracking
from shoal import resume as going_on
from shoal.config import Job, parse
from shoal.decisions.shape import bounds_for
from shoal.plan import cell_mesh
from shoal.plan.reshape import remark
from shoal.record.place import from_root
from shoal.record.rundir import check_run_id
from shoal.storage import check_writable
from shoal_core.ckpt.folder import Folder
from shoal_core.errors import UserError
from shoal_core.loading import load_workload, own_settings
from shoal_core.workload import ORIGIN, Workload

__all__ = ["Preflight", "preflight", "settled"]

GIVEN = "the job file, or workload_config"
"""Where a workload's settings come from: a file or, from Python, an argument."""
WORDS = ("amber", "brisk", "calm", "deft", "eager", "fleet", "glad", "keen", "lucid", "merry", "nimble", "quick")
FISH = (
    "anchovy",
    "bream",
    "cod",
    "dace",
    "herring",
    "mackerel",
    "minnow",
    "perch",
    "roach",
    "sardine",
    "smelt",
    "tuna",
)


@dataclass(frozen=True)
class Preflight:
    """A job that can start: with its id, its workload, what that says of itself, and where to go on from.

    `resumes`: its run goes on; `notes`: what its owner should know, a sentence each; `passed`: checkpoints that are not
    used, and why."""

    job: Job
    workload: Workload
    about: dict[str, Any]
    start: int
    resumes: bool = False
    notes: list[str] = field(default_factory=list)
    passed: list[tuple[Folder, str]] = field(default_factory=list)


def make_id() -> str:
    return f"{random.choice(WORDS)}-{random.choice(FISH)}-{time.strftime('%m%d-%H%M%S')}"


def settled(job: Job) -> Job:
    """The job as it is recorded (but for secrets): with its run's id, its storage from the root, and where it is
    mirrored to.

    Raises:
        UserError: MLflow could not be used there.
    """
    mlflow = job.mlflow.model_copy(update={"uri": tracking.chosen_uri(job.mlflow.uri)})
    return job.model_copy(
        update={"run_id": job.run_id or make_id(), "storage": from_root(job.storage), "mlflow": mlflow}
    )


def preflight(job: Job, *, resume: bool, allow: Collection[str] = ()) -> Preflight:
    """Everything that can be checked without a cluster. `allow`: what a resumed run may change (`data`).

    Raises:
        UserError or the workload's own input error: what is wrong, and the remedy.
    """
    if resume and job.run_id is None:
        raise UserError("--resume needs the run to go on with", "name it: run_id=NAME")
    job = settled(job)
    if "path" not in job.workload:
        raise UserError("'workload.path' is missing", "name the workload's class as package.module:Class")
    kind = load_workload(job.workload["path"])
    config = parse(kind.Config, own_settings(job.workload), source=GIVEN, prefix="workload.")
    workload = kind(config)
    if workload.runs_on == "cuda" and job.slot_resource != "GPU":
        raise UserError(
            f"slot_resource: the workload computes on a GPU, and to a worker that takes {job.slot_resource!r} Ray "
            "gives none: all of a node would share its first",
            "set slot_resource=GPU, or workload.device=cpu",
        )
    if workload.rolls_back and not job.snapshots.every:
        raise UserError(
            "snapshots.every: the workload's guard rolls back, but no state is kept to go back to",
            "set snapshots.every (50, say), or let the guard skip or report",
        )
    if workload.reduces_once and job.reduce == "exact":
        raise UserError(
            "reduce: exact rounds the gradients of each micro-batch by themselves, and the workload would reduce those "
            "of all at once",
            "set reduce=fast, or reduce_once=false of the workload (workload.parallel.reduce_once=false of Pretrain)",
        )
    about = workload.preflight(job.workers_per_cell)
    mesh = cell_mesh(workload, job.workers_per_cell)  # refuses a cell that its axes do not divide
    hooks.check(job.notify)
    check_writable(job.storage)
    path = check_run_id(job.storage, str(job.run_id), resume)
    found = going_on.find(path) if resume else going_on.Found()
    identity = workload.identity()
    notes = [f"passed over: {why}" for _, why in found.passed]
    notes += going_on.check(found, identity, allow)
    origin, moved = going_on.origin_of(found, workload, identity["data"] if identity else {})
    start = found.steps
    if start >= job.steps:
        raise UserError(f"run {job.run_id}: all of its {start} steps are done", "ask for more: steps=N")
    for step in (start, job.steps - 1):  # batches may be ramped up
        batching.count(*workload.samples(step), job.workers_per_cell, workload.micro_batch)
    notes += [*moved, *workload.remarks(start, job.steps)]
    if job.elastic is not None:
        notes.append(remark(bounds_for(job, workload, mesh), mesh))
    job = job.model_copy(update={"workload": {**job.workload, ORIGIN: asdict(origin)}})
    return Preflight(job, workload, about, start, resume, notes, found.passed)
