"""A wish left in a run's folder for its controller: a profile of some steps. Whoever may write there may wish."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from pydantic import TypeAdapter, ValidationError

from shoal_core.errors import StoreError
from shoal_core.store import Store

__all__ = ["Wish", "leave", "take"]

FILE = ".profile"
LARGEST = 64 * 1024
"""Bytes that a wish may have."""


@dataclass(frozen=True)
class Wish:
    """Profile the steps `first` to `last`, as the record counts them. `workers`: parts of their names, none for the
    first of the first cell; `memory`: what the device's memory holds, instead of what is done."""

    first: int
    last: int
    workers: tuple[str, ...] = ()
    memory: bool = False

    def chosen(self, crew: list[str]) -> list[str]:
        """Those of the workers, by cell and rank, that are wished for."""
        if not self.workers:
            return crew[:1]
        return [worker for worker in crew if any(part in worker for part in self.workers)]


def leave(store: Store, wish: Wish) -> None:
    """Leave a wish at a run's address; one that was not taken yet is replaced. Raises StoreError: it cannot be
    written."""
    store.put(FILE, json.dumps(asdict(wish)).encode())


def take(store: Store) -> Wish | None:
    """The wish that lies there, which is gone then. What cannot be read is none."""
    try:
        text = store.get(FILE) if store.stat(FILE).bytes <= LARGEST else b""
        store.delete([FILE])
        return TypeAdapter(Wish).validate_json(text)
    except (FileNotFoundError, EOFError, StoreError, ValidationError):
        return None
