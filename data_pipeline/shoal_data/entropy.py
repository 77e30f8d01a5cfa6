"""How far counting alone gets: the entropy of single tokens, which a model that has learned anything is well below."""

from __future__ import annotations

import numpy as np

from shoal_data.reader import Corpus
from shoal_data.store import LocalStore

__all__ = ["unigram_entropy"]

#: tokens drawn together where each stretch costs a block of 1 MiB or two: 64 of them, not 4,096, are then fetched
_STRETCH_ON_S3 = 1 << 16


def unigram_entropy(corpus: Corpus, most: int = 1 << 22) -> float:
    """Nats a token of a corpus's token frequencies, -sum p ln p, from at most `most` tokens drawn at random."""
    stretch = 1024 if isinstance(corpus.store, LocalStore) else _STRETCH_ON_S3
    length = min(stretch, corpus.tokens - 1)
    reader = corpus.reader(length, seed=0)
    counts = np.zeros(corpus.vocab_size, dtype=np.int64)
    for first in range(0, min(reader.samples, most // length), 64):
        tokens, _ = reader.read(range(first, min(first + 64, reader.samples)))
        counts += np.bincount(tokens[:, 1:].ravel(), minlength=corpus.vocab_size)
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())
