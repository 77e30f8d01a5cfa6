# numba infers the types of compiled functions: annotations would say less than it knows
# mypy: allow-untyped-defs, allow-incomplete-defs
"""Where a pre-tokenizer cuts: hand-written scanners for the patterns of `shoal_data.tokenizer.patterns`, compiled.

Each scanner is the regular expression followed by hand over UTF-8 bytes: alternatives in their order, greedy, with
the one step of backtracking that `\\s+(?!\\S)` and `\\s*[\\r\\n]+` need. They are held against
`tokenizers`' `pre_tokenize_str`, piece by piece, by the tests.
"""

from __future__ import annotations

import numpy as np

from shoal_data.bpe.compiled import innermost
from shoal_data.bpe.unicode import KANA_HAN, LETTER, MARK, NUMBER, PUNCTUATION, SPACE, SYMBOL

__all__ = ["CL100K", "DEEPSEEK_V3", "GPT2", "next_cut"]

DEEPSEEK_V3, GPT2, CL100K = range(3)

_WORD = LETTER | MARK
_PRINTED = PUNCTUATION | SYMBOL
_NOT_BEFORE_WORD = LETTER | PUNCTUATION | SYMBOL
_ALPHANUMERIC = LETTER | NUMBER


@innermost
def _decode(text, at):
    """Code point at byte `at` of valid UTF-8, and its length in bytes."""
    first = np.int64(text[at])
    if first < 0x80:
        return first, 1
    if first < 0xE0:
        return ((first & 0x1F) << 6) | (text[at + 1] & 0x3F), 2
    if first < 0xF0:
        return ((first & 0x0F) << 12) | ((text[at + 1] & 0x3F) << 6) | (text[at + 2] & 0x3F), 3
    return (
        ((first & 0x07) << 18) | ((text[at + 1] & 0x3F) << 12) | ((text[at + 2] & 0x3F) << 6) | (text[at + 3] & 0x3F),
        4,
    )


@innermost
def _class(text, at, classes):
    point, size = _decode(text, at)
    return classes[point], size


@innermost
def _run(text, at, end, classes, wanted):
    """End of the run of characters in any of the classes `wanted` that starts at `at`."""
    while at < end:
        kind, size = _class(text, at, classes)
        if kind & wanted == 0:
            break
        at += size
    return at


@innermost
def _is_newline(byte):
    return byte == 10 or byte == 13


@innermost
def _newlines(text, at, end):
    while at < end and _is_newline(text[at]):
        at += 1
    return at


@innermost
def _white(text, at, end, classes, newlines_first):
    """End of the match of `\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+` (the first alternative if `newlines_first`) at `at`."""
    stop, last, newline = at, at, at
    while stop < end:
        kind, size = _class(text, stop, classes)
        if kind & SPACE == 0:
            break
        last = stop
        stop += size
        if _is_newline(text[last]):
            newline = stop
    if newlines_first and newline > at:
        return newline
    if stop == end or last == at:
        return stop
    return last


@innermost
def _ascii_letter(byte):
    return 97 <= (byte | 32) <= 122


@innermost
def _ascii_printed(byte):
    """One of ASCII's 32 punctuation marks and symbols."""
    return 33 <= byte <= 47 or 58 <= byte <= 64 or 91 <= byte <= 96 or 123 <= byte <= 126


@innermost
def _v3_third(text, at, end, classes):
    """End of the match of V3's third pattern at `at`, within a stretch that ends at `end`; `at` if there is none."""
    byte = text[at]
    if _ascii_printed(byte) and at + 1 < end and _ascii_letter(text[at + 1]):
        at += 2
        while at < end and _ascii_letter(text[at]):
            at += 1
        return at
    kind, size = _class(text, at, classes)
    after = at + size
    if kind & _WORD:
        return _run(text, after, end, classes, _WORD)
    if kind & _NOT_BEFORE_WORD == 0 and not _is_newline(byte) and after < end:
        following, width = _class(text, after, classes)
        if following & _WORD:
            return _run(text, after + width, end, classes, _WORD)
    if kind & _PRINTED:
        return _newlines(text, _run(text, after, end, classes, _PRINTED), end)
    if byte == 32 and after < end:
        following, width = _class(text, after, classes)
        if following & _PRINTED:
            return _newlines(text, _run(text, after + width, end, classes, _PRINTED), end)
    if kind & SPACE:
        return _white(text, at, end, classes, True)
    return at


@innermost
def _v3(text, at, end, classes, stretch):
    """The piece at `at`: V3's first two patterns bound a stretch, the third cuts it, what none matches is left whole.

    `stretch` is the end of the current stretch if `at` is inside one, else `at`. Returns (cut, end of stretch).
    """
    if stretch <= at:
        kind, size = _class(text, at, classes)
        if kind & NUMBER:
            stop = at + size
            for _ in range(2):
                if stop < end:
                    kind, size = _class(text, stop, classes)
                    if kind & NUMBER == 0:
                        break
                    stop += size
            return stop, stop
        inside = kind & KANA_HAN
        stretch = at + size
        while stretch < end:
            kind, size = _class(text, stretch, classes)
            if kind & NUMBER or kind & KANA_HAN != inside:
                break
            stretch += size
    stop = _v3_third(text, at, stretch, classes)
    if stop > at:
        return stop, stretch
    stop = at
    while True:  # a piece that nothing matches ends where something does
        stop += _class(text, stop, classes)[1]
        if stop >= stretch or _v3_third(text, stop, stretch, classes) > stop:
            return stop, stretch


@innermost
def _contraction(text, at, end, any_case):
    """End of an English contraction ('s, 't, 're, 've, 'm, 'll, 'd) at the apostrophe `at`; `at` if there is none."""
    if at + 1 >= end:
        return at
    fold = np.uint8(32) if any_case else np.uint8(0)
    one = text[at + 1] | fold
    if one == 115 or one == 116 or one == 109 or one == 100:
        return at + 2
    if any_case and at + 2 < end and text[at + 1] == 0xC5 and text[at + 2] == 0xBF:
        return at + 3  # the long s folds to s
    if at + 2 < end:
        two = text[at + 2] | fold
        if (one == 114 and two == 101) or (one == 118 and two == 101) or (one == 108 and two == 108):
            return at + 3
    return at


@innermost
def _run_of_none(text, at, end, classes, unwanted):
    while at < end:
        kind, size = _class(text, at, classes)
        if kind & unwanted:
            break
        at += size
    return at


@innermost
def _gpt2(text, at, end, classes):
    if text[at] == 39:
        stop = _contraction(text, at, end, False)
        if stop > at:
            return stop
    kind, size = _class(text, at, classes)
    after = at + size
    if text[at] == 32 and after < end:
        following, width = _class(text, after, classes)
        if following & SPACE == 0:
            kind, after = following, after + width
    if kind & LETTER:
        return _run(text, after, end, classes, LETTER)
    if kind & NUMBER:
        return _run(text, after, end, classes, NUMBER)
    if kind & SPACE == 0:
        return _run_of_none(text, after, end, classes, SPACE | _ALPHANUMERIC)
    return _white(text, at, end, classes, False)


@innermost
def _cl100k(text, at, end, classes):
    if text[at] == 39:
        stop = _contraction(text, at, end, True)
        if stop > at:
            return stop
    kind, size = _class(text, at, classes)
    after = at + size
    if kind & LETTER:
        return _run(text, after, end, classes, LETTER)
    if kind & NUMBER == 0 and not _is_newline(text[at]) and after < end:
        following, width = _class(text, after, classes)
        if following & LETTER:
            return _run(text, after + width, end, classes, LETTER)
    if kind & NUMBER:
        for _ in range(2):
            if after < end:
                kind, size = _class(text, after, classes)
                if kind & NUMBER == 0:
                    break
                after += size
        return after
    if text[at] == 32 and after < end:
        following, width = _class(text, after, classes)
        if following & (SPACE | _ALPHANUMERIC) == 0:
            kind, after = following, after + width
    if kind & SPACE == 0:
        return _newlines(text, _run_of_none(text, after, end, classes, SPACE | _ALPHANUMERIC), end)
    return _white(text, at, end, classes, True)


@innermost
def next_cut(pattern, text, at, end, classes, stretch):
    """End of the piece of `text` (uint8, valid UTF-8) that starts at byte `at` of a document that ends at `end`.

    Args:
        pattern: DEEPSEEK_V3, GPT2 or CL100K.
        classes: `character_classes()`.
        stretch: the second value of the call before; `at` at the start of a document.

    Returns:
        (end of the piece, value to pass on as `stretch`).
    """
    if pattern == DEEPSEEK_V3:
        return _v3(text, at, end, classes, stretch)
    stop = _gpt2(text, at, end, classes) if pattern == GPT2 else _cl100k(text, at, end, classes)
    return stop, stop
