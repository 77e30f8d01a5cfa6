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


def patiently(work: Callable[[], Result], *stores: Store) -> Result:
    """What `work` returns, which asks `stores`. A folder that hangs is given up, with the thread that waits for it;
    until that has its answer all work on this store is refused, so that what it reads or writes late is in nobody's
    way. Other stores have deadlines of their own.

    Raises:
        StoreError: a folder does not answer. Others as `work`.
    """
    folders = [store.asked for store in stores if isinstance(store, LocalStore)]
    if not folders:
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

    def hanging() -> str | None:
        return next((where for asked in folders if (where := asked.hanging()) is not None), None)

    if (where := hanging()) is None:
        threading.Thread(target=run, daemon=True, name="store").start()
        while not done.wait(LOOK) and where is None:
            where = hanging()
    if where is not None and not done.is_set():
        raise StoreError(
            f"{where}: has not been answered for {patience.PATIENCE:.0f} s",
            "see that the file server answers and this disk works (dmesg); what was to be done is tried again",
        )
    if errors:
        raise errors[0]
    return results[0]
