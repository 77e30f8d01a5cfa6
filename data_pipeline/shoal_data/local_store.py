"""Shards of a folder on this machine, memory-mapped."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

from shoal_data.manifest import Manifest
from shoal_data.verify import check_shard

__all__ = ["LocalStore"]

Tokens = npt.NDArray[np.unsignedinteger]
Ints = npt.NDArray[np.int64]

#: mapped shards before all are given up and mapped anew as they are read: Linux allows a process 65,530 mappings
_MOST_MAPPED = 1 << 14


class _Mapped:
    """Shards that are mapped; never changed, so that threads may share it.

    All lie in one address space, so one strided view that begins at the lowest of them spans them all.

    Attributes:
        values: token values by shard.
        base: (shards,) where each begins in that view; -1 if it is not mapped.
    """

    def __init__(self, values: dict[int, Tokens], shards: int) -> None:
        self.values = values
        self.base = np.full(shards, -1, np.int64)
        self._rows: dict[int, Tokens] = {}
        if values:
            address = np.array([one.ctypes.data for one in values.values()])
            self._lowest = next(itertools.islice(values.values(), int(address.argmin()), None))
            size = self._lowest.itemsize
            self.base[list(values)] = (address - address.min()) // size
            ends = address + size * np.array([len(one) for one in values.values()])
            self._span = int(ends.max() - address.min()) // size

    def rows(self, width: int) -> Tokens:
        """The view as overlapping rows: row i is the `width` token values from place i on. (span - width + 1, width).

        Rows outside of shards must not be asked for."""
        if width not in self._rows:
            shape, stride = (max(0, self._span - width + 1), width), self._lowest.itemsize
            self._rows[width] = as_strided(self._lowest, shape, (stride, stride), writeable=False)
        return self._rows[width]


class LocalStore:
    """A corpus folder on this machine; every shard is mapped when it is first read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._manifest: Manifest | None = None
        self._mapped = _Mapped({}, 0)
        self._lock = threading.Lock()

    def attach(self, manifest: Manifest) -> None:
        """Serve the shards of `manifest`."""
        self._manifest, self._mapped = manifest, _Mapped({}, len(manifest.shards))

    def small(self, name: str) -> bytes:
        """The whole of a file in the corpus folder."""
        return (self.folder / name).read_bytes()

    def tokens(self, shard: int, first: int, last: int) -> Tokens:
        """A view into the mapped shard.

        Raises:
            InputError: the file is missing or has another size than the manifest says.
        """
        values = self._mapped.values.get(shard)
        return (self._map([shard]).values[shard] if values is None else values)[first:last]

    def gather(self, shard: Ints, first: Ints, width: int) -> Tokens:
        """Copies of stretches, made by one indexing call: a loop in Python costs more than the copying.

        Raises:
            InputError: a file is missing or has another size than the manifest says.
        """
        mapped = self._mapped
        base = mapped.base[shard]
        if base.min(initial=0) < 0:
            mapped = self._map(shard.tolist())
            base = mapped.base[shard]
        return mapped.rows(width)[base + first] if len(shard) else np.empty((0, width), self._dtype())

    def _map(self, shards: Iterable[int]) -> _Mapped:
        """What is mapped, with each of `shards` among it."""
        assert self._manifest is not None
        table = self._manifest.shards
        with self._lock:
            values = dict(self._mapped.values) if len(self._mapped.values) < _MOST_MAPPED else {}
            for shard in shards:
                if shard not in values:
                    path, size = check_shard(self.folder, table, shard), int(table.tokens[shard])
                    offset = int(table.offset[shard])
                    mapped = np.memmap(path, dtype=self._dtype(), mode="r", offset=offset, shape=(size,))
                    values[shard] = mapped.view(np.ndarray)
            self._mapped = _Mapped(values, len(table))
            return self._mapped

    def _dtype(self) -> np.dtype[Any]:
        assert self._manifest is not None
        return np.dtype(self._manifest.dtype).newbyteorder("<")

    def prefetch(self, shard: int, first: int, last: int) -> None:
        """Nothing: the page cache does it."""
