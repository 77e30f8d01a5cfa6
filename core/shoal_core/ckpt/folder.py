"""A checkpoint's place: a prefix in a store."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from shoal_core.store import Store, Writer, create_alone, exists, get_small, open_store, split

__all__ = ["STEP", "Folder", "name_of"]

STEP = re.compile(r"step-(\d{8,})")
"""The name of a checkpoint among others: the committed steps that its state stands for."""
MOST = 1 << 30
"""Bytes of what is read whole: ten times the index of a checkpoint of 700 billion parameters."""


@dataclass(frozen=True)
class Folder:
    """What lies in `store` under `prefix`, and in all of it if that is empty."""

    store: Store
    prefix: str = ""

    @classmethod
    def at(cls, address: str | os.PathLike[str]) -> Folder:
        """That of the checkpoint at an address of its own: beside others in the store above it, if there is one.

        Raises:
            UserError: there can be no store there.
        """
        above, name = split(address)
        return cls(open_store(above), name)

    @property
    def address(self) -> str:
        return self.store.where(self.prefix) if self.prefix else self.store.address

    @property
    def steps(self) -> int | None:
        """What its name says it stands for, if it is the name of a checkpoint."""
        found = STEP.fullmatch(self.name)
        return int(found[1]) if found else None

    @property
    def name(self) -> str:
        """The last part of its address, "" if that does not say it."""
        return self.prefix.rpartition("/")[2] or split(self.store.address)[1]

    def where(self, name: str) -> str:
        return self.store.where(self._full(name))

    def has(self, name: str) -> bool:
        return exists(self.store, self._full(name))

    def get(self, name: str) -> bytes:
        """A marker or an index (`get_small`)."""
        return get_small(self.store, self._full(name), MOST)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        self.store.read_into(self._full(name), offset, buffer)

    def create(self, name: str, content: bytes) -> bool:
        """See `create_alone`: a run, which is not alone, is refused on stores without conditional writes."""
        return create_alone(self.store, self._full(name), content)

    def put(self, name: str, content: bytes) -> None:
        self.store.put(self._full(name), content)

    def writer(self, name: str) -> Writer:
        return self.store.writer(self._full(name))

    def delete(self, names: Iterable[str]) -> None:
        self.store.delete([self._full(name) for name in names])

    def sizes(self) -> dict[str, int]:
        """Bytes of all that lies in it, by name."""
        prefix = f"{self.prefix}/" if self.prefix else ""
        return {entry.name.removeprefix(prefix): entry.bytes for entry in self.store.list(prefix)}

    def lacking(self, wanted: Mapping[str, int]) -> tuple[str, int | None] | None:
        """The first of `wanted` (bytes by name) that is not there in its size, and the size that it has (None: it is
        not there). What a listing lacks is asked for by its name: some stores list new objects a while later."""
        sizes = self.sizes()
        for name, size in wanted.items():
            if name not in sizes:
                with contextlib.suppress(FileNotFoundError):
                    sizes[name] = self.store.stat(self._full(name)).bytes
            if sizes.get(name) != size:
                return name, sizes.get(name)
        return None

    def _full(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name


def name_of(steps: int) -> str:
    """What the checkpoint of so many committed steps is called."""
    return f"step-{steps:08d}"
