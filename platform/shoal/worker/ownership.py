"""Whose the run is, asked before a worker writes for it: its controller, who would have ended it, may be gone."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

from shoal.record import grip, lease
from shoal_core.store import local_folder, open_store

__all__ = ["end_if_lost"]

logger = logging.getLogger(__name__)


def end_if_lost(place: str, folder: Path, session: str) -> None:
    """End this process if another session has the run at the address `place`. Training does not wait for a store's
    answer. `folder`: where the run is written, if it is no store.

    Raises:
        SystemExit: it has, by what stands in the folder.
    """
    if local_folder(place) is None:
        threading.Thread(target=_ask, args=(place, session), daemon=True, name="lease").start()
        return
    try:
        lease.check(folder, session)
    except lease.LeaseLost as error:
        raise SystemExit(str(error)) from error


def _ask(place: str, session: str) -> None:
    try:
        grip.check(open_store(place), session)
    except lease.LeaseLost as error:
        logger.error("%s: this process ends", error)
        os._exit(1)
