"""Samples of a tokenized corpus as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch

__all__ = ["Samples"]


class Samples:
    """Positions in the global order of `corpus` -> tokens, and bytes of text. It is opened with the first of them, and
    so is `shoal_data` imported."""

    def __init__(self, corpus: str, seq_len: int, seed: int, device: str) -> None:
        self._corpus, self._seq_len, self._seed, self._device = corpus, seq_len, seed, device

    def tokens(self, ids: Sequence[int]) -> torch.Tensor:
        """(n, seq_len + 1) int64. To a GPU they go without the host's waiting for what it computes."""
        found = torch.empty(len(ids), self._seq_len + 1, dtype=torch.int64, pin_memory=self._device == "cuda")
        self._reader.tokens(ids, out=found.numpy())
        return found.to(self._device, non_blocking=True)

    def lengths(self, ids: Sequence[int]) -> list[int]:
        """Bytes of text that the predicted tokens of each sample stand for."""
        return [int(length) for length in self._reader.lengths(ids)]

    @cached_property
    def _reader(self) -> Any:
        from shoal_data.reading.reader import Corpus

        return Corpus.open(self._corpus).reader(self._seq_len, self._seed)
