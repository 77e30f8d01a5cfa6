"""Work on a store that is given up when the store hangs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from shoal_core.errors import StoreError
from shoal_core.store import patience
from shoal_core.store.base import Store
from shoal_core.store.local import LocalStore

__all__ = ["patiently"]

Result = TypeVar("Result")
LOOK = 0.5
"""Seconds between two looks at what the work waits for."""


def patiently(store: Store, work: Callable[[], Result]) -> Result:
    """What `work` returns, which asks `store`. A folder that hangs is given up, with the thread that waits for it;
    until that has its answer all work on this store is refused, so that what it reads or writes late is in nobody's
    way. Other stores have deadlines of their own.

    Raises:
        StoreError: the folder does not answer. Others as `work`.
    """
    if not isinstance(store, LocalStore):
        return work()
    done = threading.Event()
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)
        done.set()

    if (hanging := store.asked.hanging()) is None:
        threading.Thread(target=run, daemon=True, name="store").start()
        while not done.wait(LOOK) and hanging is None:
            hanging = store.asked.hanging()
    if hanging is not None and not done.is_set():
        raise StoreError(
            f"{hanging}: has not been answered for {patience.PATIENCE:.0f} s",
            "see that the file server answers and this disk works (dmesg); what was to be done is tried again",
        )
    if errors:
        raise errors[0]
    return results[0]
