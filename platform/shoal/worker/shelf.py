"""What a worker holds of states in its memory, by name, for whoever asks for ranges of it."""

from __future__ import annotations

import json
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch

from shoal_core.ckpt.index import number
from shoal_core.ckpt.tables import Table, heard, octets, told

__all__ = ["STATES", "Held", "Shelf", "copy_name", "heard_tables", "state_name"]

STATES = "state/"
"""Begins the names of a worker's own."""
CHUNK = 1 << 20
"""Bytes that are summed and sent at a time: few enough to be in the processor's cache still when they are sent."""


def copy_name(rank: int, steps: int, shape: int = 0) -> str:
    """What the copy of another worker's shard is called, of the shape of a number."""
    return f"copy/{shape}/{rank}/{steps}"


def state_name(number: int, steps: int | str) -> str:
    """What a worker's own shard is called, after so many committed steps ("": any) in the shape of this number."""
    return f"{STATES}{number}/{steps}"


@dataclass(frozen=True)
class Held:
    """`tensors`, one after the other, of which `table` says what they are. `stands`: whether they are so still; where
    they change, they did not stand before that."""

    tensors: Sequence[torch.Tensor]
    table: Table
    stands: Callable[[], bool] = lambda: True
    ends: Sequence[int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ends", list(accumulate((tensor.nbytes for tensor in self.tensors), initial=0)))

    @property
    def bytes(self) -> int:
        return self.ends[-1]

    def views(self, at: int, size: int) -> Iterator[memoryview]:
        """So many bytes from the byte `at` on, some after others. What lies on a device is copied from there."""
        place = bisect_right(self.ends, at) - 1
        while size:
            start = at - self.ends[place]
            part = octets(self.tensors[place])[start : start + min(size, CHUNK)]
            if part.numel():
                yield memoryview(part.cpu().numpy().data)
            at, size = at + part.numel(), size - part.numel()
            place += at == self.ends[place + 1]


class Shelf:
    """Any thread may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, Held] = {}

    def put(self, name: str, held: Held) -> None:
        with self._lock:
            self._held[name] = held

    def drop(self, name: str) -> None:
        """Not to be had any more; who reads it just now is told so, if its `stands` says so."""
        with self._lock:
            self._held.pop(name, None)

    def get(self, name: str) -> Held | None:
        with self._lock:
            return self._held.get(name)

    def names(self, prefix: str) -> list[str]:
        with self._lock:
            return [name for name in self._held if name.startswith(prefix)]

    def told(self, prefix: str) -> bytes:
        """The tables of all that is held by names that begin so, in JSON."""
        with self._lock:
            held = {name: one for name, one in self._held.items() if name.startswith(prefix)}
        said = [f"{json.dumps(name)}:[{one.bytes},{told(one.table).decode()}]" for name, one in held.items()]
        return f"{{{','.join(said)}}}".encode()

    # ---- as what this worker reads of its own: `shoal_core.ckpt.read.Scattered`

    def tables(self, prefix: str) -> Mapping[str, Table]:
        """See `Peer`."""
        return heard_tables(self.told(prefix))

    def where(self, name: str) -> str:
        return f"this worker's {name}"

    def read_each(self, name: str, ranges: Sequence[tuple[int, memoryview]]) -> None:
        """See there."""
        held = self.get(name)
        if held is None:
            raise FileNotFoundError(name)
        for at, buffer in ranges:
            for view in held.views(at, buffer.nbytes):
                buffer[: view.nbytes] = view
                buffer = buffer[view.nbytes :]


def heard_tables(content: bytes | memoryview) -> Mapping[str, Table]:
    """What `Shelf.told` said, by names.

    Raises:
        ValueError: it is nothing of that.
    """
    try:
        said: dict[str, Any] = json.loads(bytes(content))
        return {name: heard(table, name, number(size)) for name, (size, table) in said.items()}
    except (TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"these are no tables ({type(error).__name__}: {error})") from error
