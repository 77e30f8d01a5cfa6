"""Room for a job beside other runs: who holds the slots, idle spares that they give up, nodes that have to come."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

import ray

from shoal.control.asking import spares_asked
from shoal.names import controller_name, run_of
from shoal.on_ray.autoscaler import RayAutoscaler
from shoal.on_ray.fleet import all_workers, find_actor
from shoal.on_ray.nodes import view
from shoal.on_ray.slots import Slot
from shoal.plan import Assignment, Node, Wanted, plan
from shoal.plan.lack import lacking
from shoal.record.sentences import count
from shoal.sections import Autoscale
from shoal_core.errors import UserError

__all__ = ["held_by", "holders", "planned", "planned_in_time"]

ANSWER = 10.0
"""Seconds for another run's controller to answer, and for the slots it gives up to be free."""


def planned(slot: Slot, wanted: Wanted, run_id: str) -> Assignment:
    """The plan of a job on the free slots of the connected cluster. If they are too few for its seats, other runs give
    idle spares up for it.

    Raises:
        UserError: not even one cell fits; names the runs that hold the other slots.
    """
    free = sum(node.slots for node in usable(slot))
    missing = max(0, wanted.cells * wanted.mesh.workers - free)
    held = holders(all_workers()) if missing else Counter()
    given: Counter[str] = Counter()
    for other in held:
        if given.total() < missing and other != run_id:
            given[other] = ask(other, missing - given.total(), run_id)
    deadline = time.monotonic() + ANSWER
    while given.total() and time.monotonic() < deadline:
        if sum(node.slots for node in usable(slot)) >= free + given.total():
            break
        time.sleep(0.1)
    try:
        found = plan(view(slot), wanted)
        notes = (f"run {other} gave up {count(spares, 'idle spare')}" for other, spares in (+given).items())
        return replace(found, notes=(*found.notes, *notes))
    except UserError as error:
        if not held:
            raise
        raise UserError(f"{error.problem}; {held_by(held)}", f"wait for their end, or {error.remedy}") from error


def planned_in_time(
    slot: Slot, wanted: Wanted, run_id: str, autoscale: Autoscale, say: Callable[[str], None]
) -> Assignment:
    """The same; where not one cell fits and the cluster has an autoscaler, once nodes for one have come. `say`: is told
    what is waited for.

    Raises:
        UserError: no cell fits, and nothing more can be had or has come in time.
    """
    try:
        return planned(slot, wanted, run_id)
    except UserError:
        autoscaler = RayAutoscaler(f"{run_id}/start", slot)
        if not autoscale.enabled or not autoscaler.there():
            raise
    mesh, began = wanted.mesh, time.monotonic()
    slots = wanted.cells * mesh.workers + spares_asked(autoscale, wanted.spares or 0)
    lack = lacking(usable(slot), {}, slots, mesh.ep_node)
    say(
        f"too few slots for a cell: asking the cluster's autoscaler for {count(sum(lack), 'slot')}, and waiting for "
        f"those of one cell, for {autoscale.wait_s:g} s at most"
    )
    try:
        autoscaler.ask(lack)  # ends with this driver, if that dies
        while time.monotonic() - began < autoscale.wait_s:
            time.sleep(0.5)
            came = sum(slots for _, slots in autoscaler.standing().came)
            if came + sum(node.slots for node in usable(slot)) >= mesh.workers:
                break
    finally:
        autoscaler.ask(())
    settled = time.monotonic() + ANSWER
    while True:
        try:
            return planned(slot, wanted, run_id)
        except UserError:
            if time.monotonic() > settled:  # what came is free again, and still too little
                raise
            time.sleep(0.2)


def usable(slot: Slot) -> list[Node]:
    """The nodes with free slots, but for those that go."""
    return [node for node in view(slot) if not node.draining]


def holders(names: Iterable[str]) -> Counter[str]:
    """Run -> slots that it holds, from its workers' names."""
    return Counter(map(run_of, names))


def held_by(held: Counter[str]) -> str:
    """In words."""
    return "taken are " + ", ".join(f"{slots} by run {run}" for run, slots in held.most_common())


def ask(other: str, wanted: int, run_id: str) -> int:
    """Ask a run's controller to give up idle spares; returns how many it gives."""
    controller = find_actor(controller_name(other))
    if controller is None:
        return 0
    try:
        return int(ray.get(controller.give_up_spares.remote(wanted, run_id), timeout=ANSWER))
    except ray.exceptions.RayError:  # it does not answer: it gives nothing
        return 0
