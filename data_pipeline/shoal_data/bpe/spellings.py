# numba infers the types of compiled functions: annotations would say less than it knows
# mypy: allow-untyped-defs, allow-incomplete-defs
"""The tokens of a vocabulary in the making, by id and by spelling, compiled."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from shoal_data.bpe.compiled import compiled, innermost

__all__ = ["Tokens", "first_tokens", "joined"]


class Tokens(NamedTuple):
    """Tokens by id, and by spelling, so that a text has one id however it is put together.

    Attributes:
        pool: their bytes on end.
        starts: where each begins in `pool`; room for as many as the vocabulary will have.
        table: id + 1 by hash of the spelling; 0 is a gap.
        count: int64 (1,): how many there are.
    """

    pool: Any
    starts: Any
    table: Any
    count: Any


@innermost
def _spelling(pool, starts, left, right):
    """Hash of the bytes of token `left` followed by those of `right` (none if negative)."""
    state = np.uint64(0xCBF29CE484222325)
    for token in (left, right):
        if token >= 0:
            for at in range(starts[token], starts[token + 1]):
                state = (state ^ np.uint64(pool[at])) * np.uint64(0x100000001B3)
    return np.int64((state ^ (state >> np.uint64(31))) & np.uint64(0x7FFFFFFFFFFFFFFF))


@innermost
def _spells(pool, starts, token, left, right):
    """Whether `token` is `left` followed by `right`, byte for byte."""
    cut = starts[left + 1] - starts[left]
    size = cut + starts[right + 1] - starts[right]
    if starts[token + 1] - starts[token] != size:
        return False
    for at in range(size):
        byte = pool[starts[left] + at] if at < cut else pool[starts[right] + at - cut]
        if pool[starts[token] + at] != byte:
            return False
    return True


@compiled
def first_tokens(pool, starts, vocab_size):
    """Tokens whose bytes are pool[starts[i]:starts[i + 1]], with room for `vocab_size` of them."""
    count = len(starts) - 1
    room = np.zeros(max(vocab_size, count) + 2, np.int64)
    room[: count + 1] = starts
    size = 1 << 12
    while size < 2 * (vocab_size + count):
        size *= 2
    table = np.zeros(size, np.int32)
    for token in range(count):
        if room[token + 1] > room[token]:
            slot = _spelling(pool, room, token, -1) & (size - 1)
            while table[slot]:
                slot = (slot + 1) & (size - 1)
            table[slot] = token + 1
    return Tokens(pool, room, table, np.array([count], np.int64))


@compiled
def joined(tokens, left, right):
    """Id of the token `left` followed by `right`, a new one if no token is spelled so; and the tokens."""
    pool, starts, table = tokens.pool, tokens.starts, tokens.table
    slot = _spelling(pool, starts, left, right) & (len(table) - 1)
    while table[slot]:
        if _spells(pool, starts, table[slot] - 1, left, right):
            return np.int64(table[slot] - 1), tokens
        slot = (slot + 1) & (len(table) - 1)
    new = tokens.count[0]
    used, cut = starts[new], starts[left + 1] - starts[left]
    size = cut + starts[right + 1] - starts[right]
    if used + size > len(pool):
        pool = np.empty(2 * len(pool) + size, np.uint8)
        pool[:used] = tokens.pool[:used]
    pool[used : used + cut] = pool[starts[left] : starts[left + 1]]
    pool[used + cut : used + size] = pool[starts[right] : starts[right + 1]]
    starts[new + 1] = used + size
    table[slot] = new + 1
    tokens.count[0] = new + 1
    return new, Tokens(pool, starts, table, tokens.count)
