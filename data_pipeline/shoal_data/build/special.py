"""Special tokens: their names, and which one plays which part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shoal_data.errors import InputError

__all__ = ["BOS", "EOS", "FIM", "SPECIAL_TOKENS", "beginning_of_text", "end_of_text", "fim_sentinels"]

BOS = "<|begin_of_sentence|>"
EOS = "<|end_of_sentence|>"
FIM = ("<|fim_begin|>", "<|fim_hole|>", "<|fim_end|>")
#: what `tokenizer-train` gives the lowest ids, in this order
SPECIAL_TOKENS = (BOS, EOS, *FIM)

# End-of-text tokens of tokenizers in use: Shoal, DeepSeek-V3, GPT-2 and cl100k, Llama 3, Qwen.
_ENDS = (EOS, "<｜end▁of▁sentence｜>", "<|endoftext|>", "<|end_of_text|>", "<|eos_token|>", "</s>")
_BEGINNINGS = (BOS, "<｜begin▁of▁sentence｜>", "<|begin_of_text|>", "<s>")
_FIM = (
    (FIM[0], "<｜fim▁begin｜>", "<|fim_prefix|>"),
    (FIM[1], "<｜fim▁hole｜>", "<|fim_suffix|>"),
    (FIM[2], "<｜fim▁end｜>", "<|fim_middle|>"),
)


def end_of_text(special: Mapping[str, int]) -> int:
    """Id of the token that ends a document.

    Raises:
        InputError: the tokenizer has none that is known.
    """
    return _first(special, _ENDS, "end-of-text")


def beginning_of_text(special: Mapping[str, int]) -> int:
    """Id of the token that begins a document.

    Raises:
        InputError: the tokenizer has none that is known.
    """
    return _first(special, _BEGINNINGS, "beginning-of-text")


def fim_sentinels(special: Mapping[str, int]) -> tuple[int, int, int]:
    """Ids of the fill-in-the-middle tokens: begin, hole, end.

    Raises:
        InputError: the tokenizer has not all three.
    """
    begin, hole, end = (_first(special, names, "fill-in-the-middle") for names in _FIM)
    return begin, hole, end


def _first(special: Mapping[str, int], names: Sequence[str], what: str) -> int:
    for name in names:
        if name in special:
            return special[name]
    raise InputError(
        f"the tokenizer has no {what} token (looked for {', '.join(names)})",
        "train one with `shoal data tokenizer-train`, or add such a token to its added_tokens",
    )
