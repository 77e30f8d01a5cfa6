"""The model: the real `decide`, abstract workers, and a network that may lose anybody between any two moves.

Messages to the controller are delivered when they are sent: one that is late, or lost with its sender, is a sender that
is slow, or dies, just before sending; the moves `applied`, `raised`, `answering` and `fell` are those moments. Orders
wait in an inbox until the worker looks. A collective can be completed by whoever is in it once all its members have
entered, whatever became of them since; it may fail for whoever is in it once one of them is dead; and it can be walked
away from when an order has arrived, which does not withdraw the entry. So a death in a collective leaves every subset
of its members with the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Literal

from actors import ACROSS, BEGIN, HEAL, INSIDE, MEET, VOTE, Violation, Worker, World, freeze, order_of, reach

from shoal import batching
from shoal.control.decide import decide
from shoal.control.messages import (
    Acked,
    Action,
    Committed,
    Draining,
    Event,
    Failed,
    Finished,
    Generation,
    Joined,
    Lost,
    Raise,
    Ready,
    Release,
    Rewind,
)
from shoal.control.state import Ack, Shape, State
from shoal.plan import Seat

__all__ = ["Model", "Rule"]

Rule = Callable[[State, Event], tuple[State, list[Action]]]


class Model:
    """`cells` x `size` workers and `spares`, to run `steps` steps of one micro-batch a cell.

    `faults`: what may happen, once for each mention: `crash`, `cut` (a living worker is taken for dead and fenced, but
    runs on), `glitch` (a collective between cells fails though nobody died), `drain` (a node's preemption notice),
    `arrive` (one more worker). `rule`: the controller's decisions, to be swapped for a broken one. `orders`: in which
    orders the same moves are looked at, see `moves`.
    """

    def __init__(
        self,
        faults: tuple[str, ...],
        spares: int = 1,
        cells: int = 2,
        size: int = 2,
        steps: int = 2,
        rule: Rule = decide,
        orders: Literal["all", "calm", "few"] = "calm",
    ) -> None:
        self.orders = orders
        self.cells, self.size, self.steps, self.rule = cells, size, steps, rule
        seats = cells * size
        self.names = [f"w{i}" for i in range(seats + spares + faults.count("arrive"))]
        self.number = {name: i for i, name in enumerate(self.names)}
        self.node = [f"n{i // size}" for i in range(seats)] + [f"s{i}" for i in range(len(self.names) - seats)]
        homes = {Seat(i // size, i % size): self.names[i] for i in range(seats)}
        self.states: list[State] = []
        self.known: dict[tuple[Any, ...], int] = {}
        self.crew: list[Worker] = []
        self.ids: dict[Worker, int] = {}
        self.answers: dict[tuple[int, Event], tuple[int, list[Action]]] = {}
        first = self.intern(State.new(Shape(cells, size, steps, lambda step: cells), homes))
        late = Worker(life="gone")
        crew = [self.number_of(Worker() if i < seats + spares else late) for i in range(len(self.names))]
        scene = Scene(self, World(first, (), tuple(crew), tuple(sorted(faults))))
        for i in range(seats + spares):
            home = Seat(i // size, i % size) if i < seats else None
            scene.tell(i, Joined(self.names[i], self.node[i], home))
        self.start = scene.world()

    def intern(self, state: State) -> int:
        key = freeze(state)
        found = self.known.get(key)
        if found is None:
            found = self.known[key] = len(self.states)
            self.states.append(state)
        return found

    def number_of(self, worker: Worker) -> int:
        found = self.ids.get(worker)
        if found is None:
            found = self.ids[worker] = len(self.crew)
            self.crew.append(worker)
        return found

    def answer(self, controller: int, event: Event) -> tuple[int, list[Action]]:
        found = self.answers.get((controller, event))
        if found is None:
            state, actions = self.rule(self.states[controller], event)
            found = self.answers[controller, event] = (self.intern(state), actions)
        return found

    def moves(self, world: World) -> Iterator[tuple[str, World]]:
        """Everything that may happen next, faults last.

        `all`: every order of moves. `calm`: once no fault is left, one of a calm state's moves stands for all. `few`:
        so while faults are left too, and in a drain answers go first: every moment of each worker is still a moment to
        fail at, but not beside every moment of every other.
        """
        if self.states[world.controller].mode == "ended":
            return
        if (self.orders == "few" or (self.orders == "calm" and not world.faults)) and self.calm(world):
            yield from islice(self.ordinary(world), 1)
        elif self.orders == "few" and (first := self.answers_first(world)) is not None:
            yield first
        else:
            yield from self.ordinary(world)
        yield from self.faults(world)

    def calm(self, world: World) -> bool:
        """Nothing but a new fault can end the generation, or begin one out of turn: every worker has one thing to do,
        in any order, and all orders lead to the same place."""
        state = self.states[world.controller]
        if any(w.life in ("dead", "cut") or w.doing == "fell" for w in map(self.crew.__getitem__, world.workers)):
            return False
        phases = {cell.phase for cell in [*state.cells, *state.successors.values()]}
        return state.mode == "gathering" or (state.mode == "running" and not phases & {"forming", "ready"})

    def answers_first(self, world: World) -> tuple[str, World] | None:
        """Let a worker that has nothing else to do answer before anybody else moves: answers commute."""
        crew = [self.crew[number] for number in world.workers]
        if any(w.life in ("dead", "cut") for w in crew):
            return None
        for i, me in enumerate(crew):
            if me.life == "alive" and (
                me.doing in ("raised", "answering") or (me.doing == "idle" and me.inbox and me.inbox[0][0] == "stop")
            ):
                name, act = next(iter(self.acts(crew, i, me)))
                scene = Scene(self, world)
                act(scene, i)
                return f"w{i} {name}", scene.world()
        return None

    def ordinary(self, world: World) -> Iterator[tuple[str, World]]:
        crew = [self.crew[number] for number in world.workers]
        for i, worker in enumerate(crew):
            if worker.life == "dead":
                scene = Scene(self, world)
                scene.lose(i, "gone")
                yield f"controller hears that w{i} is dead", scene.world()
            elif worker.life in ("alive", "cut"):
                for name, act in self.acts(crew, i, worker):
                    scene = Scene(self, world)
                    act(scene, i)
                    yield f"w{i} {name}", scene.world()

    def faults(self, world: World) -> Iterator[tuple[str, World]]:
        crew = [self.crew[number] for number in world.workers]
        for fault in sorted(set(world.faults)):
            rest = list(world.faults)
            rest.remove(fault)
            left = world._replace(faults=tuple(rest))
            if fault == "drain":
                for node in dict.fromkeys(self.node):
                    if any(w.life == "alive" for w, n in zip(crew, self.node, strict=True) if n == node):
                        scene = Scene(self, left)
                        scene.tell(None, Draining(node))
                        yield f"{node} is to be taken away", scene.world()
            elif fault == "arrive":
                i = next((i for i, w in enumerate(crew) if w == Worker(life="gone")), None)
                if i is not None:
                    scene = Scene(self, left)
                    scene.workers[i] = Worker()
                    scene.tell(i, Joined(self.names[i], self.node[i]))
                    yield f"w{i} arrives", scene.world()
            else:
                for i, worker in enumerate(crew):
                    if worker.life != "alive":
                        continue
                    scene = Scene(self, left)
                    if fault == "crash":
                        scene.workers[i] = worker._replace(life="dead", inbox=())
                    elif fault == "cut":
                        scene.lose(i, "cut")
                    elif worker.doing in ("meeting", "healing", "across", "voting"):
                        scene.between(i)
                    else:
                        continue
                    yield f"w{i}: {fault}", scene.world()

    # ---- what a worker may do next

    def acts(self, crew: list[Worker], i: int, me: Worker) -> Iterator[tuple[str, Callable[[Scene, int], None]]]:
        match me.doing:
            case "idle" if me.told():
                yield f"takes the order to {me.inbox[0][0]}", Scene.serve
            case "forming":
                assert me.form is not None
                there = [crew[m] for m in me.form[2]]
                if all(w.form == me.form for w in there):
                    yield "stands in its cell's world", Scene.stand
                    if any(w.life != "alive" for w in there):
                        yield "cannot form its cell", Scene.not_formed
            case "meeting" | "healing" | "across" | "voting":
                peers = self.peers(crew, i, me)
                if all(w.order == me.order and w.reach >= me.reach for w in peers):
                    yield f"is through {me.doing}", Scene.through
                if any(w.life != "alive" for w in peers):
                    yield f"sees {me.doing} fail", Scene.between
            case "beginning":
                assert me.form is not None
                peers = [crew[m] for m in me.form[2]]
                here = [w for w in peers if w.order == me.order]
                if len(here) == len(peers) and all(w.reach >= BEGIN and w.turned != me.generation for w in here):
                    yield "begins with its cell", Scene.begin
                if me.told() and all(w.reach <= BEGIN for w in here):
                    yield "turns round with its cell", Scene.turn
            case "inside":
                assert me.form is not None
                peers = [crew[m] for m in me.form[2]]
                if all(w.order == me.order and w.reach >= me.reach for w in peers):
                    yield "has its cell's sums", Scene.through
                cut = any(o[0] == "stop" and me.cell in o[2] for o in me.inbox)
                if cut or any(w.life != "alive" or w.form != me.form or not w.stands for w in peers):
                    yield "falls out of its broken cell", Scene.fall
            case "applied" | "paused":
                yield "tells of its commit", Scene.tell_commit
            case "raised":
                yield "tells of its late commit", Scene.tell_raise
            case "answering":
                yield "answers", Scene.answer_late
            case "fell":
                yield "tells of its broken cell", Scene.tell_fall
        if (me.told() or me.stopping) and me.doing in ("forming", "meeting", "healing", "across", "voting"):
            yield f"walks away from {me.doing}", Scene.walk
        if me.inbox and not me.told():
            yield "hears of the pause", Scene.hear

    def peers(self, crew: list[Worker], i: int, me: Worker) -> list[Worker]:
        """Those whose word the collective needs that `me` is in."""
        assert me.order is not None
        assert me.form is not None
        cells = dict(me.order[1])
        rank = me.form[2].index(i)
        if me.doing == "healing":
            source, target = next(pair for pair in me.order[4] if me.cell in pair)
            return [crew[cells[c][rank]] for c in (source, target)]
        if me.doing == "across":
            return [crew[members[rank]] for members in cells.values()]
        return [crew[m] for members in cells.values() for m in members]


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
            case Raise(_, steps, _):
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
