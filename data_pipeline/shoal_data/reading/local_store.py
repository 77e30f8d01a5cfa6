"""A corpus in a folder on this machine: shards are memory-mapped, and each block is checked when it is first read."""

from __future__ import annotations

import contextlib
import itertools
import mmap
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

from shoal_core.errors import StoreError, UserError
from shoal_data.files import sha256_file
from shoal_data.reading.block_cache import Stalls
from shoal_data.reading.blocks import FirstTouch, first_blocks
from shoal_data.reading.manifest import BLOCK_BYTES, Manifest

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
    """A corpus folder on this machine; every shard is mapped when it is first read.

    A block is read once to check it before any of its token values is given out, so that a damaged file ends the work
    and is not trained on."""

    at_once = 1  # a disk reads one file after the other fastest
    ahead = 0

    def __init__(self, folder: Path) -> None:
        self.folder, self.address = folder, str(folder)
        self.stalls = Stalls()  # of the system's page cache nobody knows
        self._manifest: Manifest | None = None
        self._mapped = _Mapped({}, 0)
        self._touch: FirstTouch | None = None
        self._lock = threading.Lock()

    def attach(self, manifest: Manifest) -> None:
        """Serve the shards of `manifest`.

        Raises:
            UserError: the manifest names no checksums of blocks.
        """
        self._first_block = first_blocks(manifest, self.address)
        self._manifest, self._mapped, self._touch = manifest, _Mapped({}, len(manifest.shards)), None

    def where(self, name: str) -> str:
        """The path of a file in the corpus folder."""
        return str(self.folder / name)

    def remedy(self, name: str) -> str:
        """How a file comes back: from the job that wrote it, where its folder still holds that job's records."""
        if (self.folder / "job" / "job.json").is_file():
            return "delete this file and run the same `shoal data tokenize` again, which writes it anew"
        return "copy this file again from where the corpus was built"

    def no_corpus(self) -> str:
        """What to do about a folder without a manifest."""
        if (self.folder / "job").is_dir():
            return "the job that builds it has not finished: run the same `shoal data tokenize` again"
        return "give the folder that `shoal data tokenize --out` wrote"

    def small(self, name: str) -> bytes:
        """The whole of a file in the corpus folder.

        Raises:
            FileNotFoundError: there is none.
            StoreError: it cannot be read.
        """
        with _reading(self.where(name)):
            return (self.folder / name).read_bytes()

    def digest(self, name: str) -> str:
        """Hex SHA-256 of a file; raises as `small`."""
        with _reading(self.where(name)):
            return sha256_file(self.folder / name)

    def sizes(self, manifest: Manifest) -> dict[str, int]:
        """Bytes of each file of a shard that is there.

        Raises:
            StoreError: one cannot be looked at.
        """
        found = {}
        for name in (one.decode() for one in manifest.shards.file.tolist()):
            with contextlib.suppress(FileNotFoundError), _reading(self.where(name)):
                found[name] = (self.folder / name).stat().st_size
        return found

    def shard(self, index: int) -> memoryview:
        """The whole file of a shard, mapped; raises as `tokens`."""
        path = self._checked(index)
        self._refuse(self._touched().check_whole(index, self._block))
        with _reading(str(path)), open(path, "rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def tokens(self, shard: int, first: int, last: int) -> Tokens:
        """A view into the mapped shard.

        Raises:
            UserError: the file is missing or is not what the manifest says.
        """
        self._first_touch(np.array([shard]), np.array([first]), last - first)
        values = self._mapped.values.get(shard)
        return (self._map([shard]).values[shard] if values is None else values)[first:last]

    def gather(self, shard: Ints, first: Ints, width: int) -> Tokens:
        """Copies of stretches, made by one indexing call: a loop in Python costs more than the copying.

        Raises:
            UserError: a file is missing or is not what the manifest says.
        """
        self._first_touch(shard, first, width)
        mapped = self._mapped
        base = mapped.base[shard]
        if base.min(initial=0) < 0:
            mapped = self._map(shard.tolist())
            base = mapped.base[shard]
        return mapped.rows(width)[base + first] if len(shard) else np.empty((0, width), self._dtype())

    def _first_touch(self, shard: Ints, first: Ints, width: int) -> None:
        """Check the blocks of stretches (as `gather` is asked for them) that are read for the first time.

        Raises:
            UserError: a file is missing, or a block is damaged.
        """
        if len(shard) and width:
            self._refuse(self._touched().check(shard, first, width, self._block))

    def _refuse(self, damaged: tuple[int, int] | None) -> None:
        if damaged is not None:
            assert self._manifest is not None
            shard, block = damaged
            name = self._manifest.shards.file[shard].decode()
            raise UserError(
                f"{self.where(name)}: block {block} (1 MiB from byte {block * BLOCK_BYTES:,} on) does not match its "
                "CRC-32 in the corpus's file `blocks`",
                self.remedy(name),
            )

    def _touched(self) -> FirstTouch:
        """What is checked already, from the corpus's file `blocks`, which is read at the first need."""
        with self._lock:
            if self._touch is None:
                assert self._manifest is not None
                name = self._manifest.files["blocks"]["file"]
                where, remedy = self.where(name), self.remedy(name)
                try:
                    checksums = self.small(name)
                except FileNotFoundError as error:
                    raise UserError(f"{where}: missing", remedy) from error
                self._touch = FirstTouch(self._manifest, self._first_block, checksums, where, remedy)
            return self._touch

    def _block(self, shard: int, block: int) -> bytes:
        """A block of a shard's file. Read, not mapped: what a disk cannot give is then an error, not a signal."""
        path = self._checked(shard)
        with _reading(str(path)), open(path, "rb") as file:
            file.seek(block * BLOCK_BYTES)
            return file.read(BLOCK_BYTES)

    def _map(self, shards: Iterable[int]) -> _Mapped:
        """What is mapped, with each of `shards` among it."""
        assert self._manifest is not None
        table = self._manifest.shards
        with self._lock:
            values = dict(self._mapped.values) if len(self._mapped.values) < _MOST_MAPPED else {}
            for shard in shards:
                if shard not in values:
                    path, offset, size = self._checked(shard), int(table.offset[shard]), int(table.tokens[shard])
                    with _reading(str(path)):
                        mapped = np.memmap(path, dtype=self._dtype(), mode="r", offset=offset, shape=(size,))
                    values[shard] = mapped.view(np.ndarray)
            self._mapped = _Mapped(values, len(table))
            return self._mapped

    def _checked(self, shard: int) -> Path:
        """The path of a shard that is there with its size."""
        assert self._manifest is not None
        name, wanted = self._manifest.shards.file[shard].decode(), int(self._manifest.shards.size[shard])
        path = self.folder / name
        try:
            with _reading(str(path)):
                size = path.stat().st_size
        except FileNotFoundError as error:
            raise UserError(f"{path}: this shard is missing", self.remedy(name)) from error
        if size != wanted:
            raise UserError(f"{path}: {size} bytes, the manifest says {wanted}", self.remedy(name))
        return path

    def _dtype(self) -> np.dtype[Any]:
        assert self._manifest is not None
        return np.dtype(self._manifest.dtype).newbyteorder("<")

    def prefetch(self, shard: int, first: int, last: int) -> int:
        """Nothing: the page cache does it."""
        return 0


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    """The system's errors about `path` as the user's: no file stays FileNotFoundError, all else is StoreError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except NotADirectoryError as error:
        raise FileNotFoundError(path) from error
    except OSError as error:
        raise StoreError(
            f"{path}: {error.strerror or error}", "check the disk and the permissions of this file"
        ) from error
