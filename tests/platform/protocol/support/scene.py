"""One move of the model in the making: what a worker does, what the controller hears, and the invariants."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shoal import batching
from shoal.control.actions import Action, CommitLate, Generation, Release, Rewind
from shoal.control.events import Event, Lost
from shoal.protocol.said import Ack, Acked, Checkpointed, Committed, Failed, Finished, Ready
from tests.platform.protocol.support.actors import (
    ACROSS,
    BEGIN,
    HEAL,
    INSIDE,
    MEET,
    VOTE,
    Violation,
    Worker,
    World,
    order_of,
    reach,
)

if TYPE_CHECKING:
    from model import Model

__all__ = ["Scene"]


class Scene:
    """One move in the making."""

    def __init__(self, model: Model, world: World) -> None:
        self.model = model
        self.controller, self.log = world.controller, world.log
        self.workers, self.faults = [model.crew[number] for number in world.workers], world.faults

    def world(self) -> World:
        """The picture after the move, without what can make no difference any more."""
        generation = self.model.states[self.controller].generation
        fenced = any(worker.life == "cut" for worker in self.workers)
        workers = []
        for worker in self.workers:
            if not fenced and worker.generation < generation and worker.doing in ("idle", "forming"):
                worker = worker._replace(order=None, reach=MEET, turned=-1, pause=-1, asks=-1, broken=False)
                if worker.life in ("gone", "dead") or not (worker.stands or worker.doing == "forming"):
                    worker = worker._replace(form=None, stands=False)
            if worker.life in ("gone", "dead"):
                worker = worker._replace(steps=-1, history=(), total=-1, done=(), todo=(), kept=None, inbox=())
                if worker.order is None:
                    worker = Worker(life=worker.life)
            workers.append(self.model.number_of(worker))
        return World(self.controller, self.log, tuple(workers), self.faults)

    def set(self, i: int, **fields: Any) -> Worker:
        found = self.workers[i] = self.workers[i]._replace(**fields)
        return found

    # ---- the controller

    def tell(self, i: int | None, event: Event) -> None:
        """Let the controller hear `event` of worker `i`, and deliver what it orders. Nobody hears who was cut off."""
        if i is not None and self.workers[i].life != "alive" and not isinstance(event, Lost):
            return
        model = self.model
        before = model.states[self.controller]
        if isinstance(event, Committed) and event.generation == before.generation and event.steps > len(self.log):
            self.record(event)
        self.controller, actions = model.answer(self.controller, event)
        for action in actions:
            self.act(action)

    def record(self, event: Committed) -> None:
        """The first word of a committed step is its record."""
        teller = self.workers[self.model.number[event.worker]]
        if event.steps != len(self.log) + 1:
            raise Violation(f"I3: step {event.steps} is put on record after {len(self.log)}")
        self.log += (teller.history[event.steps - 1],)

    def act(self, action: Action) -> None:
        match action:
            case Rewind(steps, _):
                self.log = self.log[:steps]
                return
            case Release(workers):
                for name in workers:
                    self.set(self.model.number[name], life="gone", inbox=())
                return
            case CommitLate(_, steps, _):
                if len(self.log) != steps:
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
        """What must hold when a generation begins."""
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

    # ---- a worker serves orders

    def serve(self, i: int) -> None:
        me = self.workers[i]
        kind, *rest = me.inbox[0]
        me = self.set(i, inbox=me.inbox[1:])
        if kind == "form":
            self.leave(i)
            self.set(i, doing="forming", form=rest[0])
        elif kind == "generation":
            self.set(i, doing="meeting", order=rest[0], reach=MEET)
        elif kind == "stop":
            broken = me.stands and me.cell in rest[1]
            self.set(i, broken=broken)
            if broken and me.total < 0:
                self.leave(i)
            self.acknowledge(i, rest[0])
        elif (me.steps if me.stands or me.kept is None else me.kept[0]) >= rest[2]:
            self.acknowledge(i, rest[0])  # told twice
        else:
            if me.total < 0:
                raise Violation(f"I4: w{i} is told to commit, and has no complete totals")
            if me.total != rest[1]:
                raise Violation(f"I1: w{i} is told to commit the totals of {rest[1]}, and holds those of {me.total}")
            self.commit(i, "raised")

    def hear(self, i: int) -> None:
        me = self.workers[i]
        self.set(i, inbox=me.inbox[1:], pause=me.inbox[0][1])

    def acknowledge(self, i: int, generation: int) -> None:
        me = self.workers[i]
        if me.stands:
            assert me.form is not None
            steps, rank = me.steps, me.form[2].index(i)
        else:
            steps, rank = (me.kept[0], me.kept[2]) if me.kept else (-1, -1)
        done = me.done if me.stands else ()
        ack = Ack(steps, -1, done, out=not me.stands, whole=me.stands and me.total >= 0, rank=rank)
        self.set(i, doing="idle", stopping=False)
        self.tell(i, Acked(self.model.names[i], generation, ack))

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
        me = self.set(i, doing="idle")
        self.tell(i, Failed(self.model.names[i], me.generation, "between"))
        if me.stopping:
            self.acknowledge(i, me.generation)

    def fall(self, i: int) -> None:
        self.leave(i)
        self.set(i, doing="fell", stopping=False)

    def tell_fall(self, i: int) -> None:
        me = self.set(i, doing="idle")
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
            self.set(i, doing="idle")
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
        self.set(i, doing=doing, steps=me.steps + 1, history=history, total=-1, done=(), todo=todo)

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
        me = self.workers[i]
        self.tell(i, Committed(self.model.names[i], me.generation, me.steps))
        if me.doing == "paused":
            self.acknowledge(i, me.generation)
        else:
            self.boundary(i)

    def tell_raise(self, i: int) -> None:
        me = self.set(i, doing="answering")
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
