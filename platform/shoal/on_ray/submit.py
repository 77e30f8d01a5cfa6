"""Starting a checked job on the connected cluster: its seats planned, its record begun, its controller started."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

import ray

from shoal import hooks, tracking
from shoal.config import Job
from shoal.driver import unfinished
from shoal.names import controller_name
from shoal.on_ray import NAMESPACE
from shoal.on_ray.controller_actor import ControllerActor
from shoal.on_ray.fleet import find_actor
from shoal.on_ray.handle import RayRun
from shoal.on_ray.nodes import living, near_node, quiet_node
from shoal.on_ray.parts import parted
from shoal.on_ray.room import planned_in_time
from shoal.on_ray.slots import Slot
from shoal.plan import Wanted, cell_mesh
from shoal.preflight import Preflight
from shoal.record import index, raytrain
from shoal.record.hold import hold
from shoal.record.lease import claim
from shoal.record.place import own_folder
from shoal.record.publish import Publisher
from shoal.record.rundir import RunDir
from shoal.record.sentences import count
from shoal_core.ckpt import among
from shoal_core.errors import UserError
from shoal_core.store import local_folder, open_store

__all__ = ["nodes_in_words", "submit"]

LEAVES = 10.0
"""Seconds within which the controller of a run that has ended is gone."""


def submit(ready: Preflight, *, resume: bool, callbacks: bytes = b"") -> RayRun:
    """Start the controller of a checked job. `callbacks`: `shoal.on_ray.callbacks.packed`.

    Raises:
        UserError: too few slots, the run id is in use, by a controller on another cluster perhaps, or the job is too
            large to travel.
        StoreError: the storage does not answer.
    """
    job = ready.job
    name = controller_name(str(job.run_id))
    if held(name, job):
        raise UserError(f"run_id: {job.run_id!r} is running now", "choose another run_id, or wait for its end")
    slot = Slot.of(job)
    mesh = cell_mesh(ready.workload, job.workers_per_cell)
    spares = None if job.spares == "all" else job.spares
    wanted = Wanted(mesh, job.cells, spares)
    assigned = planned_in_time(slot, wanted, str(job.run_id), job.autoscale, print)
    if job.elastic is not None and len(assigned.nodes()) < job.elastic.min_workers:
        raise UserError(
            f"elastic.min_workers: {count(job.elastic.min_workers, 'worker')} at least, and there is room for "
            f"{len(assigned.nodes())} in whole cells",
            "wait for nodes, or ask for fewer",
        )
    about = ready.about | {"placement": list(assigned.notes)}
    seats = [[seat.cell, seat.rank, node] for seat, node in assigned.nodes().items()]
    known = parted({"job": job.model_dump(mode="json"), "seats": seats, "start": ready.start, "about": about})
    session = secrets.token_hex(8)
    run, publisher = begun(job, session, resume=resume)
    index.note(str(job.run_id), job.place)
    for damaged, reason in ready.passed:
        aside = among.set_aside(damaged)
        run.append_event("checkpoint_passed_over", step=damaged.steps, path=aside, reason=reason)
    run.close()
    raytrain.refresh(open_store(job.place), job.checkpoint.stays)
    if publisher is not None:
        publisher.round()
        publisher.close()
    credentials = tracking.credentials() | hooks.credentials(job.notify)
    controller = ControllerActor.options(  # type: ignore[attr-defined]
        name=name,
        namespace=NAMESPACE,
        lifetime="detached",
        memory=1,  # a byte: Ray places an actor that asks for nothing anywhere, whatever node it is told
        scheduling_strategy=near_node(quiet_node(slot, ray.get_runtime_context().get_node_id())),
    ).remote(credentials, session, callbacks, *known)
    return RayRun(controller)


def held(name: str, job: Job) -> bool:
    """Whether a controller has the run. That of one that has just ended is waited for: it goes by itself."""
    deadline = time.monotonic() + LEAVES
    while find_actor(name) is not None:
        if unfinished(job) or time.monotonic() > deadline:
            return True
        time.sleep(0.05)
    return False


def begun(job: Job, session: str, *, resume: bool) -> tuple[RunDir, Publisher | None]:
    """The run's record with the job in it, and what publishes it if it lies on a store. The session holds it.

    Raises:
        UserError: the run id is in use, or there is none to resume; the storage cannot be written.
    """
    settings = job.model_dump(mode="json")
    if local_folder(job.place) is None:
        folder = own_folder(job.place)
        publisher = hold(job.place, session, folder, fresh=not resume)
        return RunDir.create(folder.parent, folder.name, settings, resume=True), publisher
    if resume:
        claim(Path(job.place), session)
    return RunDir.create(job.storage, str(job.run_id), settings, resume), None


def nodes_in_words(slot: Slot) -> str:
    """The cluster in one line."""
    nodes = [node for node in living(slot) if node.slots]
    return f"{count(len(nodes), 'node')}, {count(sum(node.slots for node in nodes), 'slot')}{slot.words()}"
