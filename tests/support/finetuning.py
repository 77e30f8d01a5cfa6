"""A tiny causal language model in a Hugging Face folder, and how transformers alone would fine-tune it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.support.conversations import MARKED, write_tokenizer

SHAPE = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,  # so large that what a token attends to shows in the loss
}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 16},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 8},
}


def write_model(folder: Path, kind: str = "llama", seed: int = 7, **changes: Any) -> Path:
    """A model with random values and its tokenizer, as `save_pretrained` writes them."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **{**SHAPE, **KINDS[kind], **changes})
    AutoModelForCausalLM.from_config(config).save_pretrained(str(folder))
    return write_tokenizer(folder, MARKED)


def load(folder: Path) -> Any:
    """The model as transformers reads it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).train()


def one_by_one(folder: Path, rows: list[dict[str, Any]]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Tokens and labels (-100 off the answers) of each conversation by itself, (1, n), by transformers alone."""
    from transformers import AutoTokenizer

    of: Any = AutoTokenizer.from_pretrained(str(folder))
    for row in rows:
        whole = of.apply_chat_template(row["messages"], return_dict=True, return_assistant_tokens_mask=True)
        ids = np.array(whole["input_ids"])
        labels = np.where(np.array(whole["assistant_masks"], bool), ids, -100)
        yield torch.from_numpy(ids)[None], torch.from_numpy(labels)[None]


def summed_loss(model: Any, ids: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, int]:
    """transformers' own loss of one conversation, as a sum and the tokens that it is over."""
    count = int((labels[:, 1:] != -100).sum())
    return model(input_ids=ids, labels=labels).loss * count, count
