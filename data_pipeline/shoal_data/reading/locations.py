"""Where the sample at a position of the global order lies: shard and first token. Pure; knows no files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shoal_core.errors import UserError
from shoal_data.reading.order import SampleOrder

__all__ = ["Location", "Locator", "Stream"]

Ints = npt.NDArray[np.int64]

#: positions worked out together for a regular reader: NumPy's fixed cost a call is then shared by so many samples
_TOGETHER = 4096


class Stream(NamedTuple):
    """Shards that samples are cut from, on end: their rows of the shard table (k,), and the first token of each in
    the stream and the total (k + 1,)."""

    shards: Ints
    starts: Ints


class Location(NamedTuple):
    """Where samples begin; each (n,).

    Attributes:
        stream: which stream.
        turn: the shard's position in the stream.
        shard: the shard's row of the shard table.
        first: token of the shard.
        room: tokens of the shard from there on.
    """

    stream: Ints
    turn: Ints
    shard: Ints
    first: Ints
    room: Ints


class Locator:
    """Position -> location, for samples of `seq_len` tokens and the one before them.

    A reader that goes on regularly, each batch its last one moved by the same step (which is every rank of every world
    size), finds its coming batches worked out in one go from the third on. This changes no answer.

    Args:
        streams: one, or one for each source of a mixture.
        order: which sample of which stream stands at a position.
    """

    def __init__(self, streams: Sequence[Stream], order: SampleOrder, seq_len: int) -> None:
        self._streams, self._order, self._seq_len = streams, order, seq_len
        self._last, self._step = np.zeros(0, np.int64), 0
        # Batches ahead (k, n), their locations (5, k, n), and which of them comes next.
        self._ahead: tuple[Ints, Ints, int] | None = None

    def __call__(self, position: Ints) -> Location:
        """Locations of the samples at `position` (n,).

        Raises:
            UserError: a position is negative.
        """
        last, self._last = self._last, position
        if self._ahead is not None:
            batches, found, number = self._ahead
            if number < len(batches) and position.shape == batches[0].shape and (batches[number] == position).all():
                self._ahead = batches, found, number + 1
                return Location(*found[:, number])
        self._ahead = None
        step = int(position[0] - last[0]) if len(position) and len(position) == len(last) else 0
        regular, self._step = 0 < step == self._step, step
        count = _TOGETHER // len(position) if regular else 0
        if count < 2 or not np.array_equal(last + step, position):
            return self.locate(position)
        batches = position + step * np.arange(count, dtype=np.int64)[:, None]
        found = np.stack(self.locate(batches.reshape(-1))).reshape(5, count, len(position))
        self._ahead = batches, found, 1
        return Location(*found[:, 0])

    def locate(self, position: Ints) -> Location:
        """The same, and nothing is worked out ahead."""
        if position.size and position.min() < 0:
            raise UserError(
                f"position {int(position.min())}: it is negative", "positions in the global order start at 0"
            )
        stream, sample = self._order(position)
        first = sample * self._seq_len
        turn, shard, room = np.empty_like(first), np.empty_like(first), np.empty_like(first)
        for number, (shards, starts) in enumerate(self._streams):
            mine = np.flatnonzero(stream == number) if len(self._streams) > 1 else slice(None)
            turn[mine] = np.searchsorted(starts, first[mine], side="right") - 1
            shard[mine] = shards[turn[mine]]
            room[mine] = starts[turn[mine] + 1] - first[mine]
            first[mine] -= starts[turn[mine]]
        return Location(stream, turn, shard, first, room)
