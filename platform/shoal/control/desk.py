"""Events in, actions out, one after the other."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from shoal.decisions.actions import Action, End, PutOnRecord
from shoal.decisions.events import Erred, Event

__all__ = ["Desk"]


class Desk:
    """Takes events, has them decided upon (`decide`) and the answers done (`act`). What fails is told (`mishap`), and
    the rest is done all the same. Everything runs in one event loop."""

    def __init__(
        self,
        decide: Callable[[Event], Sequence[Action]],
        act: Callable[[Action], None],
        mishap: Callable[[Exception], None],
    ) -> None:
        self._decide, self._act, self._mishap = decide, act, mishap
        self._events: deque[Event] = deque()
        self._busy = False
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, event: Event) -> None:
        """Decide and act. What the actions lead to is taken in when all of them are done."""
        self._events.append(event)
        if self._busy:
            return
        self._busy = True
        try:
            while self._events:
                self._one(self._events.popleft())
        finally:
            self._busy = False

    def _one(self, event: Event) -> None:
        try:
            actions = self._decide(event)
        except Exception as error:
            self._failed(error, counts=not isinstance(event, Erred))
            return
        for action in actions:
            try:
                self._act(action)
            except Exception as error:
                self._failed(error, counts=isinstance(action, PutOnRecord))
            if isinstance(action, End):
                self._events.clear()

    def _failed(self, error: Exception, *, counts: bool) -> None:
        """`counts`: a run in which that happens again and again is ended."""
        self._mishap(error)
        if counts:
            self._events.append(Erred(f"{type(error).__name__}: {error}"))

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Have something done that waits, beside the event loop's other work."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
