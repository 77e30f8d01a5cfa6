"""What a worker does in one move: it serves an order, forms its cell, lives through a generation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from shoal import batching
from shoal.protocol.said import Ack, Acked, Checkpointed, Committed, Failed, Finished, Ready
from tests.platform.protocol.support.actors import (
    ACROSS,
    BEGIN,
    HEAL,
    INSIDE,
    MEET,
    VOTE,
    Kept,
    Violation,
    Worker,
    reach,
)

if TYPE_CHECKING:
    from tests.platform.protocol.support.scene import Scene

Refill = tuple[int, tuple[tuple[int, tuple[tuple[int, ...], ...]], ...]]
"""Steps; by the number of each shape, the holders of each rank's shard."""

__all__ = [
    "answer",
    "answer_late",
    "begin",
    "between",
    "commit",
    "covered",
    "fall",
    "hear",
    "held_by",
    "not_formed",
    "say_unsaid",
    "serve",
    "sources",
    "stand",
    "tell_commit",
    "tell_fall",
    "tell_late",
    "through",
    "turn",
    "walk",
]


def serve(scene: Scene, i: int) -> None:
    me = scene.workers[i]
    kind, *rest = me.inbox[0]
    me = scene.set(i, inbox=me.inbox[1:])
    if kind == "form":
        leave(scene, i)
        refill = rest[0][6]
        kept = scene.workers[i].kept
        if refill is not None:
            kept = tuple(one for one in kept if one.shape in dict(refill[1]))
        scene.set(i, doing="forming", form=rest[0], kept=kept)
    elif kind == "generation":
        scene.set(i, doing="meeting", order=rest[0], reach=MEET, unsaid=-1, over="")
    elif kind == "stop":
        broken = me.stands and (me.cell in rest[1] or me.shape != rest[3])
        scene.set(i, broken=broken)
        if broken and me.total < 0:
            leave(scene, i)
        acknowledge(scene, i, rest[0], rest[2], rest[3])
    elif len(me.totals()) >= rest[2]:
        acknowledge(scene, i, rest[0], rest[2])  # told twice
    else:
        if me.total < 0:
            raise Violation(f"I4: w{i} is told to commit, and has no complete totals")
        if me.total != rest[1]:
            raise Violation(f"I1: w{i} is told to commit the totals of {rest[1]}, and holds those of {me.total}")
        commit(scene, i, "late")


def hear(scene: Scene, i: int) -> None:
    me = scene.workers[i]
    scene.set(i, inbox=me.inbox[1:], pause=me.inbox[0][1])


def acknowledge(scene: Scene, i: int, generation: int, known: int = -1, shape: int | None = None) -> None:
    """Answer, but first say the last commit if it was not said, and is not one of the `known`. `shape`: that is asked
    after; by default the one of its cell."""
    say_unsaid(scene, i, known)
    asked = scene.workers[i].shape if shape is None else shape
    scene.set(i, doing="idle", stopping=False, over="answered", asked=asked)
    scene.tell(i, Acked(scene.model.names[i], generation, answer(scene, i)))


def answer(scene: Scene, i: int) -> Ack:
    """How far a worker is."""
    me = scene.workers[i]
    there = me.stands and me.shape == me.asked
    held = held_by(me, i, me.asked)
    steps, rank = (-1, -1) if held is None else (held.steps, held.rank)
    former = any(kept.shape != me.asked for kept in me.kept)
    done = me.done if there else ()
    return Ack(steps, -1, done, out=not there, whole=there and me.total >= 0, rank=rank, former=former)


def held_by(me: Worker, i: int, shape: int) -> Kept | None:
    """Worker `i`'s shard of a shape, wherever it holds it."""
    if me.stands and me.shape == shape:
        assert me.form is not None
        return Kept(shape, me.steps, me.history, me.form[2].index(i))
    return next((kept for kept in me.kept if kept.shape == shape), None)


def say_unsaid(scene: Scene, i: int, known: int = -1) -> None:
    me = scene.workers[i]
    if me.unsaid >= 0:
        scene.set(i, unsaid=-1)
        if me.unsaid > known:
            scene.tell(i, Committed(scene.model.names[i], me.generation, me.unsaid))


def leave(scene: Scene, i: int) -> None:
    me = scene.workers[i]
    if me.stands:
        assert me.form is not None
        kept = me.kept
        if me.steps >= 0:
            mine = Kept(me.shape, me.steps, me.history, me.form[2].index(i))
            kept = tuple(sorted([*(one for one in kept if one.shape != me.shape), mine]))
        scene.set(i, stands=False, kept=kept, steps=-1, history=(), total=-1, done=(), todo=())


# ---- a worker forms a cell


def stand(scene: Scene, i: int) -> None:
    me = scene.workers[i]
    assert me.form is not None
    cell, attempt, members, restore, keep, shape, refill = me.form
    steps, history = (-1, ()) if restore is None else (restore, scene.log[:restore])
    if keep:
        kept = held_by(me, i, shape)
        if kept is None or kept.rank != members.index(i):
            raise Violation(f"w{i} is told to go on from a shard that it does not hold")
        steps, history = kept.steps, kept.history
    if refill is not None:
        steps = refill[0]
        (history,) = {source.history for source, _ in sources(scene.workers, refill)}
        if not scene.model.keeps:
            scene.set(i, kept=())
    scene.set(i, doing="idle", stands=True, steps=steps, history=history, total=-1, done=(), todo=(), broken=False)
    scene.tell(i, Ready(scene.model.names[i], cell, attempt))


def sources(crew: Sequence[Worker], refill: Refill) -> list[tuple[Kept, int]]:
    """What cells of another shape are filled from: shards of those who live, and how many each shape has."""
    steps, shards = refill
    asked = [(i, shape, len(holders)) for shape, holders in shards for of_rank in holders for i in of_rank]
    living = [(held_by(crew[i], i, shape), size) for i, shape, size in asked if crew[i].life == "alive"]
    return [(kept, size) for kept, size in living if kept is not None and kept.steps == steps]


def covered(found: Iterable[tuple[Kept, int]], rank: int = 0, size: int = 1) -> bool:
    """Whether all of the shard `rank` of `size` (by default the whole state) is part of shards that were found."""
    at, end = Fraction(rank, size), Fraction(rank + 1, size)
    for begins, ends in sorted((Fraction(kept.rank, of), Fraction(kept.rank + 1, of)) for kept, of in found):
        if begins <= at:
            at = max(at, ends)
    return at >= end


def not_formed(scene: Scene, i: int) -> None:
    me = scene.set(i, doing="idle")
    assert me.form is not None
    scene.tell(i, Failed(scene.model.names[i], me.generation, "form", attempt=me.form[1]))


# ---- a worker lives through a generation


def walk(scene: Scene, i: int) -> None:
    me = scene.set(i, doing="idle")
    if me.stopping:
        acknowledge(scene, i, me.generation)


def between(scene: Scene, i: int) -> None:
    me = scene.set(i, doing="idle", over="failed")
    say_unsaid(scene, i)
    scene.tell(i, Failed(scene.model.names[i], me.generation, "between"))
    if me.stopping:
        acknowledge(scene, i, me.generation)


def fall(scene: Scene, i: int) -> None:
    leave(scene, i)
    scene.set(i, doing="fell", stopping=False)


def tell_fall(scene: Scene, i: int) -> None:
    me = scene.set(i, doing="idle", over="failed")
    say_unsaid(scene, i)
    scene.tell(i, Failed(scene.model.names[i], me.generation, "cell"))


def through(scene: Scene, i: int) -> None:
    """Complete the collective and enter the next."""
    me = scene.workers[i]
    assert me.order is not None
    number, _, steps, _, heals = me.order
    match me.doing:
        case "meeting" if any(me.cell in pair for pair in heals):
            scene.set(i, doing="healing", reach=HEAL)
        case "meeting":
            adopted(scene, i)
            begin(scene, i)
        case "healing":
            if any(me.cell == target for _, target in heals):
                scene.set(i, steps=steps, history=scene.log[:steps], done=())
            adopted(scene, i)
            scene.set(i, doing="beginning", reach=BEGIN)
        case "inside":
            done = tuple(sorted({*me.done, *me.todo}))
            scene.set(i, doing="across", reach=reach(me.steps, ACROSS), done=done)
        case "across":
            scene.set(i, doing="voting", reach=reach(me.steps, VOTE), total=number)
        case "voting":
            voters = [scene.workers[m] for _, crew in me.order[1] for m in crew]
            paused = any(0 <= w.asks <= me.steps for w in voters)
            commit(scene, i, "paused" if paused else "applied")


def adopted(scene: Scene, i: int) -> None:
    me = scene.workers[i]
    assert me.order is not None
    if me.steps != me.order[2]:
        raise Violation(f"I1: w{i} stands at step {me.steps}, its generation at {me.order[2]}")
    scene.set(i, todo=dict(me.order[3])[me.cell])


def begin(scene: Scene, i: int) -> None:
    scene.set(i, kept=(), asks=-1)
    boundary(scene, i)


def turn(scene: Scene, i: int) -> None:
    scene.set(i, doing="idle", turned=scene.workers[i].generation)


def boundary(scene: Scene, i: int) -> None:
    me = scene.workers[i]
    if me.steps >= scene.model.steps:
        if me.stopping:
            acknowledge(scene, i, me.generation)
            return
        scene.set(i, doing="idle", over="finished")
        assert me.form is not None
        cell = [scene.workers[m] for m in me.form[2]]
        whole = all(w.steps == me.steps and w.doing not in ("applied", "paused", "late") for w in cell)
        if whole and me.order is not None and me.cell == min(cell for cell, _ in me.order[1]):
            scene.tell(i, Checkpointed(me.steps))  # each member has written its part
        scene.tell(i, Finished(scene.model.names[i], me.generation))
    else:
        asks = me.steps if me.asks < 0 and me.pause == me.generation else me.asks
        scene.set(i, doing="inside", reach=reach(me.steps, INSIDE), asks=asks)


def commit(scene: Scene, i: int, doing: str) -> None:
    """Apply the pending step. Nobody else's doing, and nothing told yet."""
    me = scene.workers[i]
    assert me.order is not None
    if me.life == "alive":
        may_commit(scene, i, me)
    cells = [c for c, _ in me.order[1]]
    todo = tuple(batching.share(scene.model.cells, cells)[me.cell])
    history = (*me.history, me.total)
    assert me.form is not None
    speaks = me.form[2].index(i) == 0 or (me.stopped() and scene.model.tells_at_a_stop)
    unsaid = -1 if speaks else me.steps + 1
    scene.set(i, doing=doing, steps=me.steps + 1, history=history, total=-1, done=(), todo=todo, unsaid=unsaid)
    if not speaks:
        tell_late(scene, i) if doing == "late" else tell_commit(scene, i)


def may_commit(scene: Scene, i: int, me: Worker) -> None:
    state = scene.model.states[scene.controller]
    name = scene.model.names[i]
    if me.generation != state.generation:
        raise Violation(f"I4: {name} commits in generation {me.generation}, the run is in {state.generation}")
    if name in state.acks:
        raise Violation(f"I4: {name} commits step {me.steps} after its answer")
    told = [*scene.log[me.steps : me.steps + 1]]
    told += [
        w.history[me.steps]
        for w in scene.workers
        if w.life == "alive" and w.generation == me.generation and len(w.history) > me.steps
    ]
    if any(tag != me.total for tag in told):
        raise Violation(f"I1: {name} applies the totals of generation {me.total} to step {me.steps}, others {told}")


def tell_commit(scene: Scene, i: int) -> None:
    """The first of a cell tells of its commit; the others go on."""
    me = scene.workers[i]
    if me.unsaid < 0:
        scene.tell(i, Committed(scene.model.names[i], me.generation, me.steps))
    if me.doing == "paused":
        acknowledge(scene, i, me.generation)
    else:
        boundary(scene, i)


def tell_late(scene: Scene, i: int) -> None:
    me = scene.set(i, doing="answering")
    if me.unsaid < 0:
        scene.tell(i, Committed(scene.model.names[i], me.generation, me.steps))


def answer_late(scene: Scene, i: int) -> None:
    """A member of a broken cell leaves it and answers; another first helps its peers through the next step's sums:
    one of them may be waiting there."""
    me = scene.workers[i]
    if me.broken:
        leave(scene, i)
        acknowledge(scene, i, me.generation)
    else:
        scene.set(i, stopping=True)
        boundary(scene, i)
