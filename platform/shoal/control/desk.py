"""What happens to a run as events, which are decided upon one after the other; and what is decided, done.

A worker's word, or its end, comes in by the `Ear`; whatever else happens is told to the `Desk` as it is.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from shoal.control.lifelines import Line
from shoal.control.spawn import Spawner
from shoal.decisions.actions import Action, End, PutOnRecord
from shoal.decisions.decide import apply
from shoal.decisions.events import Erred, Event, Joined, Lost, Unborn
from shoal.decisions.state import State
from shoal.plan import Seat
from shoal.protocol.rendezvous import Question
from shoal.protocol.said import Beat, CannotStart, Moved, Phase, Said

__all__ = ["Desk", "Ear"]


class Ear:
    """Of one controller; everything runs in its event loop. `tell`: takes the events; `spoke`: a worker on a node has
    said its first word; `asks`: a worker's question about a membership; `erred`: the controller's own code failed;
    `moved`: a worker obeys another controller from now on."""

    def __init__(
        self,
        spawner: Spawner,
        tell: Callable[[Event], None],
        spoke: Callable[[str, str], None],
        asks: Callable[[Line, Question], None],
        erred: Callable[[Exception], None],
        moved: Callable[[Line], None],
    ) -> None:
        self._spawner, self._tell, self._spoke, self._asks, self._erred = spawner, tell, spoke, asks, erred
        self._moved = moved
        self.early: list[tuple[Line, Said]] | None = None
        """While a run is being taken over: what workers said before the state stood."""

    def joined(self, line: Line) -> None:
        """A worker was let in. One that cannot start says why with its next word."""
        if line.worker not in self._spawner.started:
            line.hang_up()
        elif self.early is None and line.greeting.phase is not Phase.UNBORN:
            self.known(line)
            home = line.greeting.home
            seat = None if home is None else Seat(*home)
            self._tell(Joined(line.worker, line.node, seat, line.pid, line.greeting.device))

    def known(self, line: Line) -> None:
        """A worker has said its first word."""
        self._spawner.spoke(line.worker)
        self._spoke(line.worker, line.node)

    def gone(self, line: Line, why: str, grace: float = 0.0) -> None:
        """A lifeline has closed, or was cut: whatever the worker is, from now on it is dead. Its process has `grace`
        seconds to end."""
        if line.worker not in self._spawner.started:
            return
        if self.early is None and line.greeting.phase is Phase.UNBORN:
            self.unborn(line.worker, why)
            return
        self._spawner.kill(line.worker, grace)
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
        elif isinstance(message, Moved):
            self._moved(line)
        elif not isinstance(message, Beat):
            self._tell(message)
            line.told = message.number

    def failed(self, error: Exception) -> None:
        """The controller failed over what a worker said: no fault of the worker's."""
        self._erred(error)
        self._tell(Erred(f"{type(error).__name__}: {error}"))


class Desk:
    """Takes events, has them decided upon, which changes `state`, and the answers done (`act`). What fails is told
    (`mishap`), and the rest is done all the same. Everything runs in one event loop."""

    def __init__(
        self,
        state: State,
        act: Callable[[Action], None],
        mishap: Callable[[Exception], None],
        decide: Callable[[State, Event], Sequence[Action]] = apply,
    ) -> None:
        self.state = state
        self._act, self._mishap, self._decide = act, mishap, decide
        self._events: deque[Event] = deque()
        self._busy = self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, event: Event) -> None:
        """Decide and act. What the actions lead to is taken in when all of them are done, and nothing any more once
        the run has ended."""
        if not self._closed:
            self._events.append(event)
        if self._busy:
            return
        self._busy = True
        try:
            while self._events:
                self._one(self._events.popleft())
        finally:
            self._busy = False

    def close(self) -> None:
        """The run has ended."""
        self._closed = True
        self._events.clear()

    def _one(self, event: Event) -> None:
        try:
            actions = self._decide(self.state, event)
        except Exception as error:
            self._failed(error, counts=not isinstance(event, Erred))
            return
        for action in actions:
            try:
                self._act(action)
            except Exception as error:
                self._failed(error, counts=isinstance(action, PutOnRecord))
            if isinstance(action, End):
                self.close()

    def _failed(self, error: Exception, *, counts: bool) -> None:
        """`counts`: a run in which that happens again and again is ended."""
        self._mishap(error)
        if counts:
            self.take(Erred(f"{type(error).__name__}: {error}"))

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Have something done that waits, beside the event loop's other work."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
