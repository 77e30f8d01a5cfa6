"""Which layers each pipeline stage holds, so that no stage works longer than it must.

The embedding is at the first stage; the output head and the MTP modules, which use the head again, at the last. Work is
counted in forward FLOPs a token; backward is twice that in every part, so the balance is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise

from shoal_core.errors import UserError
from shoal_workloads.model.config import ModelConfig
from shoal_workloads.params import count_parameters

__all__ = ["head_flops", "layer_flops", "split", "stage_flops", "stage_layers"]


def layer_flops(config: ModelConfig, layer: int, seq_len: int = 4096) -> float:
    """Forward FLOPs a token of one layer of the main model: 2 a weight that the token meets, and causal attention over
    the half of `seq_len` tokens that it sees on average. Norms and RoPE are left out."""
    counted = count_parameters(config)
    core = config.n_heads * (config.d_head + config.d_rope + config.d_v) * seq_len
    ffn = counted.dense_ffn if layer < config.n_dense else counted.moe_active
    return 2.0 * (counted.attention + ffn) + core


def head_flops(config: ModelConfig, seq_len: int = 4096) -> float:
    """Forward FLOPs a token of the output head and of all MTP modules, each with a MoE block and the head again."""
    head = 2.0 * config.vocab_size * config.d_model
    block = layer_flops(config, config.n_dense, seq_len)
    return head + config.mtp_depth * (4.0 * config.d_model**2 + block + head)


def split(costs: Sequence[float], stages: int, last: float = 0.0) -> tuple[int, ...]:
    """How many of the layers, in order, each stage holds: the largest stage is as small as can be, and of all such
    splits this one has the smallest sum of squares.

    Args:
        costs: of every layer.
        last: what the last stage does besides; where it does something, it may hold no layer.

    Raises:
        UserError: fewer layers than stages that want one.
    """
    wanted = stages - (last > 0)
    if stages < 1 or len(costs) < wanted:
        raise UserError(
            f"pp: {len(costs)} layers do not fill {stages} pipeline stages",
            f"from 1 to {len(costs) + (last > 0)} stages",
        )
    smallest = _best(costs, stages, last, max)[0]
    limit = smallest * (1 + 1e-9)
    return _best(costs, stages, last, lambda total, size: total + size**2 if size <= limit else math.inf)[1]


def _best(
    costs: Sequence[float], stages: int, last: float, add: Callable[[float, float], float]
) -> tuple[float, tuple[int, ...]]:
    """The split whose stages' sizes, put together by `add` from 0, give the least; that and the layers a stage."""
    sums = [0.0, *accumulate(costs)]
    row: list[tuple[float, tuple[int, ...]]] = [(0.0, ()), *[(math.inf, ())] * len(costs)]  # by layers given away
    for stage in range(1, stages + 1):
        extra = last if stage == stages else 0.0
        least = 0 if extra else 1
        row = [
            min(
                (add(row[start][0], sums[end] - sums[start] + extra), (*row[start][1], end - start))
                for start in range(end - least + 1)
            )
            if end >= least
            else (math.inf, ())
            for end in range(len(costs) + 1)
        ]
    return row[-1]


@lru_cache(maxsize=256)
def stage_layers(config: ModelConfig, stages: int, seq_len: int = 4096) -> tuple[range, ...]:
    """The layers of the main model that each stage holds; the last may be left with the head and MTP alone.

    Raises:
        UserError: fewer layers than stages that want one.
    """
    costs = [layer_flops(config, layer, seq_len) for layer in range(config.n_layers)]
    ends = [0, *accumulate(split(costs, stages, head_flops(config, seq_len)))]
    return tuple(range(start, end) for start, end in pairwise(ends))


def stage_flops(config: ModelConfig, stages: Sequence[range], seq_len: int = 4096) -> list[float]:
    """Forward FLOPs a token of every stage."""
    work = [sum(layer_flops(config, layer, seq_len) for layer in layers) for layers in stages]
    work[-1] += head_flops(config, seq_len)
    return work
