"""Which tokenizers gigatoken encodes as `tokenizers` does.

It knows pre-tokenizers by the text of their patterns and passes over much of what stands beside them (other steps, a
Split's behaviour, `use_regex`), so that only what is listed here, and held by tests, is left to it.

One difference is left: its Unicode is 17, that of `tokenizers` 16, so that the 4,803 characters that came in between
(CJK extension J, some rare scripts) are letters, marks or symbols to it where they are unassigned to `tokenizers`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shoal_data.tokenizer.patterns import PATTERNS
from shoal_data.tokenizer.rules import BYTE_TOKENS, Rules, flat

__all__ = ["FAST_PATTERNS", "why_slow"]

_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LINES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"

#: name -> the splits, applied in order, each Isolated, as published in tokenizer.json files
FAST_PATTERNS: dict[str, tuple[str, ...]] = {
    **PATTERNS,  # cl100k's is also that of Llama 3 and OLMo 2
    "qwen2": (_CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _LINES,),
    "qwen3.5": (_CONTRACTION + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + _LINES,),
    "o200k": (_CASED % (f"{_CONTRACTION}?", f"{_CONTRACTION}?") + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _LINES,),
    "nemotron": (_CASED % ("", "") + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _LINES,),
}


def why_slow(config: Mapping[str, Any], rules: Rules) -> str:
    """Why gigatoken cannot encode this tokenizer (one that `rules_of` takes) rightly; empty if it can."""
    model = config["model"]
    pairs = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in model["merges"]]
    steps = flat(config.get("pre_tokenizer"), "pretokenizers")
    if len(set(pairs)) < len(pairs):  # of which gigatoken takes the first, and `tokenizers` the last
        return "it lists a merge twice"
    if rules.byte_level:
        if model.get("byte_fallback"):
            return "it is byte-level and has byte fallback too"
        known = _has_fast_pattern(steps)
        other = _competing(pairs, model["vocab"])
    else:
        known = _has_fast_spaces(steps, rules)
        other = _unlike_fallback(model, pairs)
    return other or _unlike_added(config, rules) if known else "its pre-tokenizer is none that gigatoken has"


def _has_fast_pattern(steps: Sequence[Mapping[str, Any]]) -> bool:
    *splits, last = steps
    if last["type"] != "ByteLevel":
        return False
    if not splits:
        return bool(last.get("use_regex", True))
    patterns = tuple(step["pattern"].get("Regex") for step in splits if step["type"] == "Split")
    plain = all(step["behavior"] == "Isolated" and not step["invert"] for step in splits if step["type"] == "Split")
    return (
        plain
        and len(patterns) == len(splits)
        and patterns in FAST_PATTERNS.values()
        and not last.get("use_regex", True)
    )


def _unlike_added(config: Mapping[str, Any], rules: Rules) -> str:
    """gigatoken looks for added tokens once, where `tokenizers` looks before and after it normalizes, and past the
    control tokens that it has found and left as text."""
    entries = [entry for entry in config.get("added_tokens") or [] if entry["content"] in rules.added]
    if any(entry.get("single_word") for entry in entries):
        return "some of its added tokens are whole words (single_word)"
    if len({bool(entry.get("normalized")) for entry in entries}) > 1:
        return "some of its added tokens are cut out before normalization and some after"
    for special in rules.special:
        if any(_begins_within(special, content) for content in rules.added):
            return f"its special token {special!r} overlaps an added token that is text"
    return ""


def _begins_within(whole: str, part: str) -> bool:
    """Whether an occurrence of `part` can begin within one of `whole` that it does not hold."""
    return part in whole or any(whole.endswith(part[:size]) for size in range(1, min(len(whole), len(part))))


def _competing(pairs: Sequence[tuple[str, ...]], vocab: Mapping[str, int]) -> str:
    """gigatoken ranks the merges of a byte-level vocabulary by the id they make, where those ids ascend."""
    ids = [vocab["".join(pair)] for pair in pairs]
    if any(first > second for first, second in itertools.pairwise(ids)):
        return ""  # it ranks them as listed
    for at in range(1, len(pairs)):
        (left, right), (other_left, other_right) = pairs[at - 1], pairs[at]
        if ids[at - 1] == ids[at] and (left == other_right or right == other_left):
            return "two of its merges that can meet make the same token"
    return ""


def _has_fast_spaces(steps: Sequence[Mapping[str, Any]], rules: Rules) -> bool:
    """Whether a vocabulary of characters is used in one of SentencePiece's ways."""
    if not steps:
        return True
    gemma = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    return len(steps) == 1 and (steps[0]["type"] == "Metaspace" or (rules.spaces and steps[0] == gemma))


def _unlike_fallback(model: Mapping[str, Any], pairs: Iterable[tuple[str, ...]]) -> str:
    """gigatoken knows a token of a byte and the character of that byte by the same text."""
    if model.get("ignore_merges"):
        return "it has byte fallback and takes whole words without merges (ignore_merges)"
    if any(part in BYTE_TOKENS for pair in pairs for part in pair):
        return "it merges tokens of single bytes"
    return ""
