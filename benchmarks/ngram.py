"""A byte n-gram model with interpolated Kneser-Ney smoothing: what counting alone makes of a text.

Chen and Goodman (1999), equation 25, one discount an order, from the counts of counts. n-grams are packed into integers
of 8 n bits, oldest byte first.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["KneserNey"]

Codes = npt.NDArray[np.uint64]
BYTE = np.uint64(8)


class KneserNey:
    """Counts of `text` up to `order` (at most 7) bytes."""

    def __init__(self, text: bytes, order: int = 5) -> None:
        self.order = order
        grams, counts = np.unique(_packed(np.frombuffer(text, np.uint8), order), return_counts=True)
        self._levels = [_Level(grams, counts)]
        for length in range(order - 1, 0, -1):
            # Below the highest order what counts is how many different bytes an n-gram follows.
            grams, counts = np.unique(grams & np.uint64((1 << 8 * length) - 1), return_counts=True)
            self._levels.insert(0, _Level(grams, counts))

    def probabilities(self, text: bytes) -> npt.NDArray[np.float64]:
        """Of every byte of `text` given those before it; the first `order - 1` have shorter contexts: (len(text),)."""
        data = np.frombuffer(text, np.uint8)
        found = np.full(len(data), 1 / 256)
        for length, level in enumerate(self._levels, start=1):
            found[length - 1 :] = level.interpolate(_packed(data, length), found[length - 1 :])
        return found

    def bits_per_byte(self, text: bytes) -> float:
        """Cross-entropy of `text`."""
        return float(-np.log2(self.probabilities(text)).mean())


class _Level:
    """n-grams of one length with their counts, and what their contexts add up to."""

    def __init__(self, grams: Codes, counts: npt.NDArray[np.int64]) -> None:
        self.grams, self.counts = grams, counts
        self.contexts, starts = np.unique(grams >> BYTE, return_index=True)
        self.totals = np.add.reduceat(counts, starts)
        self.kinds = np.diff(np.append(starts, len(grams)))  # different bytes that follow a context
        once, twice = (int((counts == n).sum()) for n in (1, 2))
        self.discount = once / (once + 2 * twice) if once else 0.5

    def interpolate(self, codes: Codes, below: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The probabilities of n-grams `codes`, given those of the order below."""
        context, known = _find(self.contexts, codes >> BYTE)
        gram, seen = _find(self.grams, codes)
        count = np.where(seen, np.maximum(self.counts[gram] - self.discount, 0), 0)
        mixed = (count + self.discount * self.kinds[context] * below) / self.totals[context]
        return np.where(known, mixed, below)


def _packed(data: npt.NDArray[np.uint8], length: int) -> Codes:
    """All n-grams of `length` bytes: (len(data) - length + 1,)."""
    codes = np.zeros(max(0, len(data) - length + 1), np.uint64)
    for i in range(length):
        codes = (codes << BYTE) | data[i : i + len(codes)]
    return codes


def _find(table: Codes, wanted: Codes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Where `wanted` stands in the sorted `table`, and whether it does."""
    where = np.minimum(np.searchsorted(table, wanted), len(table) - 1)
    return where, table[where] == wanted
