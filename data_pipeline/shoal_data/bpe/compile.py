"""Compile the loops of tokenizer training ahead of their first use: `python -m shoal_data.bpe.compile`.

Numba keeps what it compiles beside the sources (or in the user's cache folder), so this pays some 20 seconds once an
installation instead of once in the first training.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from shoal_data.bpe.merges import learn_merges
from shoal_data.bpe.unicode import character_classes
from shoal_data.bpe.wordcount import WordCounter

__all__ = ["compile_loops"]


def compile_loops() -> None:
    """Run every compiled loop once on a few bytes."""
    character_classes()
    counter = WordCounter("deepseek-v3")
    counter.add_text(pa.array(["to be or not to be"], pa.large_string()))
    words, counts, _ = counter.items()
    counter.add_counts(words, counts)
    alphabet = [bytes([byte]) for byte in range(256)]
    learn_merges(words, counts, alphabet, np.arange(256, dtype=np.int32), 260, 0)


if __name__ == "__main__":
    compile_loops()
