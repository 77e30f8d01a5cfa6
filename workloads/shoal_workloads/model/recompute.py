"""Recomputes norms and MLA's up-projections in backward instead of keeping their outputs (report, section 3.2.3).

Nothing that costs much is done twice: the outputs of the down-projections and of the attention core are kept.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from shoal_workloads.model.mla import MLA

__all__ = ["attention_recomputed"]

aten = torch.ops.aten
PRODUCTS = {aten.mm.default, aten._scaled_mm.default}
ATTENTION = {
    torch.ops.shoal.attend_in_blocks.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
}


def _keep(operations: set[Any], context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in operations else CheckpointPolicy.PREFER_RECOMPUTE


def _run(function: Any, keep: set[Any], *args: torch.Tensor) -> Any:
    contexts = partial(create_selective_checkpoint_contexts, partial(_keep, keep))
    return checkpoint(function, *args, use_reentrant=False, context_fn=contexts, preserve_rng_state=False)


def attention_recomputed(norm: nn.Module, attention: MLA, x: torch.Tensor, rope: torch.Tensor) -> torch.Tensor:
    """attention(norm(x), rope), keeping x, the latents and the attention's output. x: (B, T, D) -> (B, T, D)."""
    query, latent = _run(lambda inner: attention.compress(norm(inner)), PRODUCTS, x)
    return attention.wo(_run(attention.core, ATTENTION, query, latent, rope))
