"""What the examples come to in one process of plain PyTorch: an own loop, torch's AdamW, means over whole batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

__all__ = ["losses"]


def losses(
    model: nn.Module,
    mean: Callable[[nn.Module, Any], Tensor],
    dataset: Any,
    batches: Sequence[Sequence[int]],
    *,
    lr: float,
    warmup_steps: int,
    weight_decay: float = 0.01,
    clip: float = 1.0,
) -> list[float]:
    """Train `model` on these batches (indices of `dataset`), one a step. `mean`: the loss of a batch. The learning rate
    climbs to `lr` in `warmup_steps`, and stays; vectors do not decay. Returns the loss of every step."""
    decay = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decay, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr)
    found = []
    for step, indices in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / warmup_steps)
        loss = mean(model, default_collate([dataset[index] for index in indices]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        found.append(loss.item())
    return found
