"""The way in for programs that look into a corpus: `documents(Corpus.open(place))` gives documents and their tokens."""

from __future__ import annotations

from shoal_data.reading.inspection import documents

__all__ = ["documents"]
