"""The simulation: a clock, workers that answer as real ones would, and the controller's own `apply`.

What is simulated is time and failure; who stops, answers, forms, copies and goes on is decided by the code that runs
real clusters, called once for each message of each worker (but for commits, of which the last before a stop is enough).
"""

from __future__ import annotations

import heapq
from array import array
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from time import thread_time

from shoal import batching
from shoal.decisions.actions import Action, End, Form, Generation, Pause, Release, Rewind, Stop
from shoal.decisions.decide import apply
from shoal.decisions.events import Event, Joined, Lost, Preemption
from shoal.decisions.readopt import Living, Past, rebuild
from shoal.decisions.state import Shape
from shoal.protocol.said import Ack, Acked, Checkpointed, Committed, Ready
from shoal.simulate.failures import Failure, draw
from shoal.simulate.ledger import Ledger
from shoal.simulate.settings import Settings

__all__ = ["Engine", "Era"]

LATENCY = 0.01
"""Seconds a message takes, and a worker to answer one when it has nothing else to do."""
FOREVER = 10**12


@dataclass
class Era:
    """A generation as it runs. `began`: time its first micro-batch starts; `first`, `each`: seconds of its first step
    and of those after; `before`, `dealt`: micro-batches of the first step that each cell had done when it began, and
    will have done; `share`: of the steps after."""

    generation: int
    cells: tuple[int, ...]
    steps: int
    began: float
    first: float
    each: float
    before: dict[int, tuple[int, ...]]
    dealt: dict[int, tuple[int, ...]]
    share: dict[int, tuple[int, ...]]
    unhealed: frozenset[int] = frozenset()
    struck: float | None = None
    """Since when a member is dead: nothing commits any more."""
    booked: int = 0
    answered: dict[int, bool] = field(default_factory=dict)
    """Cells whose answer is on its way, and whether as a broken one."""

    def commits(self, now: float) -> int:
        """Steps committed by `now`."""
        until = (now if self.struck is None else min(now, self.struck)) - self.began
        return 0 if until < self.first else 1 + int((until - self.first) / self.each)

    def pending(self, cell: int) -> tuple[int, ...]:
        """What a cell will have done of the pending step once its sums are complete."""
        return self.share[cell] if self.booked else self.dealt[cell]

    def time_of(self, commits: int) -> float:
        return self.began + self.first + (commits - 1) * self.each


class Engine:
    """One simulated run."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.times = settings, settings.times
        self.random = Random(settings.seed)
        self.now, self.end = 0.0, settings.days * 86400
        self.queue: list[tuple[float, int, Callable[[], None]]] = []
        self.serial = 0
        self.ledger = Ledger(settings.times.step)
        self.spent: dict[str, array[float]] = defaultdict(lambda: array("f"))
        """CPU seconds of each decision, by kind of event (the machine may be busy with other things)."""
        self.failures: list[Failure] = []
        self.strength: list[tuple[float, int]] = [(0.0, settings.cells)]
        """(time, live cells) at every change."""
        self.outcome = ""
        self.hired = 0
        self.node_of: dict[str, str] = {}
        self.nodes: dict[str, set[str]] = {}
        self.why: dict[int, str] = {}
        """Cause by which each missing cell was lost."""
        self.total = settings.cells * settings.micro_batches
        crews = {
            cell: tuple(
                self.worker(f"n{(cell * settings.workers + rank) // settings.slots}")
                for rank in range(settings.workers)
            )
            for cell in range(settings.cells)
        }
        shape = Shape(settings.cells, settings.workers, FOREVER, lambda step: self.total)
        living = {
            name: Living(self.node_of[name], (cell, rank), 0, 0, "training")
            for cell, crew in crews.items()
            for rank, name in enumerate(crew)
        }
        self.state, _ = rebuild(shape, Past(0, crews, dict.fromkeys(crews, 0), 0, 0, 0), living)
        cells = tuple(crews)
        share = {cell: tuple(ms) for cell, ms in batching.share(self.total, cells).items()}
        step = self.seconds(share)
        self.era = Era(0, cells, 0, 0.0, step, step, {}, share, share)
        for spare in range(settings.spare_nodes):
            self.arrive(f"spare{spare}")

    def worker(self, node: str) -> str:
        self.hired += 1
        name = f"w{self.hired}"
        self.node_of[name] = node
        self.nodes.setdefault(node, set()).add(name)
        return name

    def seconds(self, todo: dict[int, tuple[int, ...]]) -> float:
        """Of a step in which each cell has these micro-batches to do."""
        one = (self.times.step - self.times.across) / self.settings.micro_batches
        return max(len(ms) for ms in todo.values()) * one + self.times.across

    # ---- time

    def at(self, time: float, act: Callable[[], None]) -> None:
        self.serial += 1
        heapq.heappush(self.queue, (time, self.serial, act))

    def run(self) -> None:
        """Simulate to the end of the days, or of the run."""
        slots = (self.settings.nodes + self.settings.spare_nodes) * self.settings.slots
        for failure in draw(slots, self.end, self.settings.rate, self.random):
            self.at(failure.time, lambda failure=failure: self.strike(failure))  # type: ignore[misc]
        while self.queue and self.queue[0][0] <= self.end and not self.outcome:
            self.now, _, act = heapq.heappop(self.queue)
            act()
        self.now = self.end if not self.outcome else self.now
        self.sync()

    # ---- what breaks

    def strike(self, failure: Failure) -> None:
        """A cause takes a worker or a node."""
        names = sorted(node for node, workers in self.nodes.items() if workers)
        if not names:
            return
        self.failures.append(failure)
        spot = failure.place * len(names)
        node = names[int(spot)]
        cause = failure.cause
        if cause.shows == "notice":
            self.sync()
            self.blame(node, cause.name)
            self.tell(Preemption(node))
            self.at(self.now + self.times.notice, lambda: self.down(node, cause.name, self.times.closed, cause.repair))
        elif cause.takes == "node":
            self.down(
                node, cause.name, self.times.silent if cause.shows == "silent" else self.times.closed, cause.repair
            )
        else:
            workers = sorted(self.nodes[node])
            victim = workers[int((spot % 1) * len(workers))]
            self.kill([victim], cause.name, self.times.silent if cause.shows == "silent" else self.times.closed)
            self.at(self.now + self.times.start, lambda: self.join(node) if node in self.nodes else None)

    def down(self, node: str, cause: str, notice: float, repair: float) -> None:
        """A node goes, and comes back under another name."""
        self.kill(sorted(self.nodes.pop(node, set())), cause, notice)
        self.at(self.now + repair, lambda: self.arrive(f"{node.split('+')[0]}+{len(self.failures)}"))

    def blame(self, node: str, cause: str) -> None:
        for worker in self.nodes[node]:
            seat = self.state.seats.get(worker)
            if seat is not None:
                self.why[seat.cell] = cause

    def kill(self, workers: list[str], cause: str, notice: float) -> None:
        live = False
        for worker in workers:
            self.nodes.get(self.node_of[worker], set()).discard(worker)
            seat = self.state.seats.get(worker)
            if seat is not None:
                self.why[seat.cell] = cause
                live |= seat.cell in self.state.live
        if live:
            self.sync()
            self.era.struck = self.now if self.era.struck is None else self.era.struck
            self.ledger.interrupted(cause)
        self.at(self.now + notice, lambda: self.lost(workers))

    def lost(self, workers: list[str]) -> None:
        self.sync()
        for worker in workers:
            self.node_of.pop(worker, None)
            self.tell(Lost(worker, "gone"))

    def arrive(self, node: str) -> None:
        """A node comes; its workers are warm after a while."""
        self.nodes[node] = set()
        for _ in range(self.settings.slots):
            self.at(self.now + self.times.start, lambda: self.join(node) if node in self.nodes else None)

    def join(self, node: str) -> None:
        self.sync()
        self.tell(Joined(self.worker(node), node))

    # ---- what the controller hears

    def tell(self, event: Event) -> None:
        begin = thread_time()
        actions = apply(self.state, event)
        self.spent[type(event).__name__].append(thread_time() - begin)
        for action in actions:
            self.act(action)

    def living(self, worker: str) -> bool:
        node = self.node_of.get(worker)
        return node is not None and worker in self.nodes.get(node, ())

    def sync(self) -> None:
        """Let the controller know of the last commit."""
        era = self.era
        count = era.commits(self.now)
        if count <= era.booked or era.generation != self.state.generation:
            return
        fresh = count - era.booked
        full = len(era.cells) == self.settings.cells
        missing = None if full else next(iter(self.why.values()), "start")
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
            if worker is not None and self.state.generation == generation and self.living(worker):
                self.tell(Acked(worker, generation, replace(ack, rank=rank)))

    # ---- what the controller orders

    def act(self, action: Action) -> None:
        match action:
            case Stop(generation, broken, _):
                for cell in self.era.cells:
                    self.stopped(cell, generation, cell in broken)
            case Pause(generation, _):
                self.paused(generation)
            case Form(cell, attempt, members, restore, _):
                seconds = self.times.form + (self.times.restore if restore else 0.0)
                self.ledger.spend("restore", self.times.restore if restore else 0.0)
                self.at(self.now + seconds, lambda: self.formed(cell, attempt, members))
            case Generation():
                self.begin(action)
            case Rewind(_, lost):
                self.ledger.undone(lost)
                self.strength.append((self.now, 0))
            case Release(workers):
                for worker in workers:
                    self.nodes.get(self.node_of.pop(worker, ""), set()).discard(worker)
            case End(status, reason):
                self.outcome = f"{status}: {reason}"

    def stopped(self, cell: int, generation: int, broken: bool) -> None:
        """A cell finishes the sums it is in and answers; a broken one falls out of them at once."""
        era = self.era
        if cell in era.answered and era.answered[cell] >= broken:
            return
        era.answered[cell] = broken
        steps = era.steps + era.booked
        ready = self.now
        if self.now < era.began:
            done = era.before.get(cell, ())
            steps = -1 if cell in era.unhealed else steps
        else:
            done = era.pending(cell)
            fresh = done if era.booked else done[len(era.before.get(cell, ())) :]
            start = era.time_of(era.booked) if era.booked else era.began
            ready = max(ready, start + self.seconds({cell: fresh}) - self.times.across)
        ack = Ack(steps, -1, () if broken else done, out=broken)
        members = self.state.cells[cell].members
        self.at((self.now if broken else ready) + LATENCY, lambda: self.answer(members, ack, generation))

    def paused(self, generation: int) -> None:
        """Everybody answers after the step whose vote carries the word, unless a failure comes before."""
        era = self.era
        steps = era.steps + era.booked + (1 if self.now < era.began else 2)

        def boundary() -> None:
            if era.struck is None and self.era is era:
                self.sync()
                for cell in era.cells:
                    if cell not in era.answered:
                        era.answered[cell] = False
                        self.answer(self.state.cells[cell].members, Ack(steps), generation)

        self.at(era.time_of(steps - era.steps) + 1e-6, boundary)

    def formed(self, cell: int, attempt: int, members: tuple[str, ...]) -> None:
        self.sync()
        if all(self.living(worker) for worker in members):
            for worker in members:
                self.tell(Ready(worker, cell, attempt))

    def begin(self, action: Generation) -> None:
        """A generation: its groups, its copies, then its steps."""
        cells = tuple(action.cells)
        former = self.era
        healed = frozenset(target for _, target in action.heals)
        before = {
            cell: former.pending(cell)
            for cell in cells
            if cell in former.dealt and cell not in healed and action.steps == former.steps + former.booked
        }
        todo = {cell: tuple(action.todo[cell]) for cell in cells}
        taken = {m for ms in todo.values() for m in ms}
        before = {cell: tuple(m for m in ms if m not in taken) for cell, ms in before.items()}
        sources = [source for source, _ in action.heals]
        copying = self.times.copy * max((sources.count(source) for source in set(sources)), default=0)
        dealt = {cell: (*before.get(cell, ()), *todo[cell]) for cell in cells}
        share = {cell: tuple(ms) for cell, ms in batching.share(self.total, cells).items()}
        if healed:
            self.ledger.interrupted(next((self.why[cell] for cell in healed if cell in self.why), "start"))
        elif former.struck is None:
            self.ledger.interrupted(next(iter(self.why.values()), "none"))
        self.ledger.spend("regroup", self.times.regroup)
        self.ledger.spend("copy", copying)
        began = self.now + self.times.regroup + copying
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
        if any(not self.living(worker) for crew in action.cells.values() for worker in crew):
            self.era.struck = self.now
        for cell in cells:
            self.why.pop(cell, None)
        self.strength.append((self.now, len(cells)))
