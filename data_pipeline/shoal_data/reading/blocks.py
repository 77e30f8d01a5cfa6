"""Blocks of shards: `BLOCK_BYTES` each, with a CRC-32 of its own in the corpus's file `blocks`, so that ranges can be
checked. They are numbered through all shards, in the order of the shard table."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal_core.errors import UserError
from shoal_data.reading.manifest import BLOCK_BYTES, Manifest

__all__ = ["FirstTouch", "first_blocks"]

Ints = npt.NDArray[np.int64]


def first_blocks(manifest: Manifest, address: str) -> Ints:
    """The number of each shard's first block, and how many there are in all: (shards + 1,).

    Raises:
        UserError: the manifest of the corpus at `address` names no checksums of blocks.
    """
    if "blocks" not in manifest.files:
        raise UserError(f"{address}: files.blocks is missing", "build the corpus with `shoal data tokenize`")
    return np.concatenate(([0], np.cumsum(-(-manifest.shards.size // BLOCK_BYTES))))


class FirstTouch:
    """Checks each block of a corpus once, when it is first read; threads may share it.

    Args:
        manifest: of the corpus.
        first: what `first_blocks` gives for it.
        checksums: the content of its file `blocks`.
        where: what to call that file in errors.
        remedy: what mends it.

    Raises:
        UserError: `checksums` is not what the manifest says.
    """

    def __init__(self, manifest: Manifest, first: Ints, checksums: bytes, where: str, remedy: str) -> None:
        if hashlib.sha256(checksums).hexdigest() != manifest.files["blocks"]["sha256"]:
            raise UserError(f"{where}: its SHA-256 is not the manifest's", remedy)
        if len(checksums) != 4 * int(first[-1]):
            raise UserError(f"{where}: {len(checksums)} bytes, for {int(first[-1])} blocks of shards", remedy)
        self._offset, self._first = manifest.shards.offset, first
        self._itemsize = np.dtype(manifest.dtype).itemsize
        self._checksums = np.frombuffer(checksums, "<u4")
        self._untouched = np.ones(len(self._checksums), np.bool_)
        self._done = False

    def check(self, shard: Ints, first: Ints, width: int, block: Callable[[int, int], bytes]) -> tuple[int, int] | None:
        """Check what `width` token values from `first` on of each `shard` (both (n,)) touch for the first time.

        Args:
            block: reads a block: of a shard, and which one in it.

        Returns:
            The first block that is damaged, as `block` is given it; None if none is.
        """
        if self._done:
            return None
        begin = self._offset[shard] + first * self._itemsize
        low = self._first[shard] + begin // BLOCK_BYTES
        high = self._first[shard] + (begin + width * self._itemsize - 1) // BLOCK_BYTES
        touched = low
        if (high > low).any():
            touched = np.minimum(low[:, None] + np.arange(int((high - low).max()) + 1), high[:, None])
        untouched = self._untouched[touched]
        if not untouched.any():
            return None
        return self._check(np.unique(touched[untouched]), block)

    def check_whole(self, shard: int, block: Callable[[int, int], bytes]) -> tuple[int, int] | None:
        """The same for all blocks of a shard."""
        numbers = np.arange(self._first[shard], self._first[shard + 1])
        return self._check(numbers[self._untouched[numbers]], block)

    def _check(self, numbers: npt.NDArray[Any], block: Callable[[int, int], bytes]) -> tuple[int, int] | None:
        shards = np.searchsorted(self._first, numbers, side="right") - 1
        for number, shard in zip(numbers.tolist(), shards.tolist(), strict=True):
            place = shard, number - int(self._first[shard])
            if zlib.crc32(block(*place)) != self._checksums[number]:
                return place
            self._untouched[number] = False
        self._done = not self._untouched.any()
        return None
