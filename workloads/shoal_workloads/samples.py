"""Samples of a tokenized corpus as tensors."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch

from shoal_core.store import local_folder

__all__ = ["Samples"]


class Samples:
    """Positions in the global order of `corpus` -> tokens, and bytes of text. It is opened with the first of them, and
    so is `shoal_data` imported.

    Attributes:
        far: whether reading may have to wait for a store: then what is expected is asked for ahead.
        waits: batches that were not there when they were wanted.
        waited: seconds until they were.
    """

    def __init__(self, corpus: str, seq_len: int, seed: int, device: str) -> None:
        self._corpus, self._seq_len, self._seed, self._device = corpus, seq_len, seed, device
        self.far = local_folder(corpus) is None
        self.waits, self.waited = 0, 0.0
        self._coming: Iterator[Sequence[int]] = iter(())
        self._asked: dict[int, int] = {}  # blocks of each batch that is asked for and not read, by its first position
        self._lock = threading.Lock()  # both directions of a pipeline read

    def expect(self, coming: Iterable[Sequence[int]]) -> None:
        """From now on batches are read in this order, as far as anybody knows: in place of what was expected before. As
        much as the reader has room for is asked for now, the rest as these are read. What is not to be had shows when
        it is read, and not before."""
        if self.far:
            with self._lock:
                self._coming, self._asked = iter(coming), {}
                self._ask()

    def tokens(self, ids: Sequence[int]) -> torch.Tensor:
        """(n, seq_len + 1) int64. To a GPU they go without the host's waiting for what it computes."""
        found = torch.empty(len(ids), self._seq_len + 1, dtype=torch.int64, pin_memory=self._device == "cuda")
        with self._lock:
            stalls = self._reader.corpus.store.stalls
            waits, seconds = stalls.waits, stalls.seconds
            self._reader.tokens(ids, out=found.numpy())
            self.waits += stalls.waits > waits
            self.waited += stalls.seconds - seconds
            self._asked.pop(ids[0], None)
            self._ask()
        return found.to(self._device, non_blocking=True)

    def lengths(self, ids: Sequence[int]) -> list[int]:
        """Bytes of text that the predicted tokens of each sample stand for."""
        return [int(length) for length in self._reader.lengths(ids)]

    def _ask(self) -> None:
        """Ask for what comes, up to what the store keeps until it is read."""
        while sum(self._asked.values()) < self._reader.corpus.store.ahead:
            if (ids := next(self._coming, None)) is None:
                return
            self._asked[ids[0]] = self._reader.prefetch(ids)

    @cached_property
    def _reader(self) -> Any:
        from shoal_data.reading.reader import Corpus

        return Corpus.open(self._corpus).reader(self._seq_len, self._seed)
