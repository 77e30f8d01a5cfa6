"""What workers say and how they go, as events. Nothing is decided here."""

from __future__ import annotations

import time
from collections.abc import Callable

from shoal.control.lifelines import Line
from shoal.control.spawn import Spawner
from shoal.decisions.events import Erred, Event, Joined, Lost, Unborn
from shoal.plan import Seat
from shoal.protocol.rendezvous import Question
from shoal.protocol.said import Beat, CannotStart, Phase, Said

__all__ = ["Ear"]


class Ear:
    """Of one controller; everything runs in its event loop. `tell`: takes the events; `spoke`: a worker on a node has
    said its first word; `asks`: a worker's question about a membership; `erred`: the controller's own code failed."""

    def __init__(
        self,
        spawner: Spawner,
        tell: Callable[[Event], None],
        spoke: Callable[[str, str], None],
        asks: Callable[[Line, Question], None],
        erred: Callable[[Exception], None],
    ) -> None:
        self._spawner, self._tell, self._spoke, self._asks, self._erred = spawner, tell, spoke, asks, erred
        self.early: list[tuple[Line, Said]] | None = None
        """While a run is being taken over: what workers said before the state stood."""

    def joined(self, line: Line) -> None:
        """A worker was let in. One that cannot start says why with its next word."""
        if line.worker not in self._spawner.started:
            line.hang_up()
        elif self.early is None and line.greeting.phase is not Phase.UNBORN:
            self.known(line)
            home = line.greeting.home
            self._tell(Joined(line.worker, line.node, None if home is None else Seat(*home), line.pid))

    def known(self, line: Line) -> None:
        """A worker has said its first word."""
        self._spawner.spoke(line.worker)
        self._spoke(line.worker, line.node)

    def gone(self, line: Line, why: str) -> None:
        """A lifeline has closed, or was cut: whatever the worker is, from now on it is dead."""
        if line.worker not in self._spawner.started:
            return
        if self.early is None and line.greeting.phase is Phase.UNBORN:
            self.unborn(line.worker, why)
            return
        self._spawner.kill(line.worker)
        if self.early is None:
            alive = time.time() - (time.monotonic() - line.heard)
            self._tell(Lost(line.worker, why, line.node, line.pid, alive))

    def unborn(self, worker: str, why: str, trace: str = "") -> None:
        """A worker died before its first word, or said as its only one that it cannot start."""
        started = self._spawner.started.get(worker)
        if started is not None and not started.heard:
            self._tell(Unborn(worker, started.node, why, trace))

    def said(self, line: Line, message: Said) -> None:
        """A worker's word."""
        if isinstance(message, Question):
            self._asks(line, message)
        elif self.early is not None:
            self.early.append((line, message))
        elif isinstance(message, CannotStart):
            self.unborn(message.worker, message.message, message.trace)
        elif not isinstance(message, Beat):
            self._tell(message)

    def failed(self, error: Exception) -> None:
        """The controller failed over what a worker said: no fault of the worker's."""
        self._erred(error)
        self._tell(Erred(f"{type(error).__name__}: {error}"))
