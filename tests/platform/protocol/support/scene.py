"""One move of the model in the making: what a worker does, what the controller hears, and the invariants."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shoal import batching
from shoal.decisions.actions import Action, CommitLate, Fence, Generation, PutOnRecord, Release, Rewind
from shoal.decisions.events import Event, Looked, Lost, Sign, TakenOver
from shoal.decisions.modes import Draining
from shoal.decisions.readopt import Living, Past, as_lived, rebuild, unrecorded
from shoal.protocol.said import Ack, Acked, Checkpointed, Committed, Failed, Finished, Phase, Ready
from tests.platform.protocol.support.actors import (
    ACROSS,
    BEGIN,
    HEAL,
    INSIDE,
    MEET,
    VOTE,
    Published,
    Violation,
    Worker,
    World,
    order_of,
    reach,
)

if TYPE_CHECKING:
    from tests.platform.protocol.support.model import Model

__all__ = ["Scene"]

PHASES = {"forming": Phase.FORMING, "answering": Phase.STOPPED, "fell": Phase.FAILED, "raised": Phase.STOPPED}
"""What a worker says that it does, where it is not part of a step."""
LONG = 1e6
"""Seconds past every deadline."""


class Scene:
    """One move in the making."""

    def __init__(self, model: Model, world: World) -> None:
        self.model = model
        self.controller, self.log, self.published_last = world.controller, world.log, world.published
        self.workers, self.faults = [model.crew[number] for number in world.workers], world.faults

    def world(self) -> World:
        """The picture after the move, without what can make no difference any more."""
        generation = self.model.states[self.controller].generation
        fenced = any(worker.life == "cut" for worker in self.workers)
        workers = []
        for worker in self.workers:
            if not fenced and worker.generation < generation and worker.doing in ("idle", "forming"):
                worker = worker._replace(order=None, reach=MEET, turned=-1, pause=-1, asks=-1, broken=False, over="")
                if worker.life in ("gone", "dead") or not (worker.stands or worker.doing == "forming"):
                    worker = worker._replace(form=None, stands=False)
            if worker.life in ("gone", "dead"):
                worker = worker._replace(
                    steps=-1, history=(), total=-1, done=(), todo=(), kept=None, inbox=(), unsaid=-1
                )
                if worker.order is None:
                    worker = Worker(life=worker.life)
            workers.append(self.model.number_of(worker))
        return World(self.controller, self.log, tuple(workers), self.published_last, self.faults)

    def set(self, i: int, **fields: Any) -> Worker:
        found = self.workers[i] = self.workers[i]._replace(**fields)
        return found

    # ---- the controller

    def tell(self, i: int | None, event: Event) -> None:
        """Let the controller hear `event` of worker `i`, and deliver what it orders. Nobody hears who was cut off."""
        if i is not None and self.workers[i].life != "alive" and not isinstance(event, Lost):
            return
        self.controller, actions = self.model.answer(self.controller, event)
        for action in actions:
            self.act(action)

    def record(self, event: Committed) -> None:
        """The first word of a committed step is its record."""
        teller = self.workers[self.model.number[event.worker]]
        if event.steps != len(self.log) + 1:
            raise Violation(f"I3: step {event.steps} is put on record after {len(self.log)}")
        self.log += (teller.totals()[event.steps - 1],)

    def act(self, action: Action) -> None:
        match action:
            case PutOnRecord(what, _):
                self.record(what)
                return
            case Rewind(steps, _):
                self.log = self.log[:steps]
                return
            case Release(workers):
                for name in workers:
                    self.set(self.model.number[name], life="gone", inbox=())
                return
            case Fence(worker, _):
                self.lose(self.model.number[worker], "cut")
                return
            case CommitLate(_, steps, _, what):
                if what is None or what.steps != steps or len(self.log) != steps:
                    raise Violation(f"I3: workers are told to commit step {steps}, the record ends at {len(self.log)}")
            case Generation():
                self.published(action)
        record = self.log[-1] if self.log else -1
        order = order_of(action, self.model.number, record)
        if order is None:
            return
        if isinstance(action, Generation):
            names = [m for crew in action.cells.values() for m in crew]
        else:
            names = list(getattr(action, "members", ()) or getattr(action, "workers", ()))
        for name in names:
            worker = self.workers[self.model.number[name]]
            if worker.life == "alive":
                self.set(self.model.number[name], inbox=(*worker.inbox, order))

    def published(self, action: Generation) -> None:
        """What must hold when a generation begins; it goes on record before anybody acts on it."""
        crews, attempts = tuple(sorted(action.cells.items())), tuple(sorted(action.attempts.items()))
        self.published_last = Published(action.generation, crews, attempts)
        if action.steps != len(self.log):
            raise Violation(f"I3: a generation begins at step {action.steps}, the record ends at {len(self.log)}")
        healed = {target for _, target in action.heals}
        taken: list[int] = []
        for cell, crew in action.cells.items():
            found = set()
            for name in crew:
                worker = self.workers[self.model.number[name]]
                if worker.life == "gone" or worker.life == "cut":
                    raise Violation(f"I5: {name} is {worker.life}, and part of a new generation")
                if cell not in healed and worker.life == "alive":
                    if not worker.stands or worker.history != self.log:
                        raise Violation(f"I1: {name} holds {worker.history}, the record {self.log}")
                    found.add(worker.done)
            if len(found) > 1:
                raise Violation(f"I2: members of cell {cell} have done different micro-batches: {found}")
            taken += [*action.todo[cell], *(found.pop() if found else ())]
        state = self.model.states[self.controller]
        whole = all(
            any(self.workers[self.model.number[m]].life == "alive" for m in crew) for crew in action.cells.values()
        )
        if (
            whole
            and action.steps < self.model.steps
            and sorted(taken) != list(range(state.shape.micro_batches(action.steps)))
        ):
            raise Violation(f"I2: micro-batches {sorted(taken)} are taken in step {action.steps}")

    def lose(self, i: int, life: str) -> None:
        self.set(i, life=life, inbox=())
        self.tell(i, Lost(self.model.names[i], "died"))

    # ---- the controller looks at the clock

    def look(self, now: float, silent: int | None = None, since: float | None = None) -> None:
        """A look at workers that were heard just now but one, and are in what they do since some time (just now)."""
        signs = tuple(
            Sign(name, "", Phase.ACROSS, -1, now, now if since is None else since, LONG if i == silent else 0.0)
            for i, name in enumerate(self.model.names)
            if self.workers[i].life == "alive"
        )
        self.tell(None, Looked(now, signs))

    def cut(self, i: int) -> None:
        """A worker that lives is not heard of: for its silence, or (if it owes an answer) for what it does not say."""
        state = self.model.states[self.controller]
        if isinstance(state.mode, Draining) and self.model.names[i] in state.awaited:
            self.look(0.0)
            self.tell(None, Looked(LONG, (Sign(self.model.names[i], "", Phase.STOPPED, -1, LONG, LONG, 0.0),)))
        else:
            self.look(0.0, silent=i)

    def stand_still(self) -> None:
        """Two looks, between which nobody has moved."""
        self.look(0.0)
        self.look(LONG, since=0.0)

    # ---- another controller takes over

    def restart(self, *, late: bool, lost: frozenset[int]) -> None:
        """The controller dies, with the orders to `lost` that they have not taken; another goes by the record and by
        what the living say. `late`: the commits that they kept come after it has rebuilt what it knows."""
        for i in lost:
            self.set(i, inbox=())
        for i, worker in enumerate(self.workers):
            if worker.life in ("dead", "cut"):
                self.set(i, life="gone", inbox=())
        past, before = self.published_last, self.model.states[self.controller]
        living = {self.model.names[i]: self.living(i) for i, w in enumerate(self.workers) if w.life == "alive"}
        record = Past(past.generation, dict(past.cells), dict(past.attempts), len(self.log), -1, before.checkpoint)
        state, corrections = rebuild(before.shape, as_lived(before.shape, record, living), living)
        words = [self.unsaid(i) for i, w in enumerate(self.workers) if w.life == "alive" and w.unsaid >= 0]
        words = words if self.model.says_again else []
        if not late:
            kept = [{"step": step, "generation": generation} for step, generation in enumerate(self.log)]
            for commit in unrecorded(kept, words):
                self.log = self.log[: commit.steps - 1]
                self.record(commit)
        state.recorded = len(self.log)
        if self.log:
            state.newest = Committed("", self.log[-1], len(self.log))
        self.controller = self.model.intern(state)
        for event in corrections if self.model.corrects else ():
            self.tell(None, event)
        for word in words:
            self.tell(self.model.number[word.worker], word)
        for i, worker in enumerate(self.workers):
            self.say_again(i, worker)
        self.tell(None, TakenOver())

    def say_again(self, i: int, me: Worker) -> None:
        """What a worker said lately it says to every controller that comes."""
        if me.life == "alive" and me.doing == "idle" and me.over == "answered" and not me.told():
            self.tell(i, Acked(self.model.names[i], me.generation, self.answer(i)))
        elif me.life == "alive" and me.doing == "idle" and me.over == "finished":
            self.tell(i, Finished(self.model.names[i], me.generation))

    def unsaid(self, i: int) -> Committed:
        """The commit that a worker kept: it is said to every controller that comes."""
        me = self.workers[i]
        self.set(i, unsaid=-1)
        return Committed(self.model.names[i], me.generation, me.unsaid)

    def living(self, i: int) -> Living:
        """How a worker greets a controller."""
        me = self.workers[i]
        seat = (me.cell, me.form[2].index(i)) if me.stands and me.form is not None else None
        attempt = -1 if me.form is None else me.form[1]
        phase = PHASES.get(me.doing, Phase.ACROSS)
        if me.doing == "idle":
            over = Phase.FINISHED if me.over == "finished" else Phase.STOPPED
            phase = over if me.stands else Phase.SPARE
        return Living(self.model.node[i], seat, attempt, me.generation, phase, me.steps)

    # ---- a worker serves orders

    def serve(self, i: int) -> None:
        me = self.workers[i]
        kind, *rest = me.inbox[0]
        me = self.set(i, inbox=me.inbox[1:])
        if kind == "form":
            self.leave(i)
            self.set(i, doing="forming", form=rest[0])
        elif kind == "generation":
            self.set(i, doing="meeting", order=rest[0], reach=MEET, unsaid=-1, over="")
        elif kind == "stop":
            broken = me.stands and me.cell in rest[1]
            self.set(i, broken=broken)
            if broken and me.total < 0:
                self.leave(i)
            self.acknowledge(i, rest[0], rest[2])
        elif (me.steps if me.stands or me.kept is None else me.kept[0]) >= rest[2]:
            self.acknowledge(i, rest[0], rest[2])  # told twice
        else:
            if me.total < 0:
                raise Violation(f"I4: w{i} is told to commit, and has no complete totals")
            if me.total != rest[1]:
                raise Violation(f"I1: w{i} is told to commit the totals of {rest[1]}, and holds those of {me.total}")
            self.commit(i, "raised")

    def hear(self, i: int) -> None:
        me = self.workers[i]
        self.set(i, inbox=me.inbox[1:], pause=me.inbox[0][1])

    def acknowledge(self, i: int, generation: int, known: int = -1) -> None:
        """Answer, but first say the last commit if it was not said, and is not one of the `known`."""
        self.say_unsaid(i, known)
        self.set(i, doing="idle", stopping=False, over="answered")
        self.tell(i, Acked(self.model.names[i], generation, self.answer(i)))

    def answer(self, i: int) -> Ack:
        """How far a worker is."""
        me = self.workers[i]
        if me.stands:
            assert me.form is not None
            steps, rank = me.steps, me.form[2].index(i)
        else:
            steps, rank = (me.kept[0], me.kept[2]) if me.kept else (-1, -1)
        done = me.done if me.stands else ()
        return Ack(steps, -1, done, out=not me.stands, whole=me.stands and me.total >= 0, rank=rank)

    def say_unsaid(self, i: int, known: int = -1) -> None:
        me = self.workers[i]
        if me.unsaid >= 0:
            self.set(i, unsaid=-1)
            if me.unsaid > known:
                self.tell(i, Committed(self.model.names[i], me.generation, me.unsaid))

    def leave(self, i: int) -> None:
        me = self.workers[i]
        if me.stands:
            assert me.form is not None
            kept = (me.steps, me.history, me.form[2].index(i)) if me.steps >= 0 else me.kept
            self.set(i, stands=False, kept=kept, steps=-1, history=(), total=-1, done=(), todo=())

    # ---- a worker forms a cell

    def stand(self, i: int) -> None:
        me = self.workers[i]
        assert me.form is not None
        cell, attempt, members, restore, keep = me.form
        steps, history = (-1, ()) if restore is None else (restore, self.log[:restore])
        if keep:
            if me.kept is None or me.kept[2] != members.index(i):
                raise Violation(f"w{i} is told to go on from a shard that it does not hold")
            steps, history = me.kept[:2]
        self.set(i, doing="idle", stands=True, steps=steps, history=history, total=-1, done=(), todo=(), broken=False)
        self.tell(i, Ready(self.model.names[i], cell, attempt))

    def not_formed(self, i: int) -> None:
        me = self.set(i, doing="idle")
        assert me.form is not None
        self.tell(i, Failed(self.model.names[i], me.generation, "form", attempt=me.form[1]))

    # ---- a worker lives through a generation

    def walk(self, i: int) -> None:
        me = self.set(i, doing="idle")
        if me.stopping:
            self.acknowledge(i, me.generation)

    def between(self, i: int) -> None:
        me = self.set(i, doing="idle", over="failed")
        self.say_unsaid(i)
        self.tell(i, Failed(self.model.names[i], me.generation, "between"))
        if me.stopping:
            self.acknowledge(i, me.generation)

    def fall(self, i: int) -> None:
        self.leave(i)
        self.set(i, doing="fell", stopping=False)

    def tell_fall(self, i: int) -> None:
        me = self.set(i, doing="idle", over="failed")
        self.say_unsaid(i)
        self.tell(i, Failed(self.model.names[i], me.generation, "cell"))

    def through(self, i: int) -> None:
        """Complete the collective and enter the next."""
        me = self.workers[i]
        assert me.order is not None
        number, _, steps, _, heals = me.order
        match me.doing:
            case "meeting" if any(me.cell in pair for pair in heals):
                self.set(i, doing="healing", reach=HEAL)
            case "meeting":
                self.adopted(i)
            case "healing":
                if any(me.cell == target for _, target in heals):
                    self.set(i, steps=steps, history=self.log[:steps], done=())
                self.adopted(i)
            case "inside":
                done = tuple(sorted({*me.done, *me.todo}))
                self.set(i, doing="across", reach=reach(me.steps, ACROSS), done=done)
            case "across":
                self.set(i, doing="voting", reach=reach(me.steps, VOTE), total=number)
            case "voting":
                voters = [self.workers[m] for _, crew in me.order[1] for m in crew]
                paused = any(0 <= w.asks <= me.steps for w in voters)
                self.commit(i, "paused" if paused else "applied")

    def adopted(self, i: int) -> None:
        me = self.workers[i]
        assert me.order is not None
        if me.steps != me.order[2]:
            raise Violation(f"I1: w{i} stands at step {me.steps}, its generation at {me.order[2]}")
        self.set(i, todo=dict(me.order[3])[me.cell], doing="beginning", reach=BEGIN)

    def begin(self, i: int) -> None:
        self.set(i, kept=None, asks=-1)
        self.boundary(i)

    def turn(self, i: int) -> None:
        self.set(i, doing="idle", turned=self.workers[i].generation)

    def boundary(self, i: int) -> None:
        me = self.workers[i]
        if me.steps >= self.model.steps:
            if me.stopping:
                self.acknowledge(i, me.generation)
                return
            self.set(i, doing="idle", over="finished")
            if me.order is not None and me.cell == min(cell for cell, _ in me.order[1]):
                self.tell(i, Checkpointed(me.steps))
            self.tell(i, Finished(self.model.names[i], me.generation))
        else:
            asks = me.steps if me.asks < 0 and me.pause == me.generation else me.asks
            self.set(i, doing="inside", reach=reach(me.steps, INSIDE), asks=asks)

    def commit(self, i: int, doing: str) -> None:
        """Apply the pending step. Nobody else's doing, and nothing told yet."""
        me = self.workers[i]
        assert me.order is not None
        if me.life == "alive":
            self.may_commit(i, me)
        cells = [c for c, _ in me.order[1]]
        todo = tuple(batching.share(self.model.cells, cells)[me.cell])
        history = (*me.history, me.total)
        assert me.form is not None
        speaks = me.form[2].index(i) == 0 or (me.stopped() and self.model.tells_at_a_stop)
        unsaid = -1 if speaks else me.steps + 1
        self.set(i, doing=doing, steps=me.steps + 1, history=history, total=-1, done=(), todo=todo, unsaid=unsaid)
        if not speaks:
            self.tell_raise(i) if doing == "raised" else self.tell_commit(i)

    def may_commit(self, i: int, me: Worker) -> None:
        state = self.model.states[self.controller]
        name = self.model.names[i]
        if me.generation != state.generation:
            raise Violation(f"I4: {name} commits in generation {me.generation}, the run is in {state.generation}")
        if name in state.acks:
            raise Violation(f"I4: {name} commits step {me.steps} after its answer")
        told = [*self.log[me.steps : me.steps + 1]]
        told += [
            w.history[me.steps]
            for w in self.workers
            if w.life == "alive" and w.generation == me.generation and len(w.history) > me.steps
        ]
        if any(tag != me.total for tag in told):
            raise Violation(f"I1: {name} applies the totals of generation {me.total} to step {me.steps}, others {told}")

    def tell_commit(self, i: int) -> None:
        """The first of a cell tells of its commit; the others go on."""
        me = self.workers[i]
        if me.unsaid < 0:
            self.tell(i, Committed(self.model.names[i], me.generation, me.steps))
        if me.doing == "paused":
            self.acknowledge(i, me.generation)
        else:
            self.boundary(i)

    def tell_raise(self, i: int) -> None:
        me = self.set(i, doing="answering")
        if me.unsaid < 0:
            self.tell(i, Committed(self.model.names[i], me.generation, me.steps))

    def answer_late(self, i: int) -> None:
        """A member of a broken cell leaves it and answers; another first helps its peers through the next step's sums:
        one of them may be waiting there."""
        me = self.workers[i]
        if me.broken:
            self.leave(i)
            self.acknowledge(i, me.generation)
        else:
            self.set(i, stopping=True)
            self.boundary(i)
