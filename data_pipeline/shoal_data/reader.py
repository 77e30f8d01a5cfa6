"""The way in for programs that read a corpus: `Corpus.open(place).reader(seq_len, seed).read(positions)`."""

from __future__ import annotations

from shoal_data.reading.reader import Corpus, Reader

__all__ = ["Corpus", "Reader"]
