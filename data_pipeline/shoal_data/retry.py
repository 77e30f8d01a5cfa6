"""Asking a store again: a pure schedule of waits, and the loop that keeps it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from shoal_core.errors import StoreError

__all__ = ["ATTEMPTS", "RUN_AGAIN", "MayPass", "retried", "waits"]

Result = TypeVar("Result")

_sleep = time.sleep  # a name of this module's own: tests put another function here, and other threads sleep on
#: how often a store is asked for the same thing: for some 25 seconds, beside what the answers take
ATTEMPTS = 10
RUN_AGAIN = "run the same command again when it answers: what is done stays done"


class MayPass(Exception):
    """A store's answer that may be another one in a moment: it is busy, a connection broke."""


def waits(attempts: int = ATTEMPTS, first: float = 0.1, longest: float = 10.0) -> Iterator[float]:
    """Seconds between attempts: each twice the one before.

    >>> list(waits(5, first=1.0, longest=5.0))
    [1.0, 2.0, 4.0, 5.0]
    """
    for number in range(attempts - 1):
        yield min(longest, first * 2**number)


def retried(name: str, ask: Callable[[], Result], attempts: int = ATTEMPTS) -> Result:
    """What `ask` returns, asked again as long as it raises `MayPass`. Between two attempts a random half to all of each
    of `waits` passes, so that tasks that were turned away together do not come back together.

    Args:
        name: the file or listing asked for, as the user knows it.
        ask: raises `MayPass`, or any other error, which goes on at once.
        attempts: how often to ask.

    Raises:
        StoreError: it was not to be had.
    """
    for wait in waits(attempts):
        try:
            return ask()
        except MayPass:
            _sleep(wait * random.uniform(0.5, 1.0))
    try:
        return ask()
    except MayPass as error:
        raise StoreError(f"{name}: not read after {attempts} attempts: {error}", RUN_AGAIN) from error
