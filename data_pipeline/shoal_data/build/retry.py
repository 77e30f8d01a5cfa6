"""Asking a store again: a pure schedule of waits, and the loop that keeps it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from shoal_data.errors import StoreError

__all__ = ["ATTEMPTS", "MayPass", "retried", "waits"]

Result = TypeVar("Result")

#: how often a store is asked for the same thing
ATTEMPTS = 8


class MayPass(Exception):
    """A store's answer that may be another one in a moment: it is busy, a connection broke."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


def waits(attempts: int = ATTEMPTS, first: float = 0.1, longest: float = 10.0) -> Iterator[float]:
    """Seconds between attempts: each twice the one before.

    >>> list(waits(5, first=1.0, longest=5.0))
    [1.0, 2.0, 4.0, 5.0]
    """
    for number in range(attempts - 1):
        yield min(longest, first * 2**number)


def retried(name: str, ask: Callable[[], Result], sleep: Callable[[float], None] = time.sleep) -> Result:
    """What `ask` returns, asked again as long as it raises `MayPass`.

    Args:
        name: the file or listing asked for, as the user knows it.
        ask: raises `MayPass`, or any other error, which goes on at once.
        sleep: called with seconds between attempts (tests pass their own).

    Raises:
        StoreError: it was not to be had.
    """
    for wait in waits():
        try:
            return ask()
        except MayPass:
            sleep(wait)
    try:
        return ask()
    except MayPass as error:
        raise StoreError(
            f"{name}: not read after {ATTEMPTS} attempts: {error.cause}",
            "nothing is lost: run the same command again when the store answers; what is done stays done",
        ) from error
