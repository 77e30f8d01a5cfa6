"""What tests of the path on a GPU share: a small model, and a world whose other members are not there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from shoal_workloads.config import PretrainConfig

__all__ = ["CONFIG", "TOKENS", "WORKERS", "evenly", "nobody_else"]

MODEL = {
    "vocab_size": 64, "d_model": 32, "n_layers": 2, "n_dense": 1, "n_heads": 2, "d_head": 16, "d_rope": 8, "d_v": 16,
    "d_kv": 16, "d_q": 16, "d_ffn": 32, "d_expert": 16, "n_experts": 8, "top_k": 2, "n_groups": 2, "topk_groups": 1,
    "n_shared": 1, "mtp_depth": 1,
}  # fmt: skip
CONFIG = PretrainConfig.model_validate(
    {
        "model": MODEL,
        "data": {"corpus": "none", "seq_len": 16},
        "batch": {"global_batch": 4, "micro_batch": 1},
        "precision": "bf16",
        "device": "cuda",
        "ema_decay": 0.9,
    }
)
TOKENS, WORKERS = 32, 4


def evenly(counts: torch.Tensor) -> list[list[int]]:
    """Numbers of rows (V, P) as if every worker sent and got the same."""
    return [[TOKENS * CONFIG.model.top_k // WORKERS] * WORKERS] * len(counts)


@contextmanager
def nobody_else(workers: int) -> Iterator[None]:
    """A world of which this process is rank 1 and whose other members are not there: collectives do nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=workers)
    try:
        yield
    finally:
        dist.destroy_process_group()
