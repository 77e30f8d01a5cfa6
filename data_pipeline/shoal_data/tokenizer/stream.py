"""Documents as token ids, and how the tokens of a vocabulary fall apart into smaller ones."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Splits", "Stream", "splits_of"]

Ids = npt.NDArray[np.uint32]
Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Stream:
    """Documents as token ids: document i is `ids[offsets[i]:offsets[i + 1]]`."""

    offsets: Offsets
    ids: Ids


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
    ids: Ids


def splits_of(tokens: Sequence[bytes], encode: Callable[[Sequence[str]], Stream]) -> Splits:
    """The splits of a vocabulary: tokens of punctuation or symbols (a space may lead) and then line breaks."""
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
    stream = encode(halves)
    bounds = stream.offsets[::2]
    length[joined], start[joined] = np.diff(bounds), bounds[:-1]
    return Splits(length, start, stream.ids)
