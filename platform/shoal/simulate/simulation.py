"""The simulation: a clock, workers that answer as real ones would, and the controller's own `apply`.

What is simulated is time and failure; who stops, answers, forms, copies and goes on is decided by the code that runs
real clusters, called once for each message of each worker (but for commits, of which the last before a stop is enough).
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from math import inf
from random import Random
from time import thread_time

from shoal import batching
from shoal.decisions.actions import Action, End, Form, Generation, Pause, Release, Rewind, Stop
from shoal.decisions.decide import apply
from shoal.decisions.events import Event, Surveyed
from shoal.decisions.readopt import Living, Past, rebuild
from shoal.decisions.shape import Shape
from shoal.decisions.state import State
from shoal.plan import Mesh
from shoal.protocol.said import Ack, Acked, Checkpointed, Committed, Ready
from shoal.simulate.clock import Clock
from shoal.simulate.cluster import Cluster
from shoal.simulate.era import Era
from shoal.simulate.failures import draw, preemptions
from shoal.simulate.ledger import Ledger
from shoal.simulate.rules import chooser
from shoal.simulate.settings import Settings

__all__ = ["Simulation"]

LATENCY = 0.01
"""Seconds a message takes, and a worker to answer one when it has nothing else to do."""
FOREVER = 10**12


class Simulation:
    """One simulated run. `timed`: whether the processor time of each decision is measured."""

    def __init__(self, settings: Settings, *, timed: bool = True) -> None:
        self.timed = timed
        self.settings, self.times = settings, settings.times
        self.clock, self.end = Clock(), settings.days * 86400
        self.cluster = Cluster(settings, self.clock, self)
        self.ledger = Ledger(settings.times.step)
        self.spent: dict[str, array[float]] = defaultdict(lambda: array("f"))
        """CPU seconds of each decision, by kind of event (the machine may be busy with other things)."""
        self.strength: list[tuple[float, float]] = [(0.0, settings.cells)]
        """(time, live cells, of the size that the run began with) at every change."""
        self.size = settings.workers
        """Workers of a cell."""
        self.asked = inf
        """When it is asked next whether another shape would do more."""
        self.outcome = ""
        self.why: dict[int, str] = {}
        """Cause by which each missing cell was lost."""
        self.samples = settings.cells * settings.micro_batches * settings.workers
        self.state = under_way(settings, self.cluster)
        cells = self.state.live
        share = self.share(cells, settings.workers)
        step = self.seconds(share)
        self.era = Era(0, cells, 0, 0.0, step, step, {}, share, share)
        for place in range(settings.cells * settings.workers, settings.nodes * settings.slots):
            self.cluster.stand_by(f"n{place // settings.slots}")
        for spare in range(settings.spare_nodes):
            self.cluster.arrive(f"spare{spare}")

    def seconds(self, todo: dict[int, tuple[int, ...]]) -> float:
        """Of a step in which each cell has these micro-batches to do."""
        one = (self.times.step - self.times.across) / self.settings.micro_batches
        return max(len(ms) for ms in todo.values()) * one + self.times.across

    def share(self, cells: tuple[int, ...], workers: int) -> dict[int, tuple[int, ...]]:
        """Micro-batches of a fresh step for cells of so many workers."""
        return {cell: tuple(ms) for cell, ms in batching.share(self.samples // workers, cells).items()}

    def run(self) -> None:
        """Simulate to the end of the days, or of the run."""
        settings = self.settings
        nodes = settings.nodes + settings.spare_nodes
        breaks = draw(nodes * settings.slots * settings.each, self.end, settings.rate, Random(settings.seed))
        taken = preemptions(nodes, self.end, settings.preemptions, Random(f"preemptions {settings.seed}"))
        for failure in (*breaks, *taken):
            self.clock.at(failure.time, partial(self.cluster.strike, failure))
        while not self.outcome and self.clock.tick(self.end):
            pass
        self.clock.now = self.end if not self.outcome else self.clock.now
        self.sync()

    # ---- what breaks

    def blame(self, workers: Iterable[str], cause: str) -> None:
        """The cells of these workers are missing, or will be, by this cause."""
        for worker in workers:
            seat = self.state.seats.get(worker)
            if seat is not None:
                self.why[seat.cell] = cause

    def hurt(self, workers: Iterable[str], cause: str) -> None:
        """These workers died; if one of them trained, nothing commits any more."""
        self.blame(workers, cause)
        seats = [self.state.seats.get(worker) for worker in workers]
        if any(seat is not None and seat.cell in self.state.live for seat in seats):
            self.sync()
            self.era.struck = self.clock.now if self.era.struck is None else self.era.struck
            self.ledger.interrupted(cause)

    # ---- what the controller hears

    def tell(self, event: Event) -> None:
        self.state.now = self.clock.now
        begin = thread_time() if self.timed else 0.0
        actions = apply(self.state, event)
        if self.timed:
            self.spent[type(event).__name__].append(thread_time() - begin)
        for action in actions:
            self.act(action)
        again = self.state.considered.again
        if again != self.asked and again != inf:
            self.asked = again
            self.clock.at(again + LATENCY, self.ask)

    def ask(self) -> None:
        """Whether another shape would do more is asked once more, as at every look at the cluster."""
        self.sync()
        self.tell(Surveyed(self.clock.now, ()))

    def sync(self) -> None:
        """Let the controller know of the last commit."""
        era = self.era
        count = era.commits(self.clock.now)
        if count <= era.booked or era.generation != self.state.generation:
            return
        fresh = count - era.booked
        missing = None if era.each <= self.ledger.step else next(iter(self.why.values()), "start")
        self.ledger.commits(fresh, era.time_of(era.booked + 1), era.each, missing)
        era.booked = count
        steps = era.steps + count
        self.tell(Committed(self.state.crew(era.cells[:1])[0], era.generation, steps))
        saved = steps - steps % self.settings.checkpoint
        if saved > self.state.checkpoint:
            self.tell(Checkpointed(saved))

    def answer(self, members: tuple[str | None, ...], ack: Ack, generation: int) -> None:
        """Members answer one by one; a message each."""
        for rank, worker in enumerate(members):
            if worker is not None and self.state.generation == generation and self.cluster.living(worker):
                self.tell(Acked(worker, generation, Ack(ack.steps, ack.evaluated, ack.done, ack.out, rank=rank)))

    # ---- what the controller orders

    def act(self, action: Action) -> None:
        match action:
            case Stop(generation, broken, _):
                for cell in self.era.cells:
                    self.stopped(cell, generation, cell in broken)
            case Pause(generation, _):
                self.paused(generation)
            case Form(cell, attempt, members, restore):
                filling = self.times.copy if action.refill is not None else 0.0
                seconds = self.times.form + filling + (self.times.restore if restore else 0.0)
                self.ledger.spend("restore", self.times.restore if restore else 0.0)
                self.clock.at(self.clock.now + seconds, lambda: self.formed(cell, attempt, members))
            case Generation():
                self.begin(action)
            case Rewind(_, lost):
                self.ledger.undone(lost)
                self.strength.append((self.clock.now, 0))
            case Release(workers):
                self.cluster.release(workers)
            case End(status, reason):
                self.outcome = f"{status}: {reason}"

    def stopped(self, cell: int, generation: int, broken: bool) -> None:
        """A cell finishes the sums it is in and answers; a broken one falls out of them at once."""
        era = self.era
        if cell in era.answered and era.answered[cell] >= broken:
            return
        era.answered[cell] = broken
        ready, steps, done = era.ready(cell, self.clock.now, self.seconds, self.times.across)
        ack = Ack(steps, -1, () if broken else done, out=broken)
        members = self.state.cells[cell].members
        self.clock.at((self.clock.now if broken else ready) + LATENCY, lambda: self.answer(members, ack, generation))

    def paused(self, generation: int) -> None:
        """Everybody answers after the step whose vote carries the word, unless a failure comes before."""
        era = self.era
        steps = era.steps + era.booked + (1 if self.clock.now < era.began else 2)

        def boundary() -> None:
            if era.struck is None and self.era is era:
                self.sync()
                for cell in era.cells:
                    if cell not in era.answered:
                        era.answered[cell] = False
                        self.answer(self.state.cells[cell].members, Ack(steps), generation)

        self.clock.at(era.time_of(steps - era.steps) + 1e-6, boundary)

    def formed(self, cell: int, attempt: int, members: tuple[str, ...]) -> None:
        self.sync()
        if all(self.cluster.living(worker) for worker in members):
            for worker in members:
                self.tell(Ready(worker, cell, attempt))

    def begin(self, action: Generation) -> None:
        """A generation: its groups, its copies, then its steps."""
        cells = tuple(action.cells)
        former = self.era
        healed = frozenset(target for _, target in action.heals)
        todo = {cell: tuple(action.todo[cell]) for cell in cells}
        same = len(action.cells[cells[0]]) == self.size
        before = former.kept(action) if same else {}
        self.size = len(action.cells[cells[0]])
        sources = [source for source, _ in action.heals]
        copying = self.times.copy * max((sources.count(source) for source in set(sources)), default=0)
        dealt = {cell: (*before.get(cell, ()), *todo[cell]) for cell in cells}
        share = self.share(cells, len(action.cells[cells[0]]))
        if healed:
            self.ledger.interrupted(next((self.why[cell] for cell in healed if cell in self.why), "start"))
        elif former.struck is None:
            self.ledger.interrupted(next(iter(self.why.values()), "none"))
        self.ledger.spend("regroup", self.times.regroup)
        self.ledger.spend("copy", copying)
        began = self.clock.now + self.times.regroup + copying
        self.era = Era(
            action.generation,
            cells,
            action.steps,
            began,
            self.seconds(todo),
            self.seconds(share),
            before,
            dealt,
            share,
            healed,
        )
        if any(not self.cluster.living(worker) for crew in action.cells.values() for worker in crew):
            self.era.struck = self.clock.now
        for cell in cells:
            self.why.pop(cell, None)
        self.strength.append((self.clock.now, len(cells) * self.size / self.settings.workers))


def under_way(settings: Settings, cluster: Cluster) -> State:
    """What the controller knows of a run all of whose cells train, on workers that are hired for it."""
    samples = settings.cells * settings.micro_batches * settings.workers
    seats = [divmod(place, settings.workers) for place in range(settings.cells * settings.workers)]
    living: dict[str, Living] = {}
    crews: dict[int, tuple[str, ...]] = dict.fromkeys(range(settings.cells), ())
    for place, (cell, rank) in enumerate(seats):
        node = f"n{place // settings.slots}"
        name = cluster.hire(node)
        living[name] = Living(node, (cell, rank), 0, 0, "training")
        crews[cell] += (name,)
    shape = Shape(
        settings.cells,
        settings.workers,
        FOREVER,
        lambda step, workers: samples // workers,
        axes=Mesh(fsdp=settings.workers),
        choose=chooser(settings) if settings.elastic else None,
    )
    return rebuild(shape, Past(0, crews, dict.fromkeys(crews, 0), 0, 0, 0), living)[0]
