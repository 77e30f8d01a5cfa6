"""One move of the model in the making: the picture, what the controller hears and orders, and the invariants."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shoal.decisions.actions import Action, CommitLate, Fence, Generation, PutOnRecord, Release, Rewind
from shoal.decisions.events import Event, Looked, Lost, Sign
from shoal.decisions.modes import Stopping
from shoal.decisions.state import State
from shoal.protocol.said import Committed, Phase
from tests.platform.protocol.support import acts
from tests.platform.protocol.support.actors import MEET, Published, Violation, Worker, World, order_of
from tests.platform.protocol.support.shapes import fits

if TYPE_CHECKING:
    from tests.platform.protocol.support.model import Model

__all__ = ["Scene"]

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
                worker = worker._replace(
                    order=None, reach=MEET, turned=-1, pause=-1, asks=-1, broken=False, over="", asked=0
                )
                if worker.life in ("gone", "dead") or not (worker.stands or worker.doing == "forming"):
                    worker = worker._replace(form=None, stands=False)
            if worker.life in ("gone", "dead"):
                worker = worker._replace(steps=-1, history=(), total=-1, done=(), todo=(), kept=(), inbox=(), unsaid=-1)
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
        before = self.model.states[self.controller]
        self.controller, actions = self.model.answer(self.controller, event)
        for action in actions:
            if isinstance(action, Rewind) and action.lost:
                self.undone(before)
            self.act(action)

    def undone(self, before: State) -> None:
        """Steps are taken back: the living must not hold all of the state, in whatever shapes."""
        living = [(i, worker) for i, worker in enumerate(self.workers) if worker.life == "alive"]
        last, found = self.published_last, []
        shapes = [former.shape for former in before.formers if former.steps == len(self.log)]
        if last.former is not None and last.changed == len(self.log):
            shapes.append(last.former)  # so that another controller knows of it too
        for shape in {shape.number: shape for shape in (*shapes, before.shape)}.values() if shapes else ():
            held = [acts.held_by(worker, i, shape.number) for i, worker in living]
            found += [(kept, shape.workers) for kept in held if kept is not None and kept.history == self.log]
        if acts.covered(found) and fits(before.shape, len(living)):
            raise Violation(f"I7: steps are taken back, and the living hold all of the state: {found}")

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
            one = self.workers[self.model.number[name]]
            if one.life == "alive":
                self.set(self.model.number[name], inbox=(*one.inbox, order))

    def published(self, action: Generation) -> None:
        """What must hold when a generation begins; it goes on record before anybody acts on it."""
        crews, attempts = tuple(sorted(action.cells.items())), tuple(sorted(action.attempts.items()))
        shape = self.model.states[self.controller].shape
        last = self.published_last
        before, changed = last.shape or self.model.shape, last.changed if last.changed == action.steps else -1
        where = (last.former, changed) if before.number == shape.number else (before, action.steps)
        self.published_last = Published(action.generation, crews, attempts, shape, *where)
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
            and sorted(taken) != list(range(state.shape.micro_batches(action.steps, state.shape.workers)))
        ):
            raise Violation(f"I2: micro-batches {sorted(taken)} are taken in step {action.steps}")

    def lose(self, i: int, life: str) -> None:
        self.set(i, life=life, inbox=())
        self.tell(i, Lost(self.model.names[i], "died"))

    # ---- the controller looks at the clock

    def look(self, now: float, silent: int | None = None, since: float | None = None) -> None:
        """A look at workers that were heard just now but one, and are in what they do since some time (just now)."""
        signs = tuple(
            Sign(name, Phase.ACROSS, -1, now, now if since is None else since, LONG if i == silent else 0.0)
            for i, name in enumerate(self.model.names)
            if self.workers[i].life == "alive"
        )
        self.tell(None, Looked(now, signs))

    def cut(self, i: int) -> None:
        """A worker that lives is not heard of: for its silence, or (if it owes an answer) for what it does not say."""
        state = self.model.states[self.controller]
        if isinstance(state.mode, Stopping) and self.model.names[i] in state.awaited:
            self.look(0.0)
            self.tell(None, Looked(LONG, (Sign(self.model.names[i], Phase.STOPPED, -1, LONG, LONG, 0.0),)))
        else:
            self.look(0.0, silent=i)

    def stand_still(self) -> None:
        """Two looks, between which nobody has moved."""
        self.look(0.0)
        self.look(LONG, since=0.0)
