# numba infers the types of compiled functions: annotations would say less than it knows
# mypy: allow-untyped-defs, allow-incomplete-defs
"""The queue of pairs to merge, compiled: most frequent first, then the smaller pair; each entry with its places.

Rows of entries that are done are used again, and the places of such entries are squeezed out when room runs short, so
memory follows what waits and not what ever waited.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from shoal_data.bpe.compiled import compiled, innermost

__all__ = ["FIRST", "OFTEN", "PAIR", "SIZE", "Queue", "drop_top", "heapify", "new_queue", "push", "requeue_top"]

# Columns of an entry: its pair, how often that occurred when it was queued, where its places lie and how many they are.
PAIR, OFTEN, FIRST, SIZE = range(4)


class Queue(NamedTuple):
    """A binary heap of entries.

    Attributes:
        entry: int64 (rooms, 4).
        heap: int32 (rooms,): rows of `entry`; the first `waiting` are the heap, the others are free.
        places: int32: places of all entries, in stretches.
        used: int64 (2,): entries waiting; places in use from the start of `places`.
    """

    entry: Any
    heap: Any
    places: Any
    used: Any


@compiled
def new_queue(entry, places, used_places):
    """A queue of all rows of `entry`, which `heapify` must order; `places` has `used_places` in use."""
    used = np.array([len(entry), used_places], np.int64)
    return Queue(entry, np.arange(len(entry)).astype(np.int32), places, used)


@innermost
def _before(entry, one, other):
    if entry[one, OFTEN] != entry[other, OFTEN]:
        return entry[one, OFTEN] > entry[other, OFTEN]
    return entry[one, PAIR] < entry[other, PAIR]


@innermost
def _sift_up(queue, at):
    entry, heap = queue.entry, queue.heap
    row = heap[at]
    while at > 0:
        parent = (at - 1) >> 1
        if not _before(entry, row, heap[parent]):
            break
        heap[at] = heap[parent]
        at = parent
    heap[at] = row


@innermost
def _sift_down(queue, at):
    entry, heap, size = queue.entry, queue.heap, queue.used[0]
    row = heap[at]
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and _before(entry, heap[child + 1], heap[child]):
            child += 1
        if not _before(entry, heap[child], row):
            break
        heap[at] = heap[child]
        at = child
    heap[at] = row


@innermost
def heapify(queue):
    """Order entries that were put in without order."""
    for at in range(queue.used[0] // 2 - 1, -1, -1):
        _sift_down(queue, at)


@innermost
def drop_top(queue):
    """Take the first entry off; its row and places stay as they are until the next `push`."""
    heap = queue.heap
    queue.used[0] -= 1
    last = queue.used[0]
    heap[0], heap[last] = heap[last], heap[0]
    if last:
        _sift_down(queue, 0)


@innermost
def requeue_top(queue, often):
    """Move the first entry to where it belongs with a new count."""
    queue.entry[queue.heap[0], OFTEN] = often
    _sift_down(queue, 0)


@compiled
def push(queue, pair, often, places):
    """Put a pair in with its places; returns the queue, which may be a larger copy."""
    if queue.used[0] == len(queue.heap):
        queue = _more_rows(queue)
    if queue.used[1] + len(places) > len(queue.places):
        queue = _more_places(queue, len(places))
    at, first = queue.used[0], queue.used[1]
    row = queue.heap[at]
    entry = queue.entry
    entry[row, PAIR], entry[row, OFTEN], entry[row, FIRST], entry[row, SIZE] = pair, often, first, len(places)
    queue.places[first : first + len(places)] = places
    queue.used[0], queue.used[1] = at + 1, first + len(places)
    _sift_up(queue, at)
    return queue


@compiled
def _more_rows(queue):
    old = len(queue.heap)
    room = max(16, old + old // 4)
    entry, heap = np.empty((room, 4), np.int64), np.arange(room).astype(np.int32)
    entry[:old], heap[:old] = queue.entry, queue.heap
    return Queue(entry, heap, queue.places, queue.used)


@compiled
def _more_places(queue, more):
    """Squeeze out places of entries that are gone; take a larger array if that frees less than a sixth."""
    entry, places, waiting = queue.entry, queue.places, queue.used[0]
    rows = queue.heap[:waiting]
    rows = rows[np.argsort(entry[:, FIRST][rows])]
    kept = 0
    for row in rows:
        first, size = entry[row, FIRST], entry[row, SIZE]
        for at in range(size):  # downwards only, so nothing is written over before it is read
            places[kept + at] = places[first + at]
        entry[row, FIRST] = kept
        kept += size
    queue.used[1] = kept
    if 6 * (kept + more) > 5 * len(places):
        larger = np.empty((kept + more) * 4 // 3, np.int32)
        larger[:kept] = places[:kept]
        places = larger
    return Queue(entry, queue.heap, places, queue.used)
