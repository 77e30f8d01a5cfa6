"""Room for a job beside other runs: who holds the slots, and idle spares that they give up."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import ray

from shoal.names import controller_name, run_of
from shoal.on_ray.fleet import all_workers, find_actor
from shoal.on_ray.nodes import view
from shoal.plan import Assignment, Wanted, plan
from shoal.record.sentences import count
from shoal_core.errors import UserError

__all__ = ["held_by", "holders", "planned"]

ANSWER = 10.0
"""Seconds for another run's controller to answer, and for the slots it gives up to be free."""


def planned(slot_resource: str, wanted: Wanted, run_id: str) -> Assignment:
    """The plan of a job on the free slots of the connected cluster. If they are too few for its seats, other runs give
    idle spares up for it.

    Raises:
        UserError: not even one cell fits; names the runs that hold the other slots.
    """
    free = sum(node.slots for node in view(slot_resource) if not node.draining)
    missing = max(0, wanted.cells * wanted.mesh.workers - free)
    held = holders(all_workers()) if missing else Counter()
    given: Counter[str] = Counter()
    for other in held:
        if given.total() < missing and other != run_id:
            given[other] = ask(other, missing - given.total(), run_id)
    deadline = time.monotonic() + ANSWER
    while given.total() and time.monotonic() < deadline:
        if sum(node.slots for node in view(slot_resource) if not node.draining) >= free + given.total():
            break
        time.sleep(0.1)
    try:
        found = plan(view(slot_resource), wanted)
        notes = (f"run {other} gave up {count(spares, 'idle spare')}" for other, spares in (+given).items())
        return replace(found, notes=(*found.notes, *notes))
    except UserError as error:
        if not held:
            raise
        raise UserError(f"{error.problem}; {held_by(held)}", f"wait for their end, or {error.remedy}") from error


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
