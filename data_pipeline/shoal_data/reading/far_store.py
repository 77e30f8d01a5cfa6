"""A corpus on a store, its shards read by range into a bounded cache of memory.

Reads are made in blocks, each with a CRC-32 of its own in the corpus's file `blocks`. What fails or is cut short is
asked for again by the store; a block that does not match, here. A slow object slows its reader and no other.
"""

from __future__ import annotations

import hashlib
import os.path
import threading
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal_core.errors import StoreError, UserError
from shoal_core.store import Store
from shoal_data.reading.block_cache import BlockCache, Stalls
from shoal_data.reading.blocks import first_blocks
from shoal_data.reading.manifest import BLOCK_BYTES, Manifest

__all__ = ["FarStore"]

Tokens = npt.NDArray[np.unsignedinteger]
Ints = npt.NDArray[np.int64]

#: shards whose checksums are kept, 4 bytes for each MiB of them
_MOST_CHECKSUMS = 1 << 16
#: blocks of a shard that is read whole are asked for so far ahead
_AHEAD = 16
#: how often a block is asked for that does not match
_ATTEMPTS = 8
#: a block that comes with the same wrong content so often is wrong in the store, not spoilt on its way
_SAME = 3
#: bytes that are hashed together
_CHUNK_BYTES = 8 << 20


class FarStore:
    """A corpus on a store, read by range.

    Args:
        store: what holds its files.
        cache_bytes: memory for blocks; the least recently used go first.
        wait: called with seconds before a block is asked for again (tests pass their own).

    Attributes:
        ahead: blocks that may be asked for before they are read. A third of the cache, since as many that were read
            meanwhile and as many that are asked for after them are younger than the oldest of them.
    """

    at_once = 8

    def __init__(self, store: Store, cache_bytes: int = 256 << 20, wait: Callable[[float], None] = time.sleep) -> None:
        self._store, self._wait = store, wait
        self.address, self.stalls = store.address.partition("?")[0].rstrip("/"), Stalls()
        self._blocks = BlockCache(self._read_block, max(4, cache_bytes // BLOCK_BYTES), self.stalls)
        self.ahead = self._blocks.room // 3
        self._checksums: dict[int, bytes] = {}
        self._lock = threading.Lock()
        self._manifest: Manifest | None = None

    def attach(self, manifest: Manifest) -> None:
        """Serve the shards of `manifest`.

        Raises:
            UserError: the manifest names no checksums of blocks.
        """
        self._first_block = first_blocks(manifest, self.address)
        self._manifest = manifest

    def where(self, name: str) -> str:
        """The URL of a file of the corpus."""
        return self._store.where(name)

    def remedy(self, name: str) -> str:
        """How an object comes back: from the folder that was uploaded."""
        what = "shard" if name.endswith(".arrow") else "file"
        return f"upload this {what} again from the folder where `shoal data verify` finds it as written"

    def no_corpus(self) -> str:
        """What to do about an address without a manifest."""
        return "check the address, or upload the whole folder of a finished corpus there"

    def small(self, name: str) -> bytes:
        """The whole of an object.

        Raises:
            FileNotFoundError: there is none.
            StoreError: it is not to be had.
        """
        return self._store.get(name)

    def digest(self, name: str) -> str:
        """Hex SHA-256 of an object; raises as `small`."""
        digest, size = hashlib.sha256(), self._store.stat(name).bytes
        for first in range(0, size, _CHUNK_BYTES):
            try:
                digest.update(self._store.get(name, range(first, min(first + _CHUNK_BYTES, size))))
            except EOFError as error:
                raise StoreError(f"{self.where(name)}: it was replaced while it was read", "read it again") from error
        return digest.hexdigest()

    def sizes(self, manifest: Manifest) -> dict[str, int]:
        """Bytes of each shard's object that is there.

        Raises:
            StoreError: the store cannot be listed.
        """
        start = os.path.commonpath([name.decode() for name in manifest.shards.file.tolist()])
        return {entry.name: entry.bytes for entry in self._store.list(start)}

    def shard(self, index: int) -> memoryview:
        """The whole object of a shard, checked block by block; raises as `tokens`."""
        assert self._manifest is not None
        blocks = -(-int(self._manifest.shards.size[index]) // BLOCK_BYTES)
        ahead, parts = min(_AHEAD, self._blocks.room), []
        for block in range(blocks):
            for coming in range(block, min(block + ahead, blocks)):
                self._blocks.ask(index, coming)
            parts.append(self._blocks.wait_for(index, block))
        return memoryview(b"".join(parts))

    def tokens(self, shard: int, first: int, last: int) -> Tokens:
        """Token values from the blocks that hold them.

        Raises:
            UserError: an object is missing, cannot be had after all attempts, or is not what the manifest says.
        """
        begin, end, dtype = self._range(shard, first, last)
        parts = []
        for block in self._touched(shard, first, last):
            content = self._blocks.wait_for(shard, block)
            base = block * BLOCK_BYTES
            parts.append(content[max(0, begin - base) : end - base])
        return np.frombuffer(b"".join(parts), dtype)

    def gather(self, shard: Ints, first: Ints, width: int) -> Tokens:
        """Stretches of token values; their blocks are all asked for before the first is waited for.

        Raises:
            UserError: as `tokens`.
        """
        places = list(zip(shard.tolist(), first.tolist(), strict=True))
        assert self._manifest is not None
        found = np.empty((len(places), width), self._manifest.dtype)
        coming, ahead = iter(places), 0
        for row, (one, begin) in zip(found, places, strict=True):
            while ahead < self.ahead and (place := next(coming, None)) is not None:
                ahead += self.prefetch(*place, place[1] + width)
            row[:] = self.tokens(one, begin, begin + width)
            ahead -= len(self._touched(one, begin, begin + width))
        return found

    def prefetch(self, shard: int, first: int, last: int) -> int:
        """Ask for the blocks in the background, and say how many they are."""
        blocks = self._touched(shard, first, last)
        for block in blocks:
            self._blocks.ask(shard, block)
        return len(blocks)

    def _touched(self, shard: int, first: int, last: int) -> range:
        """The blocks of a shard that hold these token values."""
        begin, end, _ = self._range(shard, first, last)
        return range(begin // BLOCK_BYTES, (end - 1) // BLOCK_BYTES + 1)

    def _range(self, shard: int, first: int, last: int) -> tuple[int, int, np.dtype[Any]]:
        assert self._manifest is not None
        dtype = np.dtype(self._manifest.dtype).newbyteorder("<")
        offset = int(self._manifest.shards.offset[shard])
        return offset + first * dtype.itemsize, offset + last * dtype.itemsize, dtype

    def _read_block(self, shard: int, block: int) -> bytes:
        assert self._manifest is not None
        name, size = self._manifest.shards.file[shard].decode(), int(self._manifest.shards.size[shard])
        span = range(block * BLOCK_BYTES, min((block + 1) * BLOCK_BYTES, size))
        last, same = b"", 0
        for attempt in range(_ATTEMPTS):
            if attempt:
                with self._lock:
                    self.stalls.retries += 1
                self._wait(min(8.0, 0.05 * 2**attempt))
            listed = self._checksums_of(shard, anew=attempt > 0)
            content = self._part(name, span)
            if zlib.crc32(content) == int.from_bytes(listed[4 * block : 4 * block + 4], "little"):
                return content
            last, same = content, same + 1 if content == last else 1
            if same == _SAME:
                break
        raise UserError(
            f"{self.where(name)}: block {block} does not match its CRC-32 in the corpus's file `blocks`",
            self.remedy(name),
        )

    def _part(self, name: str, span: range) -> bytes:
        """Bytes of an object that must be there and so long."""
        try:
            return self._store.get(name, span)
        except FileNotFoundError as error:
            raise UserError(f"{self.where(name)}: missing", self.remedy(name)) from error
        except EOFError as error:
            raise UserError(f"{self.where(name)}: it has less than {span.stop} bytes", self.remedy(name)) from error

    def _checksums_of(self, shard: int, *, anew: bool) -> bytes:
        """CRC-32 of each block of a shard, four bytes each; asked for `anew` when they may be what was spoilt."""
        assert self._manifest is not None
        with self._lock:
            found = None if anew else self._checksums.get(shard)
        if found is None:
            first, last = (4 * int(self._first_block[at]) for at in (shard, shard + 1))
            found = self._part(self._manifest.files["blocks"]["file"], range(first, last))
            with self._lock:
                if len(self._checksums) >= _MOST_CHECKSUMS:
                    self._checksums.clear()
                self._checksums[shard] = found
        return found
