"""Starting a checked job on the connected cluster: its seats planned, its record begun, its controller started."""

from __future__ import annotations

import secrets

import ray

from shoal import tracking
from shoal.names import controller_name
from shoal.on_ray import NAMESPACE
from shoal.on_ray.controller_actor import ControllerActor
from shoal.on_ray.fleet import find_actor
from shoal.on_ray.handle import RayRun
from shoal.on_ray.nodes import living, near_node, quiet_node
from shoal.on_ray.room import planned
from shoal.plan import Wanted, cell_mesh
from shoal.preflight import Preflight
from shoal.record import index
from shoal.record.lease import claim
from shoal.record.rundir import RunDir
from shoal.record.sentences import count
from shoal_core.ckpt import among
from shoal_core.errors import UserError

__all__ = ["nodes_in_words", "submit"]


def submit(ready: Preflight, *, resume: bool) -> RayRun:
    """Start the controller of a checked job.

    Raises:
        UserError: too few slots, or the run id is in use, by a controller on another cluster perhaps.
    """
    job = ready.job
    name = controller_name(str(job.run_id))
    if find_actor(name) is not None:
        raise UserError(f"run_id: {job.run_id!r} is running now", "choose another run_id, or wait for its end")
    mesh = cell_mesh(ready.workload, job.workers_per_cell)
    spares = None if job.spares == "all" else job.spares
    assigned = planned(job.slot_resource, Wanted(mesh, job.cells, spares), str(job.run_id))
    about = ready.about | {"placement": list(assigned.notes)}
    session = secrets.token_hex(8)
    if resume:
        claim(job.storage / str(job.run_id), session)
    run = RunDir.create(job.storage, str(job.run_id), job.model_dump(mode="json"), resume)
    index.note(str(job.run_id), run.path)
    for damaged, reason in ready.passed:
        aside = among.set_aside(damaged)
        run.append_event("checkpoint_passed_over", step=damaged.steps, path=aside, reason=reason)
    run.close()
    places = {(seat.cell, seat.rank): node for seat, node in assigned.nodes().items()}
    controller = ControllerActor.options(  # type: ignore[attr-defined]
        name=name,
        namespace=NAMESPACE,
        lifetime="detached",
        memory=1,  # a byte: Ray places an actor that asks for nothing anywhere, whatever node it is told
        scheduling_strategy=near_node(quiet_node(job.slot_resource, ray.get_runtime_context().get_node_id())),
    ).remote(job.model_dump(mode="json"), str(run.path), places, ready.start, about, tracking.credentials(), session)
    return RayRun(controller)


def nodes_in_words(slot_resource: str) -> str:
    """The cluster in one line."""
    nodes = [node for node in living(slot_resource) if node.slots]
    return f"{count(len(nodes), 'node')}, {count(sum(node.slots for node in nodes), 'slot')}"
