# numba infers the types of compiled functions: annotations would say less than it knows
# mypy: allow-untyped-defs, allow-incomplete-defs
"""How often each pair of neighbouring tokens occurs: an open-addressing table, compiled, of some 25 bytes a pair."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from shoal_data.bpe.compiled import compiled, innermost

__all__ = ["COUNT", "KEY", "Pairs", "key_of", "no_pairs", "number_of", "room_for_pairs"]

# Columns of a record: what one look-up needs lies together, since memory is what the loop waits for.
KEY, COUNT = range(2)


class Pairs(NamedTuple):
    """Pairs numbered in the order they are met.

    Attributes:
        table: int32, number + 1 by hash of the key; 0 is a gap.
        record: int64 (room, 2): key, and how often the pair occurs.
        queued: uint8 (room,): how often it was put in the queue, 2 standing for more.
        known: int64 (1,): how many there are.
    """

    table: Any
    record: Any
    queued: Any
    known: Any


@innermost
def key_of(left, right):
    """The key of a pair of token ids; keys sort as pairs do."""
    return (np.int64(left) << 32) | np.int64(right)


@compiled
def no_pairs():
    """An empty table."""
    room = 1 << 14
    return Pairs(
        np.zeros(2 * room, np.int32),
        np.empty((room, 2), np.int64),
        np.empty(room, np.uint8),
        np.zeros(1, np.int64),
    )


@compiled
def room_for_pairs(pairs, more):
    """`pairs`, or a larger copy that has room for `more` new ones."""
    known = pairs.known[0]
    table, record, queued = pairs.table, pairs.record, pairs.queued
    if known + more > len(record):
        room = max(known + more, len(record) + len(record) // 2)
        record, queued = np.empty((room, 2), np.int64), np.empty(room, np.uint8)
        record[:known], queued[:known] = pairs.record[:known], pairs.queued[:known]
    if 4 * (known + more) > 3 * len(table):
        size = len(table)
        while 4 * (known + more) > 3 * size:
            size *= 2
        table = np.zeros(size, np.int32)
        for number in range(known):
            slot = _slot(record[number, KEY], size)
            while table[slot]:
                slot = (slot + 1) & (size - 1)
            table[slot] = number + 1
    return Pairs(table, record, queued, pairs.known)


@innermost
def _slot(key, size):
    mixed = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    return np.int64((mixed ^ (mixed >> np.uint64(32))) & np.uint64(size - 1))


@innermost
def number_of(pairs, key):
    """Number of the pair `key`, which is taken in if it is new; the caller sees that there is room."""
    table, record = pairs.table, pairs.record
    slot = _slot(key, len(table))
    while table[slot]:
        if record[table[slot] - 1, KEY] == key:
            return np.int64(table[slot] - 1)
        slot = (slot + 1) & (len(table) - 1)
    number = pairs.known[0]
    pairs.known[0] = number + 1
    table[slot] = number + 1
    record[number, KEY], record[number, COUNT] = key, 0
    pairs.queued[number] = 0
    return number
