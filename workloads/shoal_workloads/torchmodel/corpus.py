"""A Shoal corpus as a dataset of a user's model: in its own order, the one that pre-training reads it in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import torch

from shoal_workloads.samples import Samples

__all__ = ["CorpusTokens"]


class CorpusTokens:
    """What `shoal data tokenize` wrote at `path`, in samples of `seq_len` + 1 tokens, int64: what is read, and, one
    further, what comes next. `seed`: of its order, which keeps the weights of a mixture at every prefix.

    Raises:
        UserError: when it is first asked: there is no such corpus, or it is damaged.
    """

    ordered = True
    """It is indexed by the position in the global order, of any epoch."""

    def __init__(self, path: str, seq_len: int, seed: int = 0) -> None:
        self._path, self._seq_len, self._seed = path, seq_len, seed
        self._samples = Samples(path, seq_len, seed, "cpu")

    def __len__(self) -> int:
        """Samples of an epoch."""
        found: int = self._corpus.samples(self._seq_len)
        return found

    def __getitem__(self, position: int) -> torch.Tensor:
        return self._samples.tokens([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[torch.Tensor]:
        return list(self._samples.tokens(positions))

    def expect(self, coming: Iterable[Sequence[int]]) -> None:
        """See `Samples.expect`: of a corpus on a store what comes is asked for ahead."""
        self._samples.expect(coming)

    @property
    def vocab_size(self) -> int:
        """Of its tokenizer."""
        return int(self._corpus.vocab_size)

    @property
    def fingerprint(self) -> str:
        """Its manifest's digest, and how it is read."""
        return f"{self._corpus.digest} in {self._seq_len}, order {self._seed}"

    @cached_property
    def _corpus(self) -> Any:
        from shoal_data.reading.reader import Corpus

        return Corpus.open(self._path)
