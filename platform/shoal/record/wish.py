"""A wish left in a run's folder for its controller: a profile of some steps. Whoever may write there may wish."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from shoal_core.files import replace_file

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


def leave(folder: Path, wish: Wish) -> None:
    """Leave a wish; one that was not taken yet is replaced. Raises OSError: it cannot be written."""
    replace_file(folder / FILE, json.dumps(asdict(wish)))


def take(folder: Path) -> Wish | None:
    """The wish that lies there, which is gone then. What cannot be read is none."""
    file = folder / FILE
    try:
        with file.open("rb") as open_file:
            text = open_file.read(LARGEST)
        file.unlink()
        return TypeAdapter(Wish).validate_json(text)
    except (OSError, ValidationError):
        return None
