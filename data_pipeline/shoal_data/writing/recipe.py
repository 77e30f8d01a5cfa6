"""What DeepSeek-V3's data recipe does to documents on their way into the stream, over whole arrays.

Order shuffled by seed; fill-in-the-middle (PSM: `begin pre hole suf end mid`, at document level, before packing);
random splitting of tokens that join punctuation and line breaks, against token-boundary bias (report, section 4.1).
Everything random is a pure function of (seed, part), so a part that is done again comes out the same.
"""

from __future__ import annotations

import functools
import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal_data.arrow import text_buffers
from shoal_data.tokenizer.encoder import Encoded, Encoder

__all__ = ["cut_for_fim", "draws", "fim_order", "split_tokens", "splits_of"]


@dataclass(frozen=True)
class Splits:
    """How tokens that join punctuation and line breaks fall apart.

    Attributes:
        length: ids each token becomes, (vocab_size,); 0 for tokens that do not split.
        start: where they begin in `ids`, (vocab_size,).
        ids: the replacements on end.
    """

    length: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    ids: npt.NDArray[np.uint32]


def draws(count: int, *key: int | str) -> npt.NDArray[np.float64]:
    """`count` uniform numbers in [0, 1) that depend on `key` alone (Philox counters, whose stream NumPy fixes)."""
    name = "\0".join(map(str, key)).encode()
    seed = int.from_bytes(hashlib.blake2b(name, digest_size=16, person=b"shoal-recipe").digest(), "little")
    raw = np.random.Philox(key=seed).random_raw(count)
    return np.asarray(raw >> np.uint64(11), np.float64) * 2.0**-53


def cut_for_fim(
    text: pa.LargeStringArray, chosen: npt.NDArray[np.bool_], first: npt.NDArray[np.float64], second: npt.NDArray
) -> pa.LargeStringArray:
    """Each document as three pieces (prefix, middle, suffix) over the same bytes: (3n,).

    Documents that are not `chosen` are all prefix. `first`, `second`: uniform draws for the two cuts, which fall
    between characters.
    """
    offsets, values = text_buffers(text)
    begin, end = offsets[:-1], offsets[1:]
    size = end - begin
    cuts = np.sort(np.stack([begin + (draw * (size + 1)).astype(np.int64) for draw in (first, second)]), axis=0)
    for _ in range(3):  # a character is at most four bytes long
        inside = (cuts < end) & ((values[np.minimum(cuts, len(values) - 1)] & 0xC0) == 0x80)
        cuts -= inside
    bounds = np.empty(3 * len(text) + 1, np.int64)
    bounds[0:-1:3] = begin
    bounds[1::3] = np.where(chosen, cuts[0], end)
    bounds[2::3] = np.where(chosen, cuts[1], end)
    bounds[-1] = end[-1] if len(end) else 0
    return pa.LargeStringArray.from_buffers(len(bounds) - 1, pa.py_buffer(bounds), text.buffers()[2])


def fim_order(stream: Encoded, chosen: npt.NDArray[np.bool_], sentinels: Sequence[int]) -> Encoded:
    """The pieces of `cut_for_fim`, encoded, as documents in PSM order with the (begin, hole, end) sentinels."""
    documents = len(chosen)
    pieces = pa.LargeListArray.from_arrays(pa.array(stream.offsets), pa.array(stream.ids))
    order = (3 * np.arange(documents)[:, None] + np.array([0, 2, 1])).reshape(-1)
    moved = pieces.take(pa.array(order))
    bounds = np.asarray(moved.offsets)
    ids = np.asarray(moved.values)[bounds[0] : bounds[-1]]
    bounds = bounds - bounds[0]
    where = bounds[:-1].reshape(documents, 3)[chosen].reshape(-1)
    ids = np.insert(ids, where, np.tile(np.asarray(sentinels, np.uint32), int(chosen.sum())))
    added = np.concatenate(([0], np.cumsum(3 * chosen)))
    return Encoded(bounds[::3] + added, ids)


@functools.lru_cache(maxsize=1)
def splits_of(encoder: Encoder) -> Splits:
    """The splits of a vocabulary: tokens of punctuation or symbols (a space may lead) and then line breaks."""
    tokens = encoder.tokens
    length, start = np.zeros(len(tokens), np.int64), np.zeros(len(tokens), np.int64)
    joined: list[int] = []
    halves: list[str] = []
    for token, content in enumerate(tokens):
        text = content.decode("utf-8", errors="replace")
        marks = text.rstrip("\r\n")
        bare = marks.removeprefix(" ")
        if len(marks) < len(text) and bare and all(unicodedata.category(one)[0] in "PS" for one in bare):
            joined.append(token)
            halves += [marks, text[len(marks) :]]
    if not joined:
        return Splits(length, start, np.zeros(0, np.uint32))
    found = encoder.encode(pa.array(halves, pa.large_string()))
    bounds = found.offsets[::2]
    length[joined], start[joined] = np.diff(bounds), bounds[:-1]
    return Splits(length, start, found.ids)


def split_tokens(stream: Encoded, splits: Splits, rate: float, *key: int | str) -> Encoded:
    """Split a random share `rate` of the tokens that can be split; the text they stand for stays the same."""
    can = np.flatnonzero(splits.length[stream.ids])
    hit = can[draws(len(can), *key) < rate]
    repeat = np.ones(len(stream.ids), np.int64)
    repeat[hit] = splits.length[stream.ids[hit]]
    ends = np.concatenate(([0], np.cumsum(repeat)))
    ids = np.repeat(stream.ids, repeat)
    width = repeat[hit]
    step = np.arange(int(width.sum())) - np.repeat(np.cumsum(width) - width, width)
    ids[np.repeat(ends[hit], width) + step] = splits.ids[np.repeat(splits.start[stream.ids[hit]], width) + step]
    return Encoded(ends[stream.offsets], ids)
