"""Samples of a tokenized corpus as tensors. `shoal_data` is imported when a corpus is opened, not before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["Samples"]


class Samples:
    """Positions in the global order -> token tensors and byte counts."""

    def __init__(self, corpus: str, seq_len: int, seed: int, device: str) -> None:
        from shoal_data.reading.reader import Corpus

        self._reader: Any = Corpus.open(corpus).reader(seq_len, seed)
        self._device = device

    def read(self, ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (n, seq_len+1) int64, and the bytes of text the target tokens stand for (n,) int64."""
        tokens, lengths = self._reader.read(ids)
        return torch.from_numpy(tokens.astype("int64")).to(self._device), torch.from_numpy(lengths.astype("int64"))
