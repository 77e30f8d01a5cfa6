"""The merge loop of byte-level BPE over word counts: the same merges, in the same order, as `tokenizers`' BpeTrainer.

The same in its corners, too: ties go to the pair with the smaller ids; a pair whose text is a token already takes that
token's id; in a run such as `aaa` the counts drift just as there; where one pair waits in the queue twice, each entry
merges the words it knows. Counts are 64-bit, where the original's overflow at 2^31.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal_core.errors import UserError
from shoal_data.arrow import text_buffers
from shoal_data.bpe.merge_loop import LONGEST, merge_loop, spread_words

__all__ = ["Merges", "learn_merges"]


@dataclass(frozen=True)
class Merges:
    """What training found.

    Attributes:
        tokens: bytes of each token by id; special tokens are theirs.
        pairs: (n, 2) ids merged, by rank.
        counts: (n,) how often each pair was merged: so many tokens less.
    """

    tokens: list[bytes]
    pairs: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]


def learn_merges(
    words: pa.LargeBinaryArray,
    counts: npt.NDArray[np.int64],
    alphabet: list[bytes],
    byte_ids: npt.NDArray[np.int32],
    vocab_size: int,
    min_frequency: int,
) -> Merges:
    """Merge the most frequent pair until the vocabulary is full.

    Args:
        words: distinct pre-tokens (n,).
        counts: occurrences of each, (n,).
        alphabet: the tokens there are before the first merge, by id; empty bytes for one that no text can spell.
        byte_ids: id of each byte, (256,).
        vocab_size: stop at this many tokens.
        min_frequency: stop before pairs that occur less often.
    """
    offsets, values = text_buffers(words)
    size = int(offsets[-1] - offsets[0]) + len(words) + 1
    if size >= np.iinfo(np.int32).max or int(np.diff(offsets).max(initial=0)) >= LONGEST:
        raise UserError(
            f"{len(words):,} distinct words of {size:,} bytes are more than one merge loop holds",
            "raise --min-word-count, so that rare words are left out",
        )
    spelled = np.frombuffer(b"".join(alphabet), np.uint8).copy()
    spelled_starts = np.concatenate(([0], np.cumsum([len(token) for token in alphabet]))).astype(np.int64)
    text = spread_words(values, offsets, byte_ids)
    often = np.array(counts, np.int64)  # writable whoever made it, so that the loop is compiled once
    pairs, merged_counts, pool, pool_starts = merge_loop(
        text, often, spelled, spelled_starts, vocab_size, min_frequency
    )
    content = pool.tobytes()
    bounds = pool_starts.tolist()
    tokens = [content[first:last] for first, last in itertools.pairwise(bounds)]
    return Merges(tokens, *_last_of_each(pairs, merged_counts))


def _last_of_each(
    pairs: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """A pair that was merged twice keeps its later rank, as in the original's map from pair to rank."""
    if len(pairs) == 0:
        return pairs.reshape(0, 2), counts
    _, last = np.unique(pairs[::-1], axis=0, return_index=True)
    keep = np.sort(len(pairs) - 1 - last)
    return pairs[keep], counts[keep]
