"""Initial values of local shards, which depend on the seed and the parameter's name alone, not on how the cell is laid
out: norm weights one, everything else normal (report, section 4.2: standard deviation 0.006).

By matrix, each is drawn whole from its own generator and this worker's part kept; of stacked experts each by itself, so
that nobody draws experts it does not hold. By element, each value is a hash of its place in the whole, so that a worker
draws its own alone: what a large model wants, whose matrices would otherwise be drawn whole by everybody.

Shapes of parameters: vectors (D,), matrices (O, I), stacked experts (E, O, I).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias

import torch

from shoal_workloads.parallel.shards import ParamShard

__all__ = ["Draw", "init_shards"]

Draw: TypeAlias = Literal["matrix", "element"]

ELEMENTS = 1 << 22  # hashed at once
GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""Of splitmix64 (Steele, Lea and Flood, 2014)."""


def init_shards(shards: Iterable[ParamShard], seed: int, std: float, draw: Draw = "matrix") -> None:
    """Set initial values, normal with `std`, drawn by matrix or by element."""
    fill = _fill_by_matrix if draw == "matrix" else _fill_by_element
    for shard in shards:
        local = shard.local
        if len(shard.shape) == 1:
            local.fill_(1.0)
        elif len(shard.shape) == 2:
            fill(local, shard.shape, shard.first, _key(shard.name, seed), std)
        else:
            for i in range(len(local)):
                key = _key(f"{shard.name}.{shard.first[0] + i}", seed)
                fill(local[i], shard.shape[1:], shard.first[1:], key, std)


def _key(name: str, seed: int) -> int:
    """63 bits."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little") >> 1


def _fill_by_matrix(local: torch.Tensor, shape: Sequence[int], first: Sequence[int], key: int, std: float) -> None:
    whole = torch.empty(tuple(shape)).normal_(0.0, std, generator=torch.Generator().manual_seed(key))
    for dim, start in enumerate(first):
        whole = whole.narrow(dim, start, local.shape[dim])
    local.copy_(whole)


def _fill_by_element(local: torch.Tensor, shape: Sequence[int], first: Sequence[int], key: int, std: float) -> None:
    """Box and Muller's transform of a hash's two halves, in float64, where the last bits, in which devices differ, are
    rounded away."""
    rows = max(1, ELEMENTS // max(1, local.shape[1]))
    columns = torch.arange(first[1], first[1] + local.shape[1], device=local.device)
    for start in range(0, len(local), rows):
        part = local[start : start + rows]
        begin = first[0] + start
        places = torch.arange(begin, begin + len(part), device=local.device).unsqueeze(1) * shape[1] + columns
        bits = _splitmix(places, key)
        radius = (_above(bits, 32).double() + 0.5).mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
        angle = (bits & 0xFFFFFFFF).double().mul_(2.0**-32 * 2 * math.pi)
        part.copy_(radius.mul_(angle.cos_()).mul_(std))


def _splitmix(places: torch.Tensor, key: int) -> torch.Tensor:
    """The hash of each place under `key`: 64 bits, as int64."""
    z = (places + 1) * _signed(GOLDEN) + key
    z = (z ^ _above(z, 30)) * _signed(FIRST)
    z = (z ^ _above(z, 27)) * _signed(SECOND)
    return z ^ _above(z, 31)


def _above(z: torch.Tensor, bits: int) -> torch.Tensor:
    """z without its lowest `bits`, as if it had no sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
