# numba infers the types of compiled functions: annotations would say less than it knows
# mypy: allow-untyped-defs, allow-incomplete-defs
"""The compiled loop of BPE training (`shoal_data.build.merges` says what it promises).

One array holds all words, a byte a place, a boundary before each. A token sits at the place of its first byte; where it
is longer than a byte its last place holds minus its length, so both neighbours of a token are found without links. A
pair's occurrences are places, so a merge touches what it changes and nothing else.
"""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["BOUNDARY", "merge_loop"]

BOUNDARY = np.iinfo(np.int32).min

# Columns of a pair's record: how often it occurs; the last merge that made it, how many it made, where they are listed.
COUNT, MERGE, CAME, LISTED = range(4)

# Columns of a queue entry: its pair and that pair's number, how often it occurred when it was queued, its places.
PAIR, NUMBER, OFTEN, FIRST, LAST = range(5)


@njit(cache=True)
def _find(table, key):
    """Slot of pair `key` in the open-addressing table, or of the gap where it goes (stored + 1; 0 is a gap)."""
    mask = len(table) - 1
    mixed = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    slot = np.int64((mixed ^ (mixed >> np.uint64(32))) & np.uint64(mask))
    while table[slot, 0] != 0 and table[slot, 0] != key + 1:
        slot = (slot + 1) & mask
    return slot


@njit(cache=True)
def _rehash(table):
    bigger = np.zeros((2 * len(table), 2), np.int64)
    for slot in range(len(table)):
        if table[slot, 0]:
            to = _find(bigger, table[slot, 0] - 1)
            bigger[to, 0], bigger[to, 1] = table[slot, 0], table[slot, 1]
    return bigger


@njit(cache=True)
def _rows(array, needed):
    """`_room` of a table."""
    if needed <= len(array):
        return array
    longer = np.zeros((max(needed, len(array) + len(array) // 2), array.shape[1]), array.dtype)
    for at in range(len(array)):
        for column in range(array.shape[1]):
            longer[at, column] = array[at, column]
    return longer


@njit(cache=True)
def _before(queue, one, other):
    """Whether queue entry `one` goes before `other`: more often first, then the smaller pair."""
    if queue[one, OFTEN] != queue[other, OFTEN]:
        return queue[one, OFTEN] > queue[other, OFTEN]
    return queue[one, PAIR] < queue[other, PAIR]


@njit(cache=True)
def _sift_up(heap, at, queue):
    entry = heap[at]
    while at > 0:
        parent = (at - 1) >> 1
        if not _before(queue, entry, heap[parent]):
            break
        heap[at] = heap[parent]
        at = parent
    heap[at] = entry


@njit(cache=True)
def _sift_down(heap, at, size, queue):
    entry = heap[at]
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and _before(queue, heap[child + 1], heap[child]):
            child += 1
        if not _before(queue, heap[child], entry):
            break
        heap[at] = heap[child]
        at = child
    heap[at] = entry


@njit(cache=True)
def _room(array, needed):
    """`array`, or a longer copy of it that holds `needed` elements."""
    if needed <= len(array):
        return array
    longer = np.zeros(max(needed, len(array) + len(array) // 2), array.dtype)
    for at in range(len(array)):
        longer[at] = array[at]
    return longer


@njit(cache=True)
def _spelling(pool, starts, left, right):
    """Hash of the bytes of token `left` followed by those of `right` (none if negative)."""
    state = np.uint64(0xCBF29CE484222325)
    for token in (left, right):
        if token >= 0:
            for at in range(starts[token], starts[token + 1]):
                state = (state ^ np.uint64(pool[at])) * np.uint64(0x100000001B3)
    return np.int64((state ^ (state >> np.uint64(31))) & np.uint64(0x7FFFFFFFFFFFFFFF))


@njit(cache=True)
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


@njit(cache=True)
def _whole_words(places, word_of, word_starts, text, sizes, left, right):
    """Every occurrence of (left, right) in the words of these places, in order: what an entry means whose pair waits
    in the queue more than once."""
    found = np.empty(16, np.int32)
    used = 0
    done = np.int64(-1)
    for place in places:
        word = np.int64(word_of[place])
        if word == done:
            continue  # places come word by word; a word met again later has no occurrence left to merge
        done = word
        at = word_starts[word]
        while text[at] != BOUNDARY:
            after = at + sizes[text[at]]
            if text[at] == left and text[after] == right:
                found = _room(found, used + 1)
                found[used] = at
                used += 1
            at = after
    return found[:used]


@njit(cache=True)
def _first_pairs(text, word_of, word_counts, byte_pairs):
    """Count the pairs of neighbouring bytes, and list the places of each: (count, first place, places) by pair."""
    counts, listed = np.zeros(byte_pairs * byte_pairs, np.int64), np.zeros(byte_pairs * byte_pairs + 1, np.int64)
    for at in range(len(text) - 1):
        if text[at] >= 0 and text[at + 1] >= 0:
            key = np.int64(text[at]) * byte_pairs + text[at + 1]
            counts[key] += word_counts[word_of[at]]
            listed[key + 1] += 1
    for key in range(len(counts)):
        listed[key + 1] += listed[key]
    firsts, filled = listed, listed.copy()
    places = np.empty(firsts[-1], np.int32)
    for at in range(len(text) - 1):
        if text[at] >= 0 and text[at + 1] >= 0:
            key = np.int64(text[at]) * byte_pairs + text[at + 1]
            places[filled[key]] = at
            filled[key] += 1
    return counts, firsts, places


@njit(cache=True)
def merge_loop(text, word_of, word_starts, word_counts, pool, pool_starts, vocab_size, least):
    """Merge until the vocabulary is full or no pair occurs `least` times.

    Args:
        text: int32, changed in place: token ids of single bytes, a BOUNDARY before and after each word.
        word_of: int32 (len(text),), the word each place is in.
        word_starts: (words,), the place of each word's first byte.
        word_counts: (words,), how often each occurs.
        pool, pool_starts: bytes of the tokens there are, on end, and where each starts.
        vocab_size: stop at this many tokens.
        least: stop before pairs that occur less often.

    Returns:
        pairs (n, 2), how often each was merged (n,), and `pool`, `pool_starts` with the new tokens.
    """
    tokens = len(pool_starts) - 1
    counts, firsts, places = _first_pairs(text, word_of, word_counts, tokens)

    # Pairs are numbered in the order they are met. `table`: key + 1 and number, found by key. `records`, by number:
    # what one look-up needs lies together, since memory is what the loop waits for.
    table = np.zeros((1 << 16, 2), np.int64)
    records = np.zeros((1 << 14, 4), np.int64)
    pairs, entries = np.zeros(1 << 14, np.int64), np.zeros(1 << 14, np.int32)
    known = 0

    # The queue: a heap of entries, each with a stretch of `places`.
    queue, heap = np.zeros((1 << 14, 5), np.int64), np.zeros(1 << 14, np.int32)
    places_used = np.int64(len(places))
    for code in range(len(counts)):
        if counts[code] > 0:
            if 2 * known >= len(table):
                table = _rehash(table)
            if known == len(pairs):
                records, pairs, entries = _rows(records, known + 1), _room(pairs, known + 1), _room(entries, known + 1)
                queue, heap = _rows(queue, known + 1), _room(heap, known + 1)
            key = (np.int64(code // tokens) << 32) | np.int64(code % tokens)
            slot = _find(table, key)
            table[slot, 0], table[slot, 1] = key + 1, known
            pairs[known], records[known, COUNT], entries[known] = key, counts[code], 1
            queue[known, PAIR], queue[known, NUMBER], queue[known, OFTEN] = key, known, counts[code]
            queue[known, FIRST], queue[known, LAST] = firsts[code], firsts[code + 1]
            heap[known] = known
            known += 1
    queued = waiting = known
    for at in range(waiting // 2 - 1, -1, -1):
        _sift_down(heap, at, waiting, queue)

    # Tokens by spelling, so that a text has one id however it is put together.
    pool_starts = _room(pool_starts, vocab_size + 2)
    sizes = np.zeros(max(vocab_size, tokens) + 1, np.int32)
    spell_size = 1 << 12
    while spell_size < 4 * (vocab_size + tokens):
        spell_size *= 2
    spell_table = np.zeros(spell_size, np.int32)
    for token in range(tokens):
        sizes[token] = pool_starts[token + 1] - pool_starts[token]
        if sizes[token]:
            slot = _spelling(pool, pool_starts, token, -1) & (spell_size - 1)
            while spell_table[slot]:
                slot = (slot + 1) & (spell_size - 1)
            spell_table[slot] = token + 1

    merged, merged_counts = np.zeros((max(16, vocab_size), 2), np.int64), np.zeros(max(16, vocab_size), np.int64)
    merges = 0
    change_number, change_place = np.zeros(1024, np.int32), np.zeros(1024, np.int32)
    touched = np.zeros(1024, np.int32)

    while tokens < vocab_size and waiting > 0:
        top = heap[0]
        number = queue[top, NUMBER]
        stale = queue[top, OFTEN] != records[number, COUNT]
        if stale:
            queue[top, OFTEN] = records[number, COUNT]
        elif queue[top, OFTEN] < max(1, least):
            break
        else:
            waiting -= 1
            heap[0] = heap[waiting]
        if waiting:
            _sift_down(heap, 0, waiting, queue)
        if stale:
            continue

        left, right = queue[top, PAIR] >> 32, queue[top, PAIR] & 0xFFFFFFFF
        slot = _spelling(pool, pool_starts, left, right) & (spell_size - 1)
        new = np.int64(-1)
        while spell_table[slot]:
            if _spells(pool, pool_starts, spell_table[slot] - 1, left, right):
                new = np.int64(spell_table[slot] - 1)
                break
            slot = (slot + 1) & (spell_size - 1)
        size = np.int64(sizes[left] + sizes[right])
        if new < 0:
            new = np.int64(tokens)
            used = pool_starts[tokens]
            pool = _room(pool, used + size)
            for at in range(sizes[left]):
                pool[used + at] = pool[pool_starts[left] + at]
            for at in range(sizes[right]):
                pool[used + sizes[left] + at] = pool[pool_starts[right] + at]
            pool_starts[tokens + 1], sizes[tokens] = used + size, size
            spell_table[slot] = tokens + 1
            tokens += 1
        if merges == len(merged):
            merged, merged_counts = _rows(merged, merges + 1), _room(merged_counts, merges + 1)
        merged[merges, 0], merged[merges, 1] = left, right
        merges += 1

        # Merge at each place, noting pairs that went and pairs that came.
        where = places[queue[top, FIRST] : queue[top, LAST]]
        if entries[number] > 1:
            where = _whole_words(where, word_of, word_starts, text, sizes, left, right)
        changes = touches = 0
        for at in where:
            middle = at + sizes[left]
            if text[at] != left or text[middle] != right:
                continue  # this occurrence went in an earlier merge
            amount = word_counts[word_of[at]]
            merged_counts[merges - 1] += amount
            after = middle + sizes[right]
            before = at - 1
            if text[before] < 0 and text[before] != BOUNDARY:
                before = at + text[before]
            for side in range(4):
                # What stood on either side of the pair, and what stands there now.
                if side < 2:
                    if text[before] == BOUNDARY:
                        continue
                    key = (np.int64(text[before]) << 32) | (left if side == 0 else new)
                else:
                    if text[after] == BOUNDARY:
                        continue
                    key = ((right if side == 2 else new) << 32) | np.int64(text[after])
                slot = _find(table, key)
                if table[slot, 0] == 0:
                    if 2 * known >= len(table):
                        table = _rehash(table)
                        slot = _find(table, key)
                    if known == len(pairs):
                        records, pairs = _rows(records, known + 1), _room(pairs, known + 1)
                        entries = _room(entries, known + 1)
                    table[slot, 0], table[slot, 1], pairs[known] = key + 1, known, key
                    known += 1
                it = table[slot, 1]
                if side == 0 or side == 2:
                    records[it, COUNT] -= amount
                    continue
                records[it, COUNT] += amount
                if records[it, MERGE] != merges:
                    records[it, MERGE], records[it, CAME] = merges, 0
                    if touches == len(touched):
                        touched = _room(touched, touches + 1)
                    touched[touches] = it
                    touches += 1
                records[it, CAME] += 1
                if changes == len(change_number):
                    change_number, change_place = _room(change_number, changes + 1), _room(change_place, changes + 1)
                change_number[changes], change_place[changes] = it, before if side == 1 else at
                changes += 1
            text[middle] = -1
            text[at] = new
            text[after - 1] = -size

        # Queue the pairs that came, each with its places.
        places = _room(places, places_used + changes)
        queue, heap = _rows(queue, queued + touches), _room(heap, queued + touches)
        for it in touched[:touches]:
            records[it, LISTED] = places_used
            places_used += records[it, CAME]
            records[it, CAME] = 0
        for index in range(changes):
            it = change_number[index]
            places[records[it, LISTED] + records[it, CAME]] = change_place[index]
            records[it, CAME] += 1
        for it in touched[:touches]:
            if records[it, COUNT] > 0:
                entries[it] += 1
                queue[queued, PAIR], queue[queued, NUMBER], queue[queued, OFTEN] = pairs[it], it, records[it, COUNT]
                queue[queued, FIRST] = records[it, LISTED]
                queue[queued, LAST] = records[it, LISTED] + records[it, CAME]
                heap[waiting] = queued
                _sift_up(heap, waiting, queue)
                waiting += 1
                queued += 1
    return merged[:merges], merged_counts[:merges], pool[: pool_starts[tokens]], pool_starts[: tokens + 1]
