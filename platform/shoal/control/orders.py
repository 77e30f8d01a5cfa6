"""What `decide` answers, as orders to workers and lines for the record. Orders never wait for the record, but one does:
see `begin`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

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
from shoal.protocol import orders

if TYPE_CHECKING:
    from shoal.control.controller import Controller

__all__ = ["carry_out"]


def carry_out(one: Controller, action: Action) -> None:
    """Do what an action says."""
    match action:
        case Form():
            form(one, action)
        case CopyTo(_, era, keepers):
            for owner, keeper in keepers.items():
                one.lifelines.send(owner, orders.CopyTo(keeper_of(one, keeper, era)))
        case Stop(generation, broken, workers):
            one.stopped = time.monotonic()
            one.lifelines.broadcast(workers, orders.Stop(generation, broken, one.known()))
        case Pause(generation, workers):
            one.lifelines.broadcast(workers, orders.Pause(generation))
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
            one.committed = one.ear.last = None
            one.scribe.rewound(steps)
            one.recoveries.rewound(lost)
        case Decision(rung, cells, reason):
            one.scribe.event("decision", rung=rung, cells=list(cells), reason=reason)
            one.recoveries.decision(rung, cells, reason)
        case Journal(kind, fields):
            one.scribe.event(kind, **fields)
        case End(status, reason):
            one.ear.settle()
            one.end(status, reason)


def form(one: Controller, action: Form) -> None:
    one.chores.moved = time.monotonic()
    cell, recall = action.cell, action.recall
    size, restore = len(action.members), action.restore
    one.lifelines.send_all(one.rendezvous.open(f"cell/{cell}", action.attempt, action.members))
    for rank, worker in enumerate(action.members):
        copy = None if recall is None else orders.Recall(recall.steps, keeper_of(one, recall.keepers[rank], 0))
        one.lifelines.send(worker, orders.Form(cell, action.attempt, rank, size, restore, action.keep, copy))
    if cell in one.state.successors:
        one.recoveries.leaves(cell, going(one, cell), time.time())
    one.recoveries.formed(cell, time.time())


def commit_late(one: Controller, action: CommitLate) -> None:
    known = one.committed
    assert known is not None, action.steps
    assert known.steps == action.steps, (action.steps, known.steps)
    one.stopped = time.monotonic()
    order = orders.CommitLate(action.generation, action.steps, known.stats, known.norm_sq, known.takers)
    one.lifelines.broadcast(action.workers, order)


def begin(one: Controller, action: Generation) -> None:
    """On record before anybody acts on it, so that a controller that takes over finds nobody in a later generation. If
    the disk does not take it at once, training does not wait: who takes over then goes by what workers say they are in
    (`readopt.as_lived`)."""
    one.ear.settle()
    moving = one.state.successors  # those cells are still where they were
    one.recoveries.generation([cell for cell in action.cells if cell not in moving], time.time())
    one.scribe.generation(action)
    one.scribe.pen.settle()
    one.chores.moved = time.monotonic()
    crews = [worker for crew in action.cells.values() for worker in crew]
    one.lifelines.send_all(one.rendezvous.open("generation", action.generation, crews))
    cells = tuple(sorted(action.cells))
    audited = tuple(worker for cell in cells for worker in action.cells[cell]) if one.job.audit.samples else ()
    for cell, crew in action.cells.items():
        heals = tuple(pair for pair in action.heals if cell in pair)
        where = (action.generation, cells, action.steps, action.evaluated, tuple(action.todo[cell]), heals)
        one.lifelines.broadcast(crew, orders.Generation(*where, action.save, action.halt, audited))


def keeper_of(one: Controller, worker: str, era: int) -> orders.Keeper | None:
    """Where a worker keeps copies for others, if it is there."""
    line = one.lifelines.lines.get(worker)
    copies = None if line is None else line.greeting.copies
    return None if copies is None else orders.Keeper(copies, era)


def going(one: Controller, cell: int) -> list[str]:
    """The nodes of a cell that will be taken away."""
    nodes = {one.state.workers[worker].node for worker in one.state.cells[cell].people()}
    return sorted(nodes & one.state.going.keys())
