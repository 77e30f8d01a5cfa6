"""Documents as a tokenizer normalizes them, before they are encoded."""

from __future__ import annotations

import functools
import itertools
import sys
import unicodedata
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import normalizers

from shoal_data.tokenizer.rules import SPACE

__all__ = ["normalized"]


def normalized(text: pa.LargeStringArray, *, nfc: bool, spaces: bool) -> pa.LargeStringArray:
    """The documents `text` (n,), with "▁" as a space (`spaces`) and in Unicode's NFC (`nfc`)."""
    if spaces:
        text = pc.replace_substring(text, SPACE, " ")
    return _nfc(text) if nfc else text


def _nfc(text: pa.LargeStringArray) -> pa.LargeStringArray:
    """In NFC as `tokenizers` has it. Python's is the same and faster for characters that its Unicode knows."""
    changed: dict[int, str] = {}
    peer = normalizers.NFC()
    newer = np.asarray(pc.match_substring_regex(text, _unassigned()))
    for at in np.flatnonzero(~np.asarray(pc.string_is_ascii(text))).tolist():
        before = text[at].as_py()
        after = peer.normalize_str(before) if newer[at] else unicodedata.normalize("NFC", before)
        if after != before:
            changed[at] = after
    if not changed:
        return text
    mask = np.zeros(len(text), bool)
    mask[list(changed)] = True
    return pc.replace_with_mask(text, mask, pa.array(list(changed.values()), pa.large_string()))


@functools.cache
def _unassigned() -> str:
    """A regular expression for one character that Python's Unicode does not know."""
    return "[" + "".join(f"\\x{{{first:X}}}-\\x{{{last:X}}}" for first, last in _runs()) + "]"


def _runs() -> Iterator[tuple[int, int]]:
    first = 0
    for unknown, group in itertools.groupby(
        unicodedata.category(chr(one)) == "Cn" for one in range(sys.maxunicode + 1)
    ):
        last = first + len(list(group)) - 1
        if unknown:
            yield first, last
        first = last + 1
