"""What `decide` answers, as orders to workers and lines for the record. Orders never wait for the record, but one does:
see `begin`."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from shoal.control.actions import (
    Action,
    CommitLate,
    CopyTo,
    Decision,
    End,
    Form,
    Generation,
    Journal,
    Pause,
    Release,
    Rewind,
    Stop,
)
from shoal.control.modes import Pausing

if TYPE_CHECKING:
    from shoal.control.controller import Controller

__all__ = ["carry_out"]


def carry_out(one: Controller, action: Action) -> None:
    """Do what an action says."""
    match action:
        case Form():
            form(one, action)
        case CopyTo(generation, era, keepers, ranks):
            for owner, keeper in keepers.items():
                order = {"type": "keep", "generation": generation, "rank": ranks[owner]}
                one.lifelines.send(owner, order | {"to": keeper_of(one, keeper, era)})
        case Stop(generation, broken, workers):
            one.stopped = time.monotonic()
            for worker in workers:
                one.lifelines.send(worker, {"type": "stop", "generation": generation, "broken": broken})
        case Pause(generation, workers):
            for worker in workers:
                one.lifelines.send(worker, {"type": "pause", "generation": generation})
            for cell in one.state.mode.leaving if isinstance(one.state.mode, Pausing) else ():
                one.recoveries.leaves(cell, going(one, cell), time.time())
        case CommitLate():
            commit_late(one, action)
        case Release(workers):
            for worker in workers:
                one.spawner.kill(worker)
        case Generation():
            begin(one, action)
        case Rewind(steps, lost):
            one.committed = {}
            one.scribe.rewound(steps)
            one.recoveries.rewound(lost)
        case Decision(rung, cells, reason):
            one.scribe.event("decision", rung=rung, cells=list(cells), reason=reason)
            one.recoveries.decision(rung, cells, reason)
        case Journal(kind, fields):
            one.scribe.event(kind, **fields)
        case End(status, reason):
            one.end(status, reason)


def form(one: Controller, action: Form) -> None:
    one.chores.moved = time.monotonic()
    cell, recall = action.cell, action.recall
    order: dict[str, Any] = {"type": "form", "cell": cell, "attempt": action.attempt, "size": len(action.members)}
    order |= {"restore": action.restore, "keep": action.keep, "recall": None}
    one.lifelines.send_all(one.rendezvous.open(f"cell/{cell}", action.attempt, action.members))
    for rank, worker in enumerate(action.members):
        if recall is not None:
            order["recall"] = {"steps": recall.steps, "from": keeper_of(one, recall.keepers[rank], 0)}
        one.lifelines.send(worker, order | {"rank": rank})
    if cell in one.state.successors:
        one.recoveries.leaves(cell, going(one, cell), time.time())
    one.recoveries.formed(cell, time.time())


def commit_late(one: Controller, action: CommitLate) -> None:
    assert one.committed["steps"] == action.steps, (action.steps, one.committed.get("steps"))
    one.stopped = time.monotonic()
    order = {key: one.committed[key] for key in ("stats", "norm_sq")}
    order |= {"takers": one.committed.get("takers", []), "steps": action.steps}
    for worker in action.workers:
        one.lifelines.send(worker, order | {"type": "raise", "generation": action.generation})


def begin(one: Controller, action: Generation) -> None:
    """On record before anybody acts on it, so that a controller that takes over finds nobody in a later generation. If
    the disk does not take it at once, training does not wait: who takes over then goes by what workers say they are in
    (`readopt.as_lived`)."""
    moving = one.state.successors  # those cells are still where they were
    one.recoveries.generation([cell for cell in action.cells if cell not in moving], time.time())
    one.scribe.generation(action)
    one.scribe.pen.settle()
    one.chores.moved = time.monotonic()
    crews = [worker for crew in action.cells.values() for worker in crew]
    one.lifelines.send_all(one.rendezvous.open("generation", action.generation, crews))
    for crew in action.cells.values():
        for worker in crew:
            one.lifelines.send(worker, {"type": "generation", **asdict(action)})


def keeper_of(one: Controller, worker: str, era: int) -> dict[str, Any] | None:
    """Where a worker keeps copies for others, if it is there."""
    line = one.lifelines.lines.get(worker)
    return None if line is None else {**line.doing["copies"], "era": era}


def going(one: Controller, cell: int) -> list[str]:
    """The nodes of a cell that will be taken away."""
    nodes = {one.state.workers[worker].node for worker in one.state.cells[cell].people()}
    return sorted(nodes & one.state.going.keys())
