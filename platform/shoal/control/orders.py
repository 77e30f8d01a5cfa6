"""What `decide` answers, done: orders to workers, lines for the record. Orders never wait for the record, but one does:
see `begin`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from dataclasses import replace
from functools import partial
from itertools import chain

from shoal.control.run import Outcome, Run
from shoal.decisions.actions import (
    Action,
    CommitLate,
    Copied,
    CopyTo,
    Death,
    Decision,
    End,
    Fence,
    Form,
    Generation,
    Hire,
    Journal,
    Leaves,
    Pause,
    PutOnRecord,
    Release,
    Reshaped,
    Rewind,
    SetAside,
    Stop,
)
from shoal.decisions.events import Changed, Ending, PassedOver, Recorded
from shoal.names import stacks_file
from shoal.plan.reshape import Took
from shoal.protocol import orders
from shoal.protocol.codec import encode_each
from shoal.record.place import checkpoints_in
from shoal.saving.interval import mean_time
from shoal.worker.fencing import fence_soon
from shoal_core.ckpt import among
from shoal_core.ckpt.folder import Folder, name_of
from shoal_core.errors import StoreError
from shoal_core.store import Store, patiently
from shoal_core.workload import ORIGIN

__all__ = ["GRACE", "carry_out", "sweep"]

logger = logging.getLogger(__name__)

GRACE = 2.0
"""Seconds in which neighbours end a worker that is taken for dead, before the cluster is asked to."""
GIVERS = 2
"""Holders of a shard that a worker of another shape is told of."""


def carry_out(one: Run, action: Action) -> None:
    """Do what an action says."""
    match action:
        case Form():
            form(one, action)
        case CopyTo(era, keepers):
            for owner, keeper in keepers.items():
                one.lifelines.send(owner, orders.CopyTo(keeper_of(one, keeper, era)))
        case Stop(generation, broken, workers, known, shape):
            one.lifelines.broadcast(workers, orders.Stop(generation, broken, known, shape))
        case Pause(generation, workers):
            one.recoveries.pauses(time.time())
            one.lifelines.broadcast(workers, orders.Pause(generation))
        case CommitLate(generation, steps, workers, what):
            assert what is not None, steps
            assert what.steps == steps, (steps, what.steps)
            late = orders.CommitLate(generation, steps, what.stats, what.norm_sq, what.takers)
            one.lifelines.broadcast(workers, late)
        case Release(workers):
            for worker in workers:
                one.spawner.kill(worker)
        case Fence(worker, how):
            fence(one, worker, how)
        case Hire(node):
            one.spawner.spawn(one.survey.nodes[node], None)
        case SetAside():
            one.desk.later(set_aside(one, action))
        case Generation():
            begin(one, action)
        case Rewind(steps, lost):
            one.scribe.rewound(steps)
            one.scribe.event("rewound", to=steps, lost=lost)
            one.recoveries.rewound(lost)
        case PutOnRecord():
            put_on_record(one, action)
        case Decision(rung, cells, reason):
            one.scribe.event("decision", rung=rung, cells=list(cells), reason=reason)
            one.recoveries.decision(rung, cells, reason)
        case Death():
            die(one, action)
        case Leaves(cell, nodes):
            one.recoveries.leaves(cell, list(nodes), time.time())
        case Copied(cell, seconds, size):
            one.recoveries.copied(cell, seconds, size)
        case Reshaped():
            one.recoveries.reshaped(action, time.time())
        case Journal(kind, fields):
            one.scribe.event(kind, **fields)
        case End():
            one.end(Outcome(action.status, action.reason, action.by_controller))


# ---- orders


def form(one: Run, action: Form) -> None:
    """Tell the members of a cell to build its world."""
    cell, recall, size = action.cell, action.recall, len(action.members)
    one.lifelines.send_all(one.rendezvous.open(f"cell/{cell}", action.attempt, action.members))
    shape = one.state.shape
    mesh = shape.mesh if shape.number else None
    kind = (action.restore, action.keep, None, mesh, action.shape, refill_of(one, action))
    order = orders.Form(cell, action.attempt, 0, size, *kind)
    if recall is None:
        one.lifelines.send_all(zip(action.members, encode_each(order, "rank", range(size)), strict=True))
    else:
        copies = [orders.Recall(recall.steps, keeper_of(one, keeper, 0), recall.shape) for keeper in recall.keepers]
        each = (replace(order, rank=rank, recall=copy) for rank, copy in enumerate(copies))
        one.lifelines.send_all(zip(action.members, each, strict=True))
    one.recoveries.formed(cell, time.time())


def refill_of(one: Run, action: Form) -> orders.Refill | None:
    """Whom the members of a new cell fill their shards from: `GIVERS` of each rank's holders, others for each cell, and
    themselves; or all keepers of copies."""
    refill = action.refill
    if refill is None:
        return None
    cell, members = action.cell, set(action.members)
    chosen: set[str] = set()
    for of_rank in chain.from_iterable(refill.shards.values()):
        chosen |= members.intersection(of_rank)
        chosen.update(of_rank[(cell + place) % len(of_rank)] for place in range(min(GIVERS, len(of_rank))))
    found = ((worker, keeper_of(one, worker, 0)) for worker in sorted(chosen))
    there = tuple((worker, keeper.address) for worker, keeper in found if keeper is not None)
    copies = []
    if refill.copies is not None:
        for rank, name in enumerate(refill.copies.keepers):
            if (at := keeper_of(one, name, 0)) is not None:
                copies.append(orders.Copy(refill.copies.shape, rank, name, at.address))
    return orders.Refill(refill.steps, tuple(refill.shards), there, tuple(copies))


def begin(one: Run, action: Generation) -> None:
    """On record before anybody acts on it, so that a controller that takes over finds nobody in a later generation. If
    the disk does not take it at once, training does not wait: who takes over then goes by what workers say they are in
    (`readopt.as_lived`)."""
    moving = one.state.successors  # those cells are still where they were
    one.recoveries.generation([cell for cell in action.cells if cell not in moving], time.time())
    one.scribe.generation(action, one.state.shape)
    one.scribe.pen.settle()
    crews = [worker for crew in action.cells.values() for worker in crew]
    one.lifelines.send_all(one.rendezvous.open("generation", action.generation, crews))
    cells = tuple(sorted(action.cells))
    now = time.time()
    mean = mean_time(len(crews), one.state.tally.failures, now - one.since)
    deadlines = one.state.deadlines
    going = {node: max(0.0, deadlines[node] - now) if node in deadlines else None for node in sorted(one.state.going)}
    attempts, draw = tuple(action.attempts[cell] for cell in cells), secrets.token_hex(8)
    audited = tuple(worker for cell in cells for worker in action.cells[cell]) if one.job.audit.samples else ()
    for cell, crew in action.cells.items():
        heals = tuple(pair for pair in action.heals if cell in pair)
        where = (action.generation, cells, action.steps, action.evaluated, tuple(action.todo[cell]), heals)
        what = (action.save, action.halt, audited, mean, going)
        one.lifelines.broadcast(crew, orders.Generation(*where, *what, attempts, draw))


def fence(one: Run, worker: str, how: str) -> None:
    """Make sure that a worker is dead: a frozen process obeys only a signal, which another worker of its node can send
    at once, and the controller itself if it is there too. One that is alone on another node may still hear of it. They
    first put on record where its threads are."""
    line = one.lifelines.lines.get(worker)
    if line is None:
        return
    beside = [other.worker for other in one.lifelines.lines.values() if other.node == line.node and other is not line]
    one.lifelines.broadcast(beside or [worker], orders.Fence(line.pid, worker))
    if not beside:  # what has this number here, if the worker is on another node, is seen not to be it
        fence_soon(line.pid, worker, one.rundir, one.job.place)
    del one.lifelines.lines[worker]
    line.hang_up()
    one.ear.gone(line, how, grace=GRACE)
    one.scribe.event("fenced", actor=worker, node=line.node, how=how, stacks=stacks_file(worker, line.pid))


def keeper_of(one: Run, worker: str, era: int) -> orders.Keeper | None:
    """Where a worker keeps copies for others, if it is there."""
    line = one.lifelines.lines.get(worker)
    copies = None if line is None else line.greeting.copies
    return None if copies is None else orders.Keeper(copies, era)


# ---- the record


def put_on_record(one: Run, action: PutOnRecord) -> None:
    """Write a committed step, and the account of the recoveries that it ends."""
    step = action.what.steps - 1
    try:
        one.scribe.step(action.what, action.what.generation)
    except ValueError as error:
        one.desk.take(Ending(f"step {step} cannot be put on record: {error}"))
        return
    one.desk.take(Recorded(step + 1))
    told = [("recovery", record) for record in one.recoveries.step(list(action.live), time.time())]
    if changed := one.recoveries.in_shape(time.time()):
        told.append(("reshaped", changed))
    for kind, record in told:
        one.scribe.event(kind, **record)
        if took := Took.told({"kind": kind, **record}):
            one.desk.take(Changed(took))


def die(one: Run, action: Death) -> None:
    """Put a death on record."""
    seat = action.seat
    fields = {
        "actor": action.worker,
        "node": action.node,
        "pid": action.pid,
        "cell": None if seat is None else seat.cell,
    }
    now, coords = time.time(), None if seat is None else one.state.shape.mesh.named(seat.rank)
    one.scribe.event("death", **fields, coords=coords, how=action.how, step=action.committed)
    if seat is not None and action.live:
        one.recoveries.died(seat.cell, action.worker, action.node, action.how, action.alive or now, now)


async def sweep(one: Run) -> None:
    """Remove what saves before this session left half-written. Done by who holds the run's lease, before it asks for
    workers: nobody writes there."""
    try:
        root = checkpoints_in(one.rundir)
        swept = await asyncio.to_thread(patiently, partial(among.sweep, root), root)
    except StoreError as error:
        logger.warning("what saves left half-written is not removed: %s", error.problem)
        return
    if swept:
        one.scribe.event("checkpoints_swept", folders=[folder.name for folder in swept])


async def set_aside(one: Run, action: SetAside) -> None:
    """Put a damaged checkpoint out of the way, and say which the run may go back to instead."""
    root, steps = checkpoints_in(one.rundir), action.steps
    first = int((one.job.workload.get(ORIGIN) or {}).get("steps", 0))  # before it batches were others
    try:
        aside, older = await asyncio.to_thread(patiently, partial(move_aside, root, steps, first), root)
    except StoreError as error:
        one.desk.take(PassedOver(steps, None, f"{action.reason}; others cannot be looked for ({error.problem})"))
        return
    one.scribe.event("checkpoint_passed_over", step=steps, path=aside, reason=action.reason)
    one.desk.take(PassedOver(steps, older, action.reason))


def move_aside(root: Store, steps: int, first: int) -> tuple[str, int | None]:
    """Returns where it stands what the checkpoint was, and the newest whole one before it, from step `first` on."""
    folder = Folder(root, name_of(steps))
    aside = folder.address
    with contextlib.suppress(StoreError):  # others may be had all the same
        aside = among.set_aside(folder)
    older = [whole.steps for whole in among.whole(root) if first <= whole.steps < steps]
    return aside, max(older, default=None)
