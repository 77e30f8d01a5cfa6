# numba infers the types of compiled functions: annotations would say less than it knows
# mypy: allow-untyped-defs, allow-incomplete-defs
"""Counting pre-tokens: an open-addressing table of byte strings with 64-bit counts, compiled."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal_data.arrow import text_buffers
from shoal_data.bpe.compiled import compiled, innermost
from shoal_data.bpe.pretokens import CL100K, DEEPSEEK_V3, GPT2, next_cut
from shoal_data.bpe.unicode import character_classes

__all__ = ["WordCounter"]

_PATTERNS = {"deepseek-v3": DEEPSEEK_V3, "gpt2": GPT2, "cl100k": CL100K}


# Columns of a slot: what one look-up needs lies together, since memory is what the loop waits for.
HASH, FIRST, SIZE, COUNT = range(4)


class WordCounter:
    """Counts of the pre-tokens of all text that was added.

    Args:
        pattern: the pre-tokenizer, a key of `shoal_data.tokenizer.patterns.PATTERNS`.
    """

    def __init__(self, pattern: str) -> None:
        self._pattern = _PATTERNS[pattern]
        self._slots = np.zeros((1 << 16, 4), np.int64)
        self._pool = np.zeros(1 << 18, np.uint8)
        self._used, self._pooled = 0, 0

    def __len__(self) -> int:
        return self._used

    def add_text(self, text: pa.LargeStringArray) -> None:
        """Cut each document of `text` (no nulls) and count its pieces."""
        offsets, values = text_buffers(text)
        classes = character_classes()
        document, at, stretch = 0, int(offsets[0]), int(offsets[0])
        while document < len(text):
            document, at, stretch, self._used, self._pooled = _count_text(
                self._pattern, values, offsets, classes, document, at, stretch,
                self._slots, self._pool, self._used, self._pooled,
            )  # fmt: skip
            if document < len(text):
                self._grow()

    def add_counts(self, words: pa.LargeBinaryArray, counts: npt.NDArray[np.int64]) -> None:
        """Add partial counts, as `items` of another counter gives them."""
        offsets, values = text_buffers(words)
        done = 0
        while done < len(words):
            done, self._used, self._pooled = _add_counts(
                values, offsets, counts, done, self._slots, self._pool, self._used, self._pooled
            )
            if done < len(words):
                self._grow()

    def items(self) -> tuple[pa.LargeBinaryArray, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Distinct words (n,), their counts (n,) and hashes (n,), in the order they were first seen."""
        slots = self._slots[self._slots[:, SIZE] > 0]
        slots = slots[np.argsort(slots[:, FIRST])]
        starts = np.append(slots[:, FIRST], self._pooled)
        pool = self._pool[: self._pooled].copy()
        words = pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), len(slots), [None, pa.py_buffer(starts), pa.py_buffer(pool)]
        )
        return words, slots[:, COUNT].copy(), slots[:, HASH].copy()

    def _grow(self) -> None:
        """Make room after the compiled loop stopped for lack of it: slots if they are half full, else bytes."""
        if 2 * self._used >= len(self._slots):
            bigger = np.zeros((2 * len(self._slots), 4), np.int64)
            _move(self._slots, bigger)
            self._slots = bigger
        else:
            self._pool = np.concatenate((self._pool, np.zeros_like(self._pool)))


@compiled
def _move(slots, bigger):
    mask = len(bigger) - 1
    for index in range(len(slots)):
        if slots[index, SIZE]:
            slot = slots[index, HASH] & mask
            while bigger[slot, SIZE]:
                slot = (slot + 1) & mask
            bigger[slot] = slots[index]


@innermost
def _add(values, first, last, amount, slots, pool, used, pooled):
    """Add `amount` to the word values[first:last] (not empty); returns slots and bytes in use.

    The caller sees that there is room."""
    state = np.uint64(0xCBF29CE484222325)
    for at in range(first, last):
        state = (state ^ np.uint64(values[at])) * np.uint64(0x100000001B3)
    name = np.int64(state ^ (state >> np.uint64(29)))
    mask = len(slots) - 1
    slot = name & mask
    while slots[slot, SIZE]:
        if slots[slot, HASH] == name and slots[slot, SIZE] == last - first:
            base = slots[slot, FIRST] - first
            at = first
            while at < last and pool[base + at] == values[at]:
                at += 1
            if at == last:
                slots[slot, COUNT] += amount
                return used, pooled
        slot = (slot + 1) & mask
    for at in range(first, last):
        pool[pooled + at - first] = values[at]
    slots[slot, HASH], slots[slot, FIRST], slots[slot, SIZE], slots[slot, COUNT] = name, pooled, last - first, amount
    return used + 1, pooled + last - first


@innermost
def _count_text(pattern, values, offsets, classes, document, at, stretch, slots, pool, used, pooled):
    """Count on from byte `at` of `document` until the text ends or room runs out; returns where it stands."""
    for index in range(document, len(offsets) - 1):
        end = offsets[index + 1]
        if index > document:
            at, stretch = offsets[index], offsets[index]
        while at < end:
            cut, beyond = next_cut(pattern, values, at, end, classes, stretch)
            if 2 * used >= len(slots) or pooled + cut - at > len(pool):
                return index, at, stretch, used, pooled
            used, pooled = _add(values, at, cut, np.int64(1), slots, pool, used, pooled)
            at, stretch = cut, beyond
    return len(offsets) - 1, at, stretch, used, pooled


@innermost
def _add_counts(values, offsets, amounts, done, slots, pool, used, pooled):
    for index in range(done, len(amounts)):
        first, last = offsets[index], offsets[index + 1]
        if 2 * used >= len(slots) or pooled + last - first > len(pool):
            return index, used, pooled
        used, pooled = _add(values, first, last, amounts[index], slots, pool, used, pooled)
    return len(amounts), used, pooled
