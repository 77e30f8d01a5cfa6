"""A keyed permutation of 0 .. n-1 that is computed, never stored.

A Feistel network permutes the integers of the smallest even-or-odd number of bits that holds n; values that fall
outside 0 .. n-1 are sent through again until they fall inside (cycle walking, Black and Rogaway 2002, "Ciphers with
Arbitrary Finite Domains"). Fewer than two passes are expected whatever n is, so finding sample 3,600,000,000 costs
what finding sample 0 costs.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

__all__ = ["Permutation"]

_ROUNDS = 6
_MIX = np.uint64(0x9E3779B97F4A7C15)


class Permutation:
    """The bijection of 0 .. `size`-1 named by `key`; pure and vectorised.

    Args:
        size: how many values there are, at least 1 and below 2^62.
        key: anything that names the permutation (seed, epoch, source); equal keys give equal permutations on every
            machine and version.
    """

    def __init__(self, size: int, *key: int | str) -> None:
        if not 1 <= size < 1 << 62:
            raise ValueError(f"a permutation needs 1 <= size < 2^62, not {size}")
        self.size = size
        bits = max(2, (size - 1).bit_length())
        self._right_bits = np.uint64(bits // 2)
        self._left_bits = np.uint64(bits - bits // 2)
        name = "\0".join(map(str, key)).encode()
        digest = hashlib.blake2b(name, digest_size=8 * _ROUNDS, person=b"shoal-order").digest()
        self._round_keys = np.frombuffer(digest, dtype="<u8")

    def __call__(self, index: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Where each of `index` (values in 0 .. size-1, any shape) goes."""
        value = np.array(index, dtype=np.uint64, copy=True)
        flat = self._pass(value.reshape(-1))
        outside = np.flatnonzero(flat >= np.uint64(self.size))
        while outside.size:
            walked = self._pass(flat[outside])
            flat[outside] = walked
            outside = outside[walked >= np.uint64(self.size)]
        return flat.reshape(value.shape).astype(np.int64)

    def _pass(self, value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        low, high = self._right_bits, self._left_bits
        right, left = value & _ones(low), value >> low
        for key in self._round_keys:
            # The halves swap places and widths, so an odd number of bits needs no special case.
            left, right = right, left ^ (_scramble(right, key) & _ones(high))
            low, high = high, low
        return (left << low) | right


def _ones(bits: np.uint64) -> np.uint64:
    return (np.uint64(1) << bits) - np.uint64(1)


def _scramble(value: npt.NDArray[np.uint64], key: np.uint64) -> npt.NDArray[np.uint64]:
    """splitmix64's finaliser over value and round key."""
    mixed = (value + key) * _MIX
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
