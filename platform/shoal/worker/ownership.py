"""Whose the run is, asked before a worker writes for it: its controller, who would have ended it, may be gone."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from shoal.record import grip, lease
from shoal_core.store import local_folder, open_store

__all__ = ["end_if_lost"]

logger = logging.getLogger(__name__)
ANSWER = 2.0
"""Seconds for which a folder's answer is waited for; a file server may hang."""


def end_if_lost(place: str, folder: Path, session: str) -> None:
    """End this process if another session has the run at the address `place`. Training does not wait for a store's
    answer, and not for long for a folder's: one that comes late ends the process then. `folder`: where the run is
    written, if it is no store.

    Raises:
        SystemExit: it has, by what stands in the folder.
    """
    if local_folder(place) is None:
        _Asked(lambda: grip.check(open_store(place), session)).wait(0.0)
    else:
        _Asked(partial(lease.check, folder, session)).wait(ANSWER)


class _Asked:
    """A question of whose a run is, put in a thread of its own. `check`: raises LeaseLost if it is another's."""

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check
        self._lost: lease.LeaseLost | None = None
        self._late = False
        self._thread = threading.Thread(target=self._ask, daemon=True, name="lease")
        self._thread.start()

    def wait(self, seconds: float) -> None:
        """Wait for the answer for so long. Raises SystemExit: it is another's."""
        self._thread.join(seconds)
        self._late = True
        if self._lost is not None:
            raise SystemExit(str(self._lost)) from self._lost

    def _ask(self) -> None:
        try:
            self._check()
        except lease.LeaseLost as error:
            self._lost = error
            if self._late:
                logger.error("%s: this process ends", error)
                os._exit(1)
