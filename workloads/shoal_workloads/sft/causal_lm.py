"""A causal language model of transformers out of its folder: its config, and the module without its values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from shoal_core.errors import UserError

__all__ = ["PACKED", "build", "config_of"]

PACKED = ("llama", "mistral", "qwen2", "qwen3")
"""Model types of transformers whose attention keeps to one conversation of a packed sample, by positions that begin
again (`transformers.masking_utils`): held against conversations by themselves in the tests. In another, conversations
might see each other, and nothing would tell."""


def config_of(folder: str) -> Any:
    """transformers' config of the model in `folder`.

    Raises:
        UserError: transformers is missing; there is none; or a model of this type is not fine-tuned.
    """
    try:
        from transformers import AutoConfig
    except ImportError as error:
        raise UserError(f"fine-tuning needs transformers: {error}", "pip install 'shoal[hf]' on every node") from error
    if not (Path(folder) / "config.json").is_file():
        raise UserError(
            f"workload.model: {folder} has no config.json", "name a folder of a Hugging Face model that every node sees"
        )
    try:
        found = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}/config.json: {error}", "mend it, or name another model") from error
    if found.model_type not in PACKED:
        raise UserError(
            f"{folder}: a model of type {found.model_type!r}; fine-tuned are {', '.join(PACKED)}",
            "for DeepSeek-V3's architecture `shoal import` starts a run of shoal_workloads.pretrain:Pretrain"
            if found.model_type == "deepseek_v3"
            else "name a model of one of these types, or write a TorchWorkload of your own (docs/your-model.md)",
        )
    return found


def build(config: Any, *, recompute: bool) -> nn.Module:
    """The model with random values in float32; `recompute`: blocks compute their activations again in backward."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    if recompute:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model
