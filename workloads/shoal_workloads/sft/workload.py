"""The workload: packed conversations, loss on answers, a model of transformers.

A micro-batch is one row of tokens: its samples stand on end, and what keeps conversations apart within a sample keeps
samples apart too, so that nothing is padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from shoal_core.errors import UserError
from shoal_data.chat.samples import IGNORED, ChatManifest, PackedSample, PackedSamples
from shoal_data.chat.template import ChatTokenizer
from shoal_data.place import place_at
from shoal_workloads.places import check_from_root
from shoal_workloads.sft.causal_lm import build, config_of
from shoal_workloads.torchmodel.config import TorchConfig
from shoal_workloads.torchmodel.workload import TorchWorkload

__all__ = ["Sft"]


class Sft(TorchWorkload):
    """Fine-tunes a checkpoint in Hugging Face's format on what `shoal data chat` prepared."""

    class Config(TorchConfig):
        """See docs/fine-tuning.md."""

        model: str = Field(description="folder with config.json and safetensors, which every node sees")
        data: str = Field(description="packed conversations to train on: what `shoal data chat --out` wrote")
        heldout: str | None = Field(default=None, description="the same to evaluate on")
        recompute: bool = Field(
            default=False,
            description="compute activations of a block again in backward: less memory, a third more work",
        )

    def build_model(self, config: Any) -> nn.Module:
        """See `TorchWorkload`."""
        return build(self._model, recompute=config.recompute)

    def weights(self, config: Any) -> str | None:
        """See `TorchWorkload`: the checkpoint's."""
        return str(config.model)

    def dataset(self, config: Any) -> PackedSamples:
        """See `TorchWorkload`."""
        return self._fitting("data", config.data)

    def heldout(self, config: Any) -> PackedSamples | None:
        """See `TorchWorkload`."""
        return None if config.heldout is None else self._fitting("heldout", config.heldout)

    def preflight(self, workers_per_cell: int) -> dict[str, Any]:
        """See `TorchWorkload`."""
        for field in ("model", "data", "heldout"):
            if (address := getattr(self.config, field)) is not None:
                check_from_root(f"workload.{field}", address)
        about = super().preflight(workers_per_cell)
        self._check_tokenizers()
        return about

    def _check_tokenizers(self) -> None:
        """Raises UserError where the model, what is trained on and what is held out have not all the same."""
        config = self.config
        made = ChatManifest.read(place_at(config.data), check=False)
        if config.heldout is not None:
            other = ChatManifest.read(place_at(config.heldout), check=False)
            if (other.tokenizer, other.options["template"]) != (made.tokenizer, made.options["template"]):
                raise UserError(
                    f"workload.heldout: {config.heldout} was prepared with another tokenizer or chat template than "
                    f"{config.data}",
                    "prepare both with the same --tokenizer and --template",
                )
        own = (Path(config.model) / "tokenizer_config.json").is_file()
        if own and ChatTokenizer(config.model).digest != made.tokenizer:
            raise UserError(
                f"workload.data: {config.data} was prepared with another tokenizer than that in {config.model}",
                f"prepare it with --tokenizer {config.model}",
            )

    def collate(self, items: list[PackedSample]) -> dict[str, torch.Tensor]:
        """Samples on end: `input_ids`, `labels` and `position_ids`, each (1, tokens)."""
        return {name: _row([getattr(item, name) for item in items]) for name in ("input_ids", "labels", "position_ids")}

    def loss(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
        """Cross-entropy of the tokens of answers, summed, and how many they are.

        Only what predicts them becomes logits. The first token of a conversation has no label, so that nothing is
        predicted from the conversation before it.
        """
        wanted = batch["labels"][0, 1:]
        where = (wanted != IGNORED).nonzero().flatten()
        logits = model(
            input_ids=batch["input_ids"],
            position_ids=batch["position_ids"],  # without a mask: transformers finds conversations by these
            use_cache=False,
            logits_to_keep=where,
        ).logits
        return F.cross_entropy(logits[0].float(), wanted[where], reduction="sum"), len(where)

    @cached_property
    def _model(self) -> Any:
        return config_of(self.config.model)

    def _fitting(self, name: str, address: str) -> PackedSamples:
        """Raises UserError where the model has no such tokens or positions."""
        found = PackedSamples(address)
        manifest = found.manifest
        for what, have, most in (
            ("token ids", manifest.vocab_size, self._model.vocab_size),
            ("positions (seq_len)", manifest.seq_len, self._model.max_position_embeddings),
        ):
            if have > most:
                raise UserError(
                    f"workload.{name}: {address} has {have:,} {what}, the model in {self.config.model} {most:,}",
                    f"prepare it again: shoal data chat --tokenizer {self.config.model} --seq-len {most} at most ...",
                )
        return found


def _row(parts: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts))[None]
