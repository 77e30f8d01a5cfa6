"""How far counting alone gets: the entropy of single tokens, which a model that has learned anything is well below."""

from __future__ import annotations

import numpy as np

from shoal_data.reading.reader import Corpus

__all__ = ["unigram_entropy"]

#: tokens drawn together
_STRETCH = 1 << 10
#: the same of a corpus that is not read whole: each stretch costs a block of 1 MiB or two, of which 64 are then read
_LONG_STRETCH = 1 << 16


def unigram_entropy(corpus: Corpus, most: int = 1 << 22) -> float:
    """Nats a token of a corpus's token frequencies, -sum p ln p, from at most `most` tokens drawn at random."""
    length = min(_STRETCH if corpus.tokens <= most else _LONG_STRETCH, corpus.tokens - 1)
    reader = corpus.reader(length, seed=0)
    counts = np.zeros(corpus.vocab_size, dtype=np.int64)
    for first in range(0, min(reader.samples, most // length), 64):
        tokens = reader.tokens(range(first, min(first + 64, reader.samples)))
        counts += np.bincount(tokens[:, 1:].ravel(), minlength=corpus.vocab_size)
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())
