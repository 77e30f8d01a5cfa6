"""The simulated cluster: nodes and workers that come, break and come back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from shoal.decisions.events import Event, Joined, Lost, Preemption
from shoal.simulate.clock import Clock
from shoal.simulate.failures import Failure
from shoal.simulate.settings import Settings

__all__ = ["Cluster", "Run"]


class Run(Protocol):
    """What the cluster befalls."""

    def tell(self, event: Event) -> None:
        """The controller hears of it."""

    def sync(self) -> None:
        """The controller hears of the last commit first."""

    def blame(self, workers: Iterable[str], cause: str) -> None:
        """These will be missing, or are, by this cause."""

    def hurt(self, workers: Iterable[str], cause: str) -> None:
        """These are dead; nobody has noticed yet."""


class Cluster:
    """`nodes`: living workers of each; `node_of`: of every worker that the controller does not know to be gone;
    `failures`: those that struck."""

    def __init__(self, settings: Settings, clock: Clock, run: Run) -> None:
        self.settings, self.times = settings, settings.times
        self.clock, self.run = clock, run
        self.failures: list[Failure] = []
        self.node_of: dict[str, str] = {}
        self.nodes: dict[str, set[str]] = {}
        self.hired = 0

    def hire(self, node: str) -> str:
        """A worker starts on a node; returns its name."""
        self.hired += 1
        name = f"w{self.hired}"
        self.node_of[name] = node
        self.nodes.setdefault(node, set()).add(name)
        return name

    def release(self, workers: Iterable[str]) -> None:
        """The controller lets workers go."""
        for worker in workers:
            self.nodes.get(self.node_of.pop(worker, ""), set()).discard(worker)

    def living(self, worker: str) -> bool:
        node = self.node_of.get(worker)
        return node is not None and worker in self.nodes.get(node, ())

    # ---- what comes

    def arrive(self, node: str) -> None:
        """A node comes; its workers are warm after a while."""
        self.nodes[node] = set()
        for _ in range(self.settings.slots):
            self._start(node)

    def stand_by(self, node: str) -> None:
        """A slot that is nobody's is given a worker."""
        self.nodes.setdefault(node, set())
        self._start(node)

    def _start(self, node: str) -> None:
        self.clock.at(self.clock.now + self.times.start, lambda: self._join(node) if node in self.nodes else None)

    def _join(self, node: str) -> None:
        self.run.sync()
        self.run.tell(Joined(self.hire(node), node))

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
        noticed = self.times.silent if cause.shows == "silent" else self.times.closed
        if cause.shows == "notice":
            self.run.sync()
            self.run.blame(self.nodes[node], cause.name)
            self.run.tell(Preemption(node))
            self.clock.at(
                self.clock.now + self.times.notice, lambda: self._down(node, cause.name, noticed, cause.repair)
            )
        elif cause.takes == "node":
            self._down(node, cause.name, noticed, cause.repair)
        else:
            workers = sorted(self.nodes[node])
            victim = workers[int((spot % 1) * len(workers))]
            self.kill([victim], cause.name, noticed)
            self._start(node)

    def kill(self, workers: list[str], cause: str, noticed: float) -> None:
        """Workers die; the controller hears of it `noticed` seconds later."""
        for worker in workers:
            self.nodes.get(self.node_of[worker], set()).discard(worker)
        self.run.hurt(workers, cause)
        self.clock.at(self.clock.now + noticed, lambda: self._lost(workers))

    def _down(self, node: str, cause: str, noticed: float, repair: float) -> None:
        """A node goes, and comes back under another name."""
        self.kill(sorted(self.nodes.pop(node, set())), cause, noticed)
        self.clock.at(self.clock.now + repair, lambda: self.arrive(f"{node.split('+')[0]}+{len(self.failures)}"))

    def _lost(self, workers: list[str]) -> None:
        self.run.sync()
        for worker in workers:
            self.node_of.pop(worker, None)
            self.run.tell(Lost(worker, "gone"))
