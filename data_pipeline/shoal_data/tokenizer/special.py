"""Special tokens: their names, and which one plays which part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shoal_core.errors import UserError

__all__ = ["BOS", "EOS", "FIM", "SPECIAL_TOKENS", "beginning_of_text", "end_of_text", "fim_sentinels", "is_control"]

BOS = "<|begin_of_sentence|>"
EOS = "<|end_of_sentence|>"
FIM = ("<|fim_begin|>", "<|fim_hole|>", "<|fim_end|>")
#: what `tokenizer-train` gives the lowest ids, in this order
SPECIAL_TOKENS = (BOS, EOS, *FIM)

# What tokenizers in use call the token that ends a text: Shoal; DeepSeek-V3; GPT-2, cl100k, o200k, GPT-NeoX, OLMo, Phi,
# Falcon, StarCoder, Qwen and GLM; Llama 3 and 4; Llama 2, Mistral, RoBERTa, T5 and BLOOM; Gemma; Grok; Command R; Kimi;
# Hunyuan; MiniMax. Where a file has several, the first of this list ends documents.
_ENDS = (
    EOS,
    "<｜end▁of▁sentence｜>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|eos_token|>",
    "<|eos|>",
    "<EOS_TOKEN>",
    "[EOS]",
    "<｜hy_eos｜>",
    "<end_of_document>",
    "<|im_end|>",
)
_BEGINNINGS = (
    BOS,
    "<｜begin▁of▁sentence｜>",
    "<|begin_of_text|>",
    "<s>",
    "<bos>",
    "<|startoftext|>",
    "<|bos|>",
    "<BOS_TOKEN>",
    "[BOS]",
    "<beginning_of_document>",
)
_FIM = (
    (FIM[0], "<｜fim▁begin｜>", "<|fim_prefix|>", "<fim_prefix>", "<fim-prefix>"),
    (FIM[1], "<｜fim▁hole｜>", "<|fim_suffix|>", "<fim_suffix>", "<fim-suffix>"),
    (FIM[2], "<｜fim▁end｜>", "<|fim_middle|>", "<fim_middle>", "<fim-middle>"),
)
_CONTROL = frozenset((*_ENDS, *_BEGINNINGS, *(name for names in _FIM for name in names)))


def is_control(name: str) -> bool:
    """Whether an added token of this name has a part to play in the stream, even if its file calls it plain text."""
    return name in _CONTROL


def end_of_text(special: Mapping[str, int]) -> int:
    """Id of the token that ends a document.

    Raises:
        UserError: the tokenizer has none that is known.
    """
    return _first(special, _ENDS, "end-of-text")


def beginning_of_text(special: Mapping[str, int]) -> int:
    """Id of the token that begins a document.

    Raises:
        UserError: the tokenizer has none that is known.
    """
    return _first(special, _BEGINNINGS, "beginning-of-text")


def fim_sentinels(special: Mapping[str, int]) -> tuple[int, int, int]:
    """Ids of the fill-in-the-middle tokens: begin, hole, end.

    Raises:
        UserError: the tokenizer has not all three.
    """
    begin, hole, end = (_first(special, names, "fill-in-the-middle") for names in _FIM)
    return begin, hole, end


def _first(special: Mapping[str, int], names: Sequence[str], what: str) -> int:
    for name in names:
        if name in special:
            return special[name]
    offered = ", ".join(sorted(special)[:20]) or "none"
    raise UserError(
        f"the tokenizer has no {what} token that is known (looked for {', '.join(names)}; its special tokens: "
        f"{offered})",
        "train one with `shoal data tokenizer-train`, or rename the one that plays this part in its added_tokens (and "
        "in its vocabulary, if it is there)",
    )
