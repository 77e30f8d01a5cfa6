"""The driver of a run: check everything, start the controller, show progress. It may die; the run goes on."""

from __future__ import annotations

import logging
import os
import random
import signal
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ray

from shoal import batching, marker
from shoal import resume as going_on
from shoal.cluster.launch import TEMP_DIR
from shoal.config import Job, parse
from shoal.control.actor import ControllerActor, controller_name
from shoal.control.fleet import NAMESPACE
from shoal.errors import UserError
from shoal.nodes import living, near_node, quiet_node, view
from shoal.plan import Wanted, cell_mesh, plan
from shoal.record import layout, read
from shoal.record.jsonl import read_json
from shoal.record.masking import flat_masked
from shoal.record.rundir import RunDir, check_run_id
from shoal.workload import ORIGIN, Workload, load_workload, own_settings

__all__ = ["Preflight", "connect", "follow", "launch", "nodes_in_words", "preflight", "running", "stop", "unfinished"]

PATIENCE = 60.0
"""Seconds from a run's last word until a driver stops waiting for its controller's (the report is written between)."""
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

    `notes`: what its owner should know, a sentence each; `passed`: checkpoints that are not used, and why."""

    job: Job
    workload: Workload
    about: dict[str, Any]
    start: int
    notes: list[str] = field(default_factory=list)
    passed: list[tuple[Path, str]] = field(default_factory=list)


def make_id() -> str:
    return f"{random.choice(WORDS)}-{random.choice(FISH)}-{time.strftime('%m%d-%H%M%S')}"


def settled(job: Job) -> Job:
    """The job as it is recorded: with its run's id, and its storage from the root."""
    return job.model_copy(update={"run_id": job.run_id or make_id(), "storage": job.storage.absolute()})


def unfinished(job: Job) -> bool:
    """Whether there is a record of the job's run that says nothing of its end: the run goes on, or died."""
    if job.run_id is None:
        return False
    path = job.storage / job.run_id
    return (path / layout.EVENTS).exists() and not (path / layout.RUN).exists()


def running(job: Job) -> tuple[Any, Any] | None:
    """`(controller, its run's future)` of the job's run on the connected cluster, whose driver may have died.

    None: nobody runs it.
    Raises:
        UserError: it runs with other settings.
    """
    job = settled(job)
    try:
        controller = ray.get_actor(controller_name(str(job.run_id)), namespace=NAMESPACE)
    except ValueError:
        return None
    recorded = flat_masked(read.config(job.storage / str(job.run_id)))
    asked = flat_masked(job.model_dump(mode="json"))
    different = sorted(
        key
        for key in recorded.keys() | asked.keys()
        if recorded.get(key) != asked.get(key) and not key.startswith(f"workload.{ORIGIN}.")
    )
    if different:
        raise UserError(
            f"run_id: {job.run_id!r} is running now, with other settings of {', '.join(different)}",
            f"leave them as they are to follow it, choose another run_id, or end it: shoal stop {job.run_id}",
        )
    return controller, controller.wait.remote()


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
    config = parse(kind.Config, own_settings(job.workload), source="the job file", prefix="workload.")
    workload = kind(config)
    if workload.rolls_back and not job.snapshots.every:
        raise UserError(
            "snapshots.every: the workload's guard rolls back, but no state is kept to go back to",
            "set snapshots.every (50, say), or let the guard skip or report",
        )
    if workload.together and job.reduce == "exact":
        raise UserError(
            "reduce: exact sums micro-batch by micro-batch, a pipeline hands in all of a step at once",
            "set reduce to fast, or workload.parallel.pp to 1",
        )
    about = workload.preflight(job.workers_per_cell)
    cell_mesh(workload, job.workers_per_cell)  # refuses a cell that its axes do not divide
    path = check_run_id(job.storage, str(job.run_id), resume)
    found = going_on.find(path) if resume else going_on.Found()
    identity = workload.identity() if hasattr(workload, "identity") else None
    notes = [f"passed over: {why}" for _, why in found.passed]
    notes += going_on.check(found, identity, allow)
    origin, moved = going_on.origin_of(found, workload, identity["data"] if identity else {})
    start = found.steps
    if start >= job.steps:
        raise UserError(f"run {job.run_id}: all of its {start} steps are done", "ask for more: steps=N")
    first, last = workload.samples(start)
    batching.count(first, last, job.workers_per_cell, workload.micro_batch)
    notes += [*moved, *(workload.remarks(start, job.steps) if hasattr(workload, "remarks") else ())]
    job = job.model_copy(update={"workload": {**job.workload, ORIGIN: asdict(origin)}})
    return Preflight(job, workload, about, start, notes, found.passed)


def connect() -> None:
    """Join the cluster that this process belongs to or that RAY_ADDRESS names, unless that is done.

    Raises:
        UserError: there is none.
    """
    if ray.is_initialized():
        return
    try:
        ray.init(
            address="auto",
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.ERROR,
            # a cluster on one machine: Ray would take the head for this driver's node
            _temp_dir=os.environ.get(TEMP_DIR),
        )
    except ConnectionError as error:
        raise UserError(
            "there is no Ray cluster to train on",
            "start one (`shoal cluster up`) and submit: `ray job submit -- shoal train job.yaml`",
        ) from error


def launch(ready: Preflight, *, resume: bool) -> tuple[Any, Any]:
    """Start the controller of a checked job on the connected cluster; returns (controller, its run's future).

    Raises:
        UserError: too few slots, or the run id is in use.
    """
    job = ready.job
    name = controller_name(str(job.run_id))
    if any(actor["name"] == name for actor in ray.util.list_named_actors(all_namespaces=True)):
        raise UserError(f"run_id: {job.run_id!r} is running now", "choose another run_id, or wait for its end")
    mesh = cell_mesh(ready.workload, job.workers_per_cell)
    spares = None if job.spares == "all" else job.spares
    assigned = plan(view(job.slot_resource), Wanted(mesh, job.cells, spares))
    about = ready.about | {"placement": list(assigned.notes)}
    run = RunDir.create(job.storage, str(job.run_id), job.model_dump(mode="json"), resume)
    for damaged, reason in ready.passed:
        aside = marker.set_aside(damaged)
        run.append_event("checkpoint_passed_over", step=int(damaged.name[5:]), path=str(aside), reason=reason)
    marker.sweep(run.path / layout.CHECKPOINTS)
    run.close()
    places = {(seat.cell, seat.rank): node for seat, node in assigned.nodes().items()}
    controller = ControllerActor.options(  # type: ignore[attr-defined]
        name=name,
        namespace=NAMESPACE,
        lifetime="detached",
        memory=1,  # a byte: Ray places an actor that asks for nothing anywhere, whatever node it is told
        scheduling_strategy=near_node(quiet_node(job.slot_resource, ray.get_runtime_context().get_node_id())),
    ).remote(job.model_dump(mode="json"), str(run.path), places, ready.start, about)
    return controller, controller.wait.remote()


def follow(controller: Any, outcome: Any, path: Path, show: Callable[[str, dict[str, Any]], None]) -> tuple[str, str]:
    """Show a run as it goes, until it ends; returns (status, reason). A signal to end (Ctrl-C, `ray job stop`) ends it
    in order."""

    def interrupted(number: int, _: Any) -> None:
        controller.stop.remote(f"stopped by {signal.Signals(number).name}")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupted)
    since = time.time() - 1.0

    def over() -> bool:
        return bool(ray.wait([outcome], timeout=0)[0])

    for kind, line in read.follow(path, since=since, stop=over):
        show(kind, line)
    while not ray.wait([outcome], timeout=PATIENCE)[0]:
        if ended := read_json(path / layout.RUN):  # the run is over, its controller cannot be reached
            return str(ended["status"]), str(ended["reason"])
    try:
        status, reason = ray.get(outcome)
    except ray.exceptions.RayActorError as error:
        if ended := read_json(path / layout.RUN):  # another driver that followed the run was quicker
            return str(ended["status"]), str(ended["reason"])
        return "failed", f"the controller died ({error}); go on with `shoal train ... --resume run_id={path.name}`"
    ray.kill(controller)
    return str(status), str(reason)


def stop(run_id: str) -> None:
    """Tell a run's controller to end it.

    Raises:
        UserError: no such run is running on this cluster.
    """
    try:
        controller = ray.get_actor(controller_name(run_id), namespace=NAMESPACE)
    except ValueError as error:
        raise UserError(
            f"no run {run_id!r} is running on this cluster", "`shoal runs` lists those on record"
        ) from error
    ray.get(controller.stop.remote("stopped by `shoal stop`"), timeout=30)


def nodes_in_words(slot_resource: str) -> str:
    """The cluster in one line."""
    nodes = [node for node in living(slot_resource) if node.slots]
    return f"{len(nodes)} nodes, {sum(node.slots for node in nodes)} slots"
