"""The model: the real `decide`, abstract workers, and a network that may lose anybody between any two moves.

Messages to the controller are delivered when they are sent: one that is late, or lost with its sender, is a sender that
is slow, or dies, just before sending; the moves `applied`, `late`, `answering` and `fell` are those moments. Orders
wait in an inbox until the worker looks. A collective can be completed by whoever is in it once all its members have
entered, whatever became of them since; it may fail for whoever is in it once one of them is dead; and it can be walked
away from when an order has arrived, which does not withdraw the entry. So a death in a collective leaves every subset
of its members with the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Literal

from shoal.decisions.actions import Action
from shoal.decisions.decide import decide
from shoal.decisions.events import Event, Joined
from shoal.decisions.modes import Ended, Gathering, Running
from shoal.decisions.shape import Choose, Shape
from shoal.decisions.state import State
from shoal.plan import Seat
from tests.platform.protocol.support import acts
from tests.platform.protocol.support.actors import Published, Worker, World, freeze
from tests.platform.protocol.support.faults import faults
from tests.platform.protocol.support.scene import Scene

__all__ = ["Model", "Rule"]

Rule = Callable[[State, Event], tuple[State, list[Action]]]


class Model:
    """`cells` x `size` workers and `spares`, to run `steps` steps of one micro-batch a cell.

    `faults`: what may happen, once for each mention: `crash`, `cut` (a living worker is taken for dead and fenced, but
    runs on), `glitch` (a collective between cells fails though nobody died), `drain` (a node's preemption notice),
    `arrive` (one more worker), `still` (the controller finds that nothing moves), `restart` (the controller dies,
    some of its last orders with it, and another takes over). `rule`: the controller's decisions,
    to be swapped for a broken one. `orders`: in which orders the same moves are looked at, see `moves`. `choose`: which
    shape cells take, if they may take another.
    """

    tells_at_a_stop = says_again = corrects = keeps = remembers = True
    """Rules that a broken model leaves out: who has a commit that nobody knows says so when a stop comes, and to
    another controller; one that takes over sets right what is not as the record has it; whoever has filled its shard
    of another shape keeps that of the former one, of which a controller that takes over knows."""

    def __init__(
        self,
        faults: tuple[str, ...],
        spares: int = 1,
        cells: int = 2,
        size: int = 2,
        steps: int = 2,
        rule: Rule = decide,
        orders: Literal["all", "calm", "few"] = "calm",
        choose: Choose | None = None,
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
        self.shape = Shape(cells, size, steps, lambda step, workers: cells, choose=choose)
        first = self.intern(State.new(self.shape, homes))
        late = Worker(life="gone")
        crew = [self.number_of(Worker() if i < seats + spares else late) for i in range(len(self.names))]
        scene = Scene(self, World(first, (), tuple(crew), Published(), tuple(sorted(faults))))
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
        so while faults are left too, and in a stop answers go first: every moment of each worker is still a moment to
        fail at, but not beside every moment of every other.
        """
        if isinstance(self.states[world.controller].mode, Ended):
            return
        if (self.orders == "few" or (self.orders == "calm" and not world.faults)) and self.calm(world):
            yield from islice(self.ordinary(world), 1)
        elif self.orders == "few" and (first := self.answers_first(world)) is not None:
            yield first
        else:
            yield from self.ordinary(world)
        yield from faults(self, world)

    def calm(self, world: World) -> bool:
        """Nothing but a new fault can end the generation, or begin one out of turn: every worker has one thing to do,
        in any order, and all orders lead to the same place."""
        state = self.states[world.controller]
        if any(w.life in ("dead", "cut") or w.doing == "fell" for w in map(self.crew.__getitem__, world.workers)):
            return False
        phases = {cell.phase for cell in [*state.cells, *state.successors.values()]}
        return isinstance(state.mode, Gathering) or (
            isinstance(state.mode, Running) and not phases & {"forming", "ready"}
        )

    def answers_first(self, world: World) -> tuple[str, World] | None:
        """Let a worker that has nothing else to do answer before anybody else moves: answers commute."""
        crew = [self.crew[number] for number in world.workers]
        if any(w.life in ("dead", "cut") for w in crew):
            return None
        for i, me in enumerate(crew):
            if me.life == "alive" and (
                me.doing in ("late", "answering") or (me.doing == "idle" and me.inbox and me.inbox[0][0] == "stop")
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

    # ---- what a worker may do next

    def acts(self, crew: list[Worker], i: int, me: Worker) -> Iterator[tuple[str, Callable[[Scene, int], None]]]:
        match me.doing:
            case "idle" if me.told():
                yield f"takes the order to {me.inbox[0][0]}", acts.serve
            case "forming":
                assert me.form is not None
                there = [crew[m] for m in me.form[2]]
                if all(w.form == me.form for w in there):
                    refill = me.form[6]
                    holders = (
                        [] if refill is None else [crew[m] for _, ranks in refill[1] for each in ranks for m in each]
                    )
                    filled = refill is None or acts.covered(acts.sources(crew, refill), me.form[2].index(i), len(there))
                    if filled:
                        yield "stands in its cell's world", acts.stand
                    if not filled or any(w.life != "alive" for w in [*there, *holders]):
                        yield "cannot form its cell", acts.not_formed
            case "meeting":
                yield from self.decided_for_all(self.peers(crew, i, me), me, acts.through)
            case "healing" | "across" | "voting":
                peers = self.peers(crew, i, me)
                if all(w.order == me.order and w.reach >= me.reach for w in peers):
                    yield f"is through {me.doing}", acts.through
                if any(w.life != "alive" for w in peers):
                    yield f"sees {me.doing} fail", acts.between
            case "beginning":
                assert me.form is not None
                yield from self.decided_for_all([crew[m] for m in me.form[2]], me, acts.begin)
            case "inside":
                assert me.form is not None
                peers = [crew[m] for m in me.form[2]]
                if all(w.order == me.order and w.reach >= me.reach for w in peers):
                    yield "has its cell's sums", acts.through
                cut = any(o[0] == "stop" and me.cell in o[2] for o in me.inbox)
                if cut or any(w.life != "alive" or w.form != me.form or not w.stands for w in peers):
                    yield "falls out of its broken cell", acts.fall
            case "applied" | "paused":
                yield "tells of its commit", acts.tell_commit
            case "late":
                yield "tells of its late commit", acts.tell_late
            case "answering":
                yield "answers", acts.answer_late
            case "fell":
                yield "tells of its broken cell", acts.tell_fall
        if (me.told() or me.stopping) and me.doing in ("forming", "healing", "across", "voting"):
            yield f"walks away from {me.doing}", acts.walk
        if me.inbox and not me.told():
            yield "hears of the pause", acts.hear
        if me.unsaid >= 0 and me.stopped() and self.tells_at_a_stop:
            yield "has its commit told by its link", acts.say_unsaid

    def decided_for_all(
        self, peers: list[Worker], me: Worker, go: Callable[[Scene, int], None]
    ) -> Iterator[tuple[str, Callable[[Scene, int], None]]]:
        """A meeting of `peers`: all go on, or none does."""
        here = [w for w in peers if w.order == me.order]
        come = [w for w in here if w.reach > me.reach or (w.reach == me.reach and w.turned != me.generation)]
        if len(come) == len(peers):
            yield f"is through {me.doing}", go
        if me.told() and all(w.reach <= me.reach for w in here):
            yield f"turns round while {me.doing}", acts.turn

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
