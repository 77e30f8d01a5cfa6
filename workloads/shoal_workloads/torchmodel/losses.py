"""What a user's `loss` returns, held against what is asked of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from shoal_core.errors import UserError

if TYPE_CHECKING:
    from shoal_workloads.torchmodel.workload import TorchWorkload

__all__ = ["Loss", "loss_of"]


@dataclass(frozen=True)
class Loss:
    """`total`: the sum of the losses, to be differentiated; `count`: what their mean divides by, float64; `figures`:
    both and the workload's further figures, (2 + n,) float64."""

    total: torch.Tensor
    count: torch.Tensor
    figures: torch.Tensor


def loss_of(workload: TorchWorkload, model: nn.Module, batch: Any, device: str) -> Loss:
    """Ask for the loss of a batch.

    Raises:
        UserError: what is returned is no sum and count.
    """
    with torch.autocast(device, torch.bfloat16, enabled=workload.config.precision == "bf16"):
        found = workload.loss(model, batch)
    who = f"{type(workload).__name__}.loss"
    wanted = 2 if not workload.figures else 3
    if not isinstance(found, tuple) or len(found) != wanted:
        more = "" if wanted == 2 else f" and the sums of its figures ({', '.join(workload.figures)}) by name"
        raise UserError(
            f"{who} returned {_words(found)}",
            f"return the sum of the losses over the batch and what their mean divides by, a tuple of both{more}",
        )
    total, count, *others = found
    if not isinstance(total, torch.Tensor) or total.dim():
        raise UserError(
            f"{who}: its sum is {_words(total)}, not one number", "sum it over the batch: reduction='sum', or .sum()"
        )
    if torch.is_grad_enabled() and not total.requires_grad:
        raise UserError(
            f"{who}: its sum hangs on no parameter that is trained",
            "make it of what the model returns, also where nothing of a batch counts (times 0 then)",
        )
    extra = others[0] if others else {}
    if not isinstance(extra, Mapping) or set(extra) != set(workload.figures):
        told = sorted(map(str, extra)) if isinstance(extra, Mapping) else _words(extra)
        raise UserError(
            f"{who} returned the figures {told}, the class names {sorted(workload.figures)}",
            "return those, a mapping from their names to their sums",
        )
    values = {"sum": total, "count": count, **{f"figure {name}": extra[name] for name in workload.figures}}
    for name, value in values.items():
        if value.dim() if isinstance(value, torch.Tensor) else not isinstance(value, Real):
            raise UserError(f"{who}: its {name} is {_words(value)}, not one number", "add it up over the batch: .sum()")
    rows = [torch.as_tensor(value, device=total.device).detach().double().reshape(()) for value in values.values()]
    return Loss(total.reshape(()).float(), rows[1], torch.stack(rows))


def _words(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor {list(value.shape)}"
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    return type(value).__name__
