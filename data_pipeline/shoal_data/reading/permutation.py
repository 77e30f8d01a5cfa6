"""A keyed permutation of 0 .. n-1 that is computed, never stored.

A value is written as (left, right) in a rectangle of about sqrt(n) by sqrt(n); each round adds a keyed hash of one
half to the other, modulo its side (a generalised Feistel network); values that fall outside 0 .. n-1, of which there
are at most some sqrt(n), are sent through again (cycle walking). Both are from Black and Rogaway 2002, "Ciphers with
Arbitrary Finite Domains". So finding sample 3,600,000,000 costs what finding sample 0 costs.
"""

from __future__ import annotations

import hashlib
import math

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
        rows = math.isqrt(size - 1) + 1
        self._rows, self._columns = np.uint64(rows), np.uint64(-(-size // rows))
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
        left = value // self._columns
        right = value - left * self._columns
        for odd, key in zip((False, True) * (_ROUNDS // 2), self._round_keys, strict=True):
            if odd:
                right += _scramble(left, key)
                _reduce(right, self._columns)
            else:
                left += _scramble(right, key)
                _reduce(left, self._rows)
        left *= self._columns
        left += right
        return left


def _reduce(value: npt.NDArray[np.uint64], side: np.uint64) -> None:
    """`value %= side`; NumPy has vector instructions for the division alone."""
    quotient = value // side
    quotient *= side
    value -= quotient


def _scramble(value: npt.NDArray[np.uint64], key: np.uint64) -> npt.NDArray[np.uint64]:
    """splitmix64's finaliser over value and round key, less two bits, so that a half can be added to it."""
    mixed = value + key
    mixed *= _MIX
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    mixed >>= np.uint64(2)
    return mixed
