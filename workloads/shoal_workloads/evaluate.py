"""Bits per byte of a checkpoint on a tokenized corpus: comparable across tokenizers and with general compressors."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch

from shoal_core.errors import UserError
from shoal_workloads.checkpoint import Checkpoint
from shoal_workloads.model.deepseek import DeepSeekV3
from shoal_workloads.parallel.layout import Layout, shard_model
from shoal_workloads.parallel.shards import ParamShard
from shoal_workloads.precision.choose import choose

__all__ = ["bits_per_byte", "build_model", "fill_model"]


def build_model(checkpoint: Checkpoint, *, ema: bool = False, device: str = "cpu") -> DeepSeekV3:
    """The model of a checkpoint, whole, in this process, ready to evaluate.

    Raises:
        UserError: a tensor is missing, or has another shape than the configuration says.
    """
    dtype, products = choose(checkpoint.config.precision, device)
    model, shards = shard_model(checkpoint.config.model, Layout(), device=device, dtype=dtype, products=products)
    fill_model(checkpoint, model, shards, ema=ema)
    return model.eval()


def fill_model(checkpoint: Checkpoint, model: DeepSeekV3, shards: list[ParamShard], *, ema: bool = False) -> None:
    """Copy parameters (or averages) and router biases into a model that one process holds whole.

    Raises:
        UserError: a tensor is missing, or has another shape than the configuration says.
    """
    weights = checkpoint.weights(ema=ema)
    targets = {shard.name: shard.local for shard in shards}
    targets |= {f"router_bias.{i}": moe.router.bias for i, moe in enumerate(model.moe_layers())}
    for name, target in targets.items():
        if name not in weights:
            raise UserError(f"{checkpoint.address}: tensor {name} is missing", "use a checkpoint of this model")
        if weights[name].shape != target.shape:
            raise UserError(
                f"{checkpoint.address}: {name} has shape {list(weights[name].shape)}, expected {list(target.shape)}"
            )
        target.copy_(weights[name])


@torch.no_grad()
def bits_per_byte(
    checkpoint: str | Path,
    corpus: str | Path,
    *,
    samples: int | None = None,
    ema: bool = False,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Evaluate on the first `samples` samples of `corpus` (all of its samples if None), in the order of the text.

    Returns:
        `bpb`, `loss` (nats a token), `tokens`, `bytes` (of text predicted), `samples`.

    Raises:
        UserError: no whole checkpoint or corpus, a corpus of another tokenizer, or a loss that is not finite.
    """
    from shoal_data.reading.reader import Corpus

    source, data = Checkpoint(checkpoint), Corpus.open(corpus)
    source.fits(data)
    length, micro = source.config.data.seq_len, source.config.batch.micro_batch
    reader = data.reader(length, 0)
    wanted = reader.samples if samples is None else min(samples, reader.samples)
    model = build_model(source, ema=ema, device=device)
    nats = size = 0.0
    for first in range(0, wanted, micro):
        ids = range(first, min(first + micro, wanted))
        tokens, lengths = reader.read(ids)
        reader.prefetch(range(ids.stop, min(ids.stop + micro, wanted)))
        nats += float(model(torch.from_numpy(tokens).to(device), mtp=False).lm)
        size += float(lengths.sum())
        if progress is not None:
            progress(ids.stop, wanted)
    if not math.isfinite(nats):
        raise UserError(f"{checkpoint}: its loss on {corpus} is {nats}", "its training had diverged: use an older one")
    count = wanted * length
    return {
        "bpb": nats / math.log(2) / size,
        "loss": nats / count,
        "tokens": float(count),
        "bytes": size,
        "samples": float(wanted),
    }
