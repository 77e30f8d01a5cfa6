"""Special tokens: their names, and which one plays which part."""

from __future__ import annotations

from collections.abc import Mapping

from shoal_data.errors import InputError

__all__ = ["BOS", "EOS", "FIM", "SPECIAL_TOKENS", "end_of_text"]

BOS = "<|begin_of_sentence|>"
EOS = "<|end_of_sentence|>"
FIM = ("<|fim_begin|>", "<|fim_hole|>", "<|fim_end|>")
#: what `tokenizer-train` gives the lowest ids, in this order
SPECIAL_TOKENS = (BOS, EOS, *FIM)

# End-of-text tokens of tokenizers in use: Shoal, DeepSeek-V3, GPT-2 and cl100k, Llama 3, Qwen.
_ENDS = (EOS, "<｜end▁of▁sentence｜>", "<|endoftext|>", "<|end_of_text|>", "<|eos_token|>", "</s>")


def end_of_text(special: Mapping[str, int]) -> int:
    """Id of the token that ends a document.

    Raises:
        InputError: the tokenizer has none that is known.
    """
    for name in _ENDS:
        if name in special:
            return special[name]
    raise InputError(
        f"the tokenizer has no end-of-text token (looked for {', '.join(_ENDS)})",
        "train one with `shoal data tokenizer-train`, or add such a token to its added_tokens",
    )
