"""The controller's press: brings a record to the store that it lies on, every two seconds, while training goes on.

A store that fails, throttles or hangs is told once, with its remedy, and asked again and again. What workers have said
they keep until it is published: a controller that takes over on another machine finds no more than that.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from shoal.control.lag import BOUND, PERIOD, Lag, lasting, pause_after
from shoal.control.lifelines import Line
from shoal.protocol import orders
from shoal.record.grip import WATCH
from shoal.record.lease import LeaseLost
from shoal.record.publish import Publisher
from shoal_core.errors import StoreError, UserError

__all__ = ["Press", "persistently"]

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
LONGEST = 30.0
"""Seconds between two tries at most."""
SETTLE = 1.0
"""Seconds that a round waits for the local record to be written."""
LATE = WATCH
"""Seconds behind after which a store that does not say no counts as failing: who wants to resume the run then takes its
controller for gone."""
LAST = 60.0
"""Seconds at the end of a run in which its store may come to itself."""


def persistently(take: Callable[[], Result]) -> Result:
    """What `take` returns, as soon as the store answers: the workers of a run that is to be taken over train on.

    Raises:
        UserError: it is not to be had.
    """
    pause = PERIOD
    while True:
        try:
            return take()
        except StoreError as error:
            logger.warning("the run cannot be taken yet: %s", error)
            time.sleep(pause)
            pause = min(2 * pause, LONGEST)


class Press:
    """All but `close` is called in the event loop.

    `settle`: waits until what was told is written, for some seconds at most, and says whether it is; `lines`: the
    workers; `waiting`: the number of the first word of each worker that is not on record yet, though it was heard;
    `send`: orders to workers; `journal`: a line of it; `lost`: is told that another session, or (true) another
    controller of this one, has the record.
    """

    def __init__(
        self,
        publisher: Publisher,
        settle: Callable[[float], bool],
        lines: Mapping[str, Line],
        waiting: Callable[[], Mapping[str, int]],
        send: Callable[[Iterable[tuple[str, orders.Order]]], None],
        journal: Callable[..., None],
        lost: Callable[[LeaseLost], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._publisher, self._settle, self._lines, self._waiting = publisher, settle, lines, waiting
        self._send, self._journal, self._lost = send, journal, lost
        self._one = threading.Lock()
        """Of a round: that of the end waits for one that hangs."""
        self._clock = clock
        self._lag: Lag | None = None
        """Since the first round began."""
        self._row = 0
        """Rounds that failed, one after the other."""
        self._failing: float | None = None
        """Since when what is on the store is old, by the clock; None: it is not."""

    async def look(self) -> float:
        """Publish what there is; returns the seconds until the next time."""
        heard, began = self._heard(), self._clock()
        lag = self._lag = self._lag or Lag(began)
        try:
            settled = await asyncio.to_thread(self._round)
        except LeaseLost as error:
            self._lost(error)
            return PERIOD
        except UserError as error:
            return self._failed(error.problem, error.remedy)
        except OSError as error:
            return self._failed(f"{type(error).__name__}: {error}", "see that the controller's own disk can be read")
        self._row, now = 0, self._clock()
        lag.published(began, now)
        if lasting(now - began) <= BOUND:
            self._well()
        if settled:
            self._acknowledge(heard)
        return pause_after(now - began)

    def behind(self) -> tuple[float, float]:
        """Seconds by which what is on the store is old, and by which it was at most. One that is slow, or says nothing,
        is told."""
        if self._lag is None:
            return 0.0, 0.0
        behind = self._lag.behind(self._clock())
        if behind > LATE:
            remedy = "see how busy it is, and that it can be reached from the controller's node"
            self._tell(f"the store has not taken it for {behind:.0f} s", remedy)
        return behind, max(behind, self._lag.most)

    def close(self) -> str:
        """Publish all that is left, and leave the record to whoever comes next. Any thread. Returns what could not be
        done, "" if all was.

        Raises:
            LeaseLost: another has it.
        """
        end = time.monotonic() + LAST
        while True:
            try:
                self._round()
                self._publisher.release()
                return ""
            except LeaseLost:
                raise
            except (UserError, OSError) as error:
                if time.monotonic() > end:
                    problem = error.problem if isinstance(error, UserError) else str(error)
                    return f"the end of the record is not on its store ({problem}), but in {self._publisher.folder}"
                time.sleep(PERIOD)

    def _round(self) -> bool:
        """Whether all that had been told is published."""
        with self._one:
            settled = self._settle(SETTLE)
            self._publisher.round()
            return settled

    # ---- how it goes

    def _failed(self, problem: str, remedy: str) -> float:
        self._row += 1
        self._tell(problem, remedy)
        return float(min(PERIOD * 2**self._row, LONGEST))

    def _tell(self, problem: str, remedy: str) -> None:
        if self._failing is None:
            now = self._clock()
            self._failing = now - (0.0 if self._lag is None else self._lag.behind(now))
            logger.warning("the record is not published: %s; %s", problem, remedy)
            self._journal("record_behind", reason=problem, remedy=remedy)

    def _well(self) -> None:
        if self._failing is not None:
            lasted, self._failing = self._clock() - self._failing, None
            logger.warning("the record is published again, after %.0f s", lasted)
            self._journal("record_caught_up", seconds=lasted)

    # ---- what workers need not say again

    def _heard(self) -> list[tuple[Line, int]]:
        """Of each worker the number of its last word, up to which all are told to the record."""
        waiting = self._waiting()
        return [(line, min(line.told, waiting.get(line.worker, line.told + 1) - 1)) for line in self._lines.values()]

    def _acknowledge(self, heard: list[tuple[Line, int]]) -> None:
        news = [
            (line, number) for line, number in heard if number > line.published and self._lines.get(line.worker) is line
        ]
        for line, number in news:
            line.published = number
        self._send((line.worker, orders.Published(number)) for line, number in news)
