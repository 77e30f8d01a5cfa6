"""The run's requests to the cluster's autoscaler, made by a clock of their own: what to ask for is decided in
`decisions.asking`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from shoal.config import Job
from shoal.control.spawn import Started
from shoal.decisions.asking import Asking, Standing, lack_of, step
from shoal.decisions.state import State
from shoal.plan import Node
from shoal.sections import Autoscale

__all__ = ["Asker", "Autoscaler", "spares_asked"]

logger = logging.getLogger(__name__)
PERIOD = 1.0
NONE_THERE = 30.0
"""Seconds between two looks for an autoscaler on a cluster that had none."""
PARTING = 5.0
"""Seconds at the end of a run for what it asked for to be withdrawn; the cluster forgets it soon after in any case."""
Answer = TypeVar("Answer")


class Autoscaler(Protocol):
    """A cluster's, as one run speaks to it. Calls take as long as the cluster's head is away."""

    def there(self) -> bool:
        """Whether the cluster has one."""

    def standing(self) -> Standing:
        """What has become of what the run, under whatever controller, asked for."""

    def ask(self, pieces: Sequence[int], avoid: Sequence[str] = ()) -> None:
        """Ask for so many slots on one node, each, and for nothing else any more. `avoid`: nodes (by Ray's id) whose
        slots are no answer."""


class Asker:
    """Of one run. `view`: the living nodes, by name; `started`: its workers, living or starting; `journal`: a line of
    it."""

    def __init__(
        self,
        job: Job,
        autoscaler: Autoscaler | None,
        state: Callable[[], State],
        view: Callable[[], Mapping[str, Node]],
        started: Mapping[str, Started],
        journal: Callable[..., None],
    ) -> None:
        self._autoscaler = autoscaler if job.autoscale.enabled else None
        self._spares, self._wait = spares_asked(job.autoscale, job.spares), job.autoscale.wait_s
        self._state, self._view, self._started, self._journal = state, view, started, journal
        self._asking, self._there = Asking(), False
        self._stands = True
        """Something of this run may stand: a controller before this one may have asked."""
        self._thread = ThreadPoolExecutor(1, "autoscaler")  # of its own: where Ray does not answer, this alone waits
        self.told: tuple[int, float] | None = None
        """Slots that are asked for now, and since when (unix time), for the status file."""

    async def look(self) -> float:
        """Ask for what the run lacks; returns the seconds until the next look."""
        if self._autoscaler is None:
            return NONE_THERE
        if not self.lack() and not self._stands:
            self._asking, _, _ = step(self._asking, Standing(), (), self.living(), time.monotonic(), self._wait)
            return PERIOD
        if not self._there:
            self._there = await self._call(self._autoscaler.there)
            if not self._there:
                self._stands = False
                return NONE_THERE
        stands = await self._call(self._autoscaler.standing)
        now = time.monotonic()
        self._asking, wanted, lines = step(self._asking, stands, self.lack(), self.living(), now, self._wait)
        if sorted(wanted) != sorted(stands.open) or stands.came or stands.lost:
            usable = self._state().may_be_used
            avoid = [node.ray_id for node in self._view().values() if not usable(node.name)]
            await self._call(self._autoscaler.ask, wanted, avoid)
        for line in lines:
            self._journal(line.kind, **line.fields)
        self._stands = bool(wanted)
        self.told = (sum(wanted), time.time() - (now - self._asking.since)) if wanted else None
        return PERIOD

    def lack(self) -> tuple[int, ...]:
        """What the run lacks now."""
        started = {name: one.node for name, one in self._started.items()}
        return lack_of(self._state(), self._view(), started, self._spares)

    def living(self) -> dict[str, str]:
        """Name of each living node, by Ray's id."""
        return {node.ray_id: node.name for node in self._view().values()}

    def close(self, *, withdraw: bool) -> None:
        """The run ends, or is another controller's from now on. May be called in any thread."""
        if self._autoscaler is not None and withdraw and self._stands:
            try:
                self._thread.submit(self._autoscaler.ask, ()).result(PARTING)
                if self.told is not None:
                    self._journal("nodes_withdrawn", slots=self.told[0], left=0)
            except Exception as error:
                logger.warning("the autoscaler was not told that the run ends: %s: %s", type(error).__name__, error)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _call(self, call: Callable[..., Answer], *arguments: Any) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)


def spares_asked(autoscale: Autoscale, spares: int | str) -> int:
    """Spares that nodes are asked for, of a job that is to hold so many (`all`: whatever slots there are)."""
    if autoscale.spares is not None:
        return autoscale.spares
    return spares if isinstance(spares, int) else 0
