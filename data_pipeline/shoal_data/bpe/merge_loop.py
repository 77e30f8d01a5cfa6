# numba infers the types of compiled functions: annotations would say less than it knows
# mypy: allow-untyped-defs, allow-incomplete-defs
"""The compiled loop of BPE training (`shoal_data.bpe.merges` says what it promises).

One array holds all words, a byte a place. A boundary stands before each word and names it. A token sits at the place
of its first byte; where it is longer than a byte its last place holds minus its length, so both neighbours of a token,
and its word, are found without links. A pair's occurrences are places, so a merge touches what it changes and nothing
else.
"""

from __future__ import annotations

import numpy as np

from shoal_data.bpe.compiled import compiled, compiled_freely, innermost
from shoal_data.bpe.pair_counts import COUNT, KEY, key_of, no_pairs, number_of, room_for_pairs
from shoal_data.bpe.pair_queue import FIRST, OFTEN, PAIR, SIZE, drop_top, heapify, new_queue, push, requeue_top
from shoal_data.bpe.spellings import first_tokens, joined

__all__ = ["LONGEST", "merge_loop", "spread_words"]

#: bytes of a word, and words, that the text can hold: word w's boundary is -LONGEST - 1 - w
LONGEST = 1 << 30


@compiled
def spread_words(values, offsets, byte_ids):
    """The text of words values[offsets[i]:offsets[i + 1]]: ids of their bytes, with a boundary before each and last."""
    words = len(offsets) - 1
    text = np.empty(offsets[words] - offsets[0] + words + 1, np.int32)
    at = 0
    for word in range(words):
        text[at] = -LONGEST - 1 - word
        at += 1
        for place in range(offsets[word], offsets[word + 1]):
            text[at] = byte_ids[values[place]]
            at += 1
    text[at] = -LONGEST - 1
    return text


@innermost
def _boundary(text, at):
    """Place of the boundary before place `at` of a word."""
    at -= 1
    while text[at] >= -LONGEST:
        at += min(text[at], np.int32(-1))  # over a longer token, or over one byte
    return at


@compiled
def _first_pairs(text, word_counts, tokens):
    """All pairs of neighbouring bytes, counted and queued with their places."""
    counts, firsts = np.zeros(tokens * tokens, np.int64), np.zeros(tokens * tokens + 1, np.int64)
    amount = np.int64(0)
    for at in range(len(text) - 1):
        if text[at] < 0:
            amount = word_counts[-LONGEST - 1 - np.int64(text[at])]
        elif text[at + 1] >= 0:
            code = np.int64(text[at]) * tokens + text[at + 1]
            counts[code] += amount
            firsts[code + 1] += 1
    for code in range(len(counts)):
        firsts[code + 1] += firsts[code]
    # Room for those that merges will add; pages that are never touched take no memory.
    total = firsts[-1]
    filled, places = firsts.copy(), np.empty(max(16, 2 * total), np.int32)
    for at in range(len(text) - 1):
        if text[at] >= 0 and text[at + 1] >= 0:
            code = np.int64(text[at]) * tokens + text[at + 1]
            places[filled[code]] = at
            filled[code] += 1
    pairs = no_pairs()
    entry = np.empty((np.count_nonzero(counts), 4), np.int64)
    for code in np.flatnonzero(counts):
        pairs = room_for_pairs(pairs, 1)
        number = number_of(pairs, key_of(code // tokens, code % tokens))
        pairs.record[number, COUNT], pairs.queued[number] = counts[code], 1
        entry[number, PAIR], entry[number, OFTEN] = pairs.record[number, KEY], counts[code]
        entry[number, FIRST], entry[number, SIZE] = firsts[code], firsts[code + 1] - firsts[code]
    queue = new_queue(entry, places, total)
    heapify(queue)
    return pairs, queue


@compiled
def _whole_words(places, text, starts, left, right):
    """Every occurrence of (left, right) in the words of these places, in order: what an entry means whose pair waits
    in the queue more than once."""
    found = np.empty(16, np.int32)
    used, done = 0, -1
    for place in places:
        at = _boundary(text, place)
        if at == done:
            continue  # places come word by word; a word met again later has no occurrence left to merge
        done = at
        at += 1
        while text[at] >= 0:
            after = at + starts[text[at] + 1] - starts[text[at]]
            if text[at] == left and text[after] == right:
                if used == len(found):
                    longer = np.empty(2 * used, np.int32)
                    longer[:used] = found
                    found = longer
                found[used] = at
                used += 1
            at = after
    return found[:used]


@compiled
def _merge_places(where, left, right, new, text, word_counts, starts, pairs, kind_of):
    """Merge at each of the places `where` that still holds (left, right).

    What a merge changes depends on the neighbour alone, (x, left) becomes (x, new) and (right, x) becomes (new, x), so
    changes are summed by neighbour before pairs are looked up: most merges have many places and few neighbours.

    Args:
        kind_of: int32 (2, tokens), all 0 before and after: 1 + the kind of a neighbour before, or after.

    Returns:
        how often the pair occurred there, counted by words; the pairs that came (n,); the changes: which of them (m,)
        came at which place (m,); and `pairs`.
    """
    size_left, size_right = starts[left + 1] - starts[left], starts[right + 1] - starts[right]
    most = 2 * len(where)
    whose, place = np.empty(most, np.int32), np.empty(most, np.int32)
    room = min(most, kind_of.size)
    side, neighbour, often = np.empty(room, np.uint8), np.empty(room, np.int32), np.zeros(room, np.int64)
    kinds = changes = 0
    total = np.int64(0)
    for at in where:
        middle = at + size_left
        if text[at] != left or text[middle] != right:
            continue  # this occurrence went in an earlier merge
        boundary = _boundary(text, at)
        amount = word_counts[-LONGEST - 1 - np.int64(text[boundary])]
        total += amount
        after = middle + size_right
        before = at - 1
        if before != boundary and text[before] < 0:
            before = at + text[before]
        for which in range(2):
            token = text[before] if which == 0 else text[after]
            if token < 0:
                continue
            kind = kind_of[which, token] - 1
            if kind < 0:
                kind = kinds
                kinds += 1
                kind_of[which, token] = kinds
                side[kind], neighbour[kind] = which, token
            often[kind] += amount
            whose[changes] = kind
            place[changes] = before if which == 0 else at
            changes += 1
        text[middle] = -1
        text[at] = new
        text[after - 1] = -(size_left + size_right)
    if kind_of[0, new] and kind_of[1, new]:  # (new, new) came from both sides
        for change in range(changes):
            if whose[change] == kind_of[1, new] - 1:
                whose[change] = kind_of[0, new] - 1
    came = np.empty(kinds, np.int32)
    pairs = room_for_pairs(pairs, 2 * kinds)
    for kind in range(kinds):
        token = neighbour[kind]
        kind_of[side[kind], token] = 0
        gone, key = key_of(token, left), key_of(token, new)
        if side[kind]:
            gone, key = key_of(right, token), key_of(new, token)
        pairs.record[number_of(pairs, gone), COUNT] -= often[kind]
        came[kind] = number_of(pairs, key)
        pairs.record[came[kind], COUNT] += often[kind]
    return total, came, whose[:changes], place[:changes], pairs


@compiled
def _queue_those_that_came(came, whose, place, pairs, queue):
    """Put each pair that a merge made in the queue with its places."""
    ends = np.zeros(len(came) + 1, np.int64)
    for change in whose:
        ends[change + 1] += 1
    for kind in range(len(came)):
        ends[kind + 1] += ends[kind]
    firsts, by_kind = ends[:-1].copy(), np.empty(len(place), np.int32)
    for change in range(len(whose)):
        by_kind[firsts[whose[change]]] = place[change]
        firsts[whose[change]] += 1
    for kind in range(len(came)):
        number = came[kind]
        if pairs.record[number, COUNT] > 0 and ends[kind + 1] > ends[kind]:
            pairs.queued[number] = min(2, pairs.queued[number] + 1)
            key, often = pairs.record[number, KEY], pairs.record[number, COUNT]
            queue = push(queue, key, often, by_kind[ends[kind] : ends[kind + 1]])
    return queue


@compiled_freely
def merge_loop(text, word_counts, pool, pool_starts, vocab_size, least):
    """Merge until the vocabulary is full or no pair occurs `least` times.

    Args:
        text: what `spread_words` gives; changed in place.
        word_counts: (words,), how often each occurs.
        pool, pool_starts: bytes of the tokens there are, on end, and where each starts.
        vocab_size: stop at this many tokens.
        least: stop before pairs that occur less often.

    Returns:
        pairs (n, 2), how often each was merged (n,), and `pool`, `pool_starts` with the new tokens.
    """
    pairs, queue = _first_pairs(text, word_counts, len(pool_starts) - 1)
    tokens = first_tokens(pool, pool_starts, vocab_size)
    merged, merged_counts = np.empty((max(16, vocab_size), 2), np.int64), np.empty(max(16, vocab_size), np.int64)
    kind_of = np.zeros((2, len(tokens.starts)), np.int32)
    merges = 0
    while tokens.count[0] < vocab_size and queue.used[0] > 0:
        top = queue.entry[queue.heap[0]]
        key, often, first, size = top[PAIR], top[OFTEN], top[FIRST], top[SIZE]
        number = number_of(pairs, key)
        if often != pairs.record[number, COUNT]:
            requeue_top(queue, pairs.record[number, COUNT])
            continue
        if often < max(1, least):
            break
        drop_top(queue)
        left, right = key >> 32, key & 0xFFFFFFFF
        new, tokens = joined(tokens, left, right)
        where = queue.places[first : first + size]
        if pairs.queued[number] > 1:
            where = _whole_words(where, text, tokens.starts, left, right)
        total, came, whose, place, pairs = _merge_places(
            where, left, right, new, text, word_counts, tokens.starts, pairs, kind_of
        )
        queue = _queue_those_that_came(came, whose, place, pairs, queue)
        if merges == len(merged):
            merged, merged_counts = np.concatenate((merged, merged)), np.concatenate((merged_counts, merged_counts))
        merged[merges, 0], merged[merges, 1], merged_counts[merges] = left, right, total
        merges += 1
    count = tokens.count[0]
    return merged[:merges], merged_counts[:merges], tokens.pool[: tokens.starts[count]], tokens.starts[: count + 1]
