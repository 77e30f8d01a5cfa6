"""The controller's clocks: many times a second the lifelines, once a second nodes and the status file.

Each looks and tells what it sees; what is made of it is decided in `decide`. Each knows only what it is given."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any

from shoal.control.fleet import Fleet
from shoal.control.lifelines import Line
from shoal.decisions.events import Asked, Event, Looked, Preemption, RecordFull, Sign, Surveyed
from shoal.plan import NOWHERE, Node, Site
from shoal.record.pen import Stall

__all__ = ["IN_A_ROW", "Bulletin", "Survey", "Watch", "every", "keep"]

logger = logging.getLogger(__name__)

BUSY = 10
"""Times as long as a look took, that nobody looks after it: what a look costs is at most a tenth of the time."""
AGAIN = 1.0
"""Seconds after a look that failed."""
IN_A_ROW = 100
"""Looks that may fail in a row: a run that nobody looks after is ended."""


async def every(
    look: Callable[[], Awaitable[float]], failed: Callable[[Exception], None], in_a_row: int | None = None
) -> None:
    """Look again and again, after as many seconds as the last look says. One that fails is told, and the next is taken
    all the same, after `AGAIN`.

    Raises:
        Exception: that of the last of `in_a_row` looks that all failed.
    """
    row = 0
    while True:
        pause = AGAIN
        try:
            pause, row = await look(), 0
        except Exception as error:
            row += 1
            if row == in_a_row:
                raise
            failed(error)
        await asyncio.sleep(pause)


async def keep(clocks: Iterable[Coroutine[Any, Any, None]], over: asyncio.Event) -> None:
    """Keep the clocks running until it is over.

    Raises:
        Exception: that of a clock that cannot go on.
    """
    tasks = [asyncio.create_task(clock) for clock in clocks]
    end = asyncio.create_task(over.wait())
    try:
        await asyncio.wait([end, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for one in (end, *tasks):
            one.cancel()


class Watch:
    """Who was last heard of when. `gap`: the longest silence that has ended since it was last asked for; `asked`: those
    who were asked for and have not said a word, at a monotonic time; `period`: seconds between two looks."""

    def __init__(
        self,
        period: float,
        lines: Mapping[str, Line],
        gap: Callable[[], float],
        asked: Callable[[float], Iterable[Asked]],
        tell: Callable[[Event], None],
    ) -> None:
        self._period, self._lines, self._gap, self._asked, self._tell = period, lines, gap, asked, tell
        self.due: float | None = None
        """Monotonic time of the next look."""

    async def look(self) -> float:
        """Look now; returns the seconds until the next look."""
        began = time.monotonic()
        self.look_at(began)
        pause = max(self._period, BUSY * (time.monotonic() - began))
        self.due = time.monotonic() + pause
        return pause

    def look_at(self, now: float) -> None:
        """Tell what is to be seen. Time by which the look comes late counts for no clock: nobody was listened to."""
        late = 0.0 if self.due is None else max(0.0, now - self.due)
        if late:
            for line in self._lines.values():
                line.excuse(late, now)
        signs = tuple(
            Sign(line.worker, line.phase, line.steps, line.heard, line.since, line.silent(now))
            for line in self._lines.values()
        )
        self._tell(Looked(now, signs, tuple(self._asked(now)), late, self._gap()))


class Survey:
    """The cluster's nodes. No answer comes while its head is away: what was known of them stays."""

    def __init__(
        self,
        fleet: Fleet,
        asked: Callable[[], Mapping[str, str]],
        tell: Callable[[Event], None],
        journal: Callable[..., None],
    ) -> None:
        self._fleet, self._asked, self._tell, self._journal = fleet, asked, tell, journal
        self.nodes: dict[str, Node] = {}
        """Those that live, by name."""
        self._spoke: dict[str, str] = {}
        """Node of every worker that ever spoke, until it is lost."""

    def spoke(self, worker: str, node: str) -> None:
        """A worker has said its first word."""
        self._spoke[worker] = node

    def site(self, node: str) -> Site:
        """Where a node stands."""
        return self.nodes[node].site if node in self.nodes else NOWHERE

    def memory(self, node: str) -> float:
        """Bytes that a node has for its workers; 0 if nobody says."""
        return self.nodes[node].memory if node in self.nodes else 0.0

    async def find(self) -> None:
        """Ask which nodes there are; tell of those that are lost."""
        found = {node.name: node for node in await asyncio.to_thread(self._fleet.nodes)}
        for name in self.nodes.keys() - found.keys():
            actors = [worker for worker, node in self._spoke.items() if node == name]
            for worker in actors:
                del self._spoke[worker]
            self._journal("node_lost", node=name, actors=actors)
        self.nodes = found

    async def look(self) -> float:
        """Tell of nodes that will be taken away (again and again, since a move may have to wait for its turn) and of
        room for spares. Returns the seconds until the next look."""
        await self.find()
        deadlines = await asyncio.to_thread(self._fleet.draining)
        for node in self.nodes.values():
            if node.ray_id in deadlines:
                self._tell(Preemption(node.name, deadlines[node.ray_id]))
        self._tell(Surveyed(time.monotonic(), tuple(self.nodes.values()), self._asked()))
        return 1.0


class Bulletin:
    """The status file, and how the record does. `write`: the status file, given what keeps the record from being
    written; `stall`: that, and whether as much waits as may."""

    def __init__(
        self,
        write: Callable[[Stall | None], None],
        stall: Callable[[], tuple[Stall | None, bool]],
        tell: Callable[[Event], None],
        journal: Callable[..., Any],
    ) -> None:
        self._write, self._stall, self._tell, self._journal = write, stall, tell, journal
        self._stalled = False

    async def look(self) -> float:
        """Write it; returns the seconds until the next time."""
        self.look_now()
        return 1.0

    def look_now(self) -> None:
        """Tell once that the record cannot be written, and again when it can."""
        stall, full = self._stall()
        if stall is not None and stall.over:
            lasted = time.time() - stall.since
            logger.warning("the record is written again: %d lines had waited, for up to %.0f s", stall.lines, lasted)
            fields = {"reason": stall.reason, "since": stall.since, "seconds": lasted, "lines": stall.lines}
            self._journal("record_stalled", **fields)
            stall = None
        elif stall is not None and not self._stalled:
            logger.warning("the record cannot be written (%s): training goes on, and what is told waits", stall.reason)
        self._stalled = stall is not None
        if stall is not None and full:
            self._tell(RecordFull(stall.reason, stall.lines))
        self._write(stall)
