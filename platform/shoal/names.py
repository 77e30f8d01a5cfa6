"""Names of a run's actors: `<run>/controller`, and a worker's by the seat it began in and its node.

`<run>/cell1/stage0/shard1@node3` began in a seat, `<run>/spare2@node4` as a spare; a worker keeps its name when it is
given another seat. The record, the dashboard and every message use these names.
"""

from __future__ import annotations

import re

from shoal.plan import Mesh, Seat

__all__ = [
    "controller_name",
    "is_worker",
    "node_of",
    "profile_file",
    "run_of",
    "seat_name",
    "spare_name",
    "spare_number",
    "stacks_file",
]

_SPARE = re.compile(r"/spare(\d+)@")


def controller_name(run_id: str) -> str:
    """The controller of a run."""
    return f"{run_id}/controller"


def seat_name(run_id: str, seat: Seat, mesh: Mesh, node: str) -> str:
    """A worker that is started for `seat`, on `node`."""
    stage, shard = mesh.coords(seat.rank)
    return f"{run_id}/cell{seat.cell}/stage{stage}/shard{shard}@{node}"


def spare_name(run_id: str, number: int, node: str) -> str:
    """A worker that is started as the `number`th spare of its run, on `node`."""
    return f"{run_id}/spare{number}@{node}"


def spare_number(worker: str) -> int | None:
    """The number of a worker that was started as a spare; None for others."""
    found = _SPARE.search(worker)
    return None if found is None else int(found[1])


def is_worker(actor: str) -> bool:
    """Whether an actor of this name is some run's worker."""
    return "@" in actor


def run_of(actor: str) -> str:
    """The run in an actor's name."""
    return actor.partition("/")[0]


def node_of(worker: str) -> str:
    """The node in a worker's name."""
    return worker.rpartition("@")[2]


def stacks_file(worker: str, pid: int) -> str:
    """Where in its run's folder it says what a worker's threads were at when it was fenced."""
    return f"stacks/{worker.partition('/')[2].replace('/', '.')}-{pid}.txt"


def profile_file(worker: str, first: int, last: int, *, memory: bool) -> str:
    """Where in its run's folder a profile of a worker's steps lies."""
    kind = "memory.pickle" if memory else "trace.json"
    return f"profiles/{worker.partition('/')[2].replace('/', '.')}-{first}..{last}.{kind}"
