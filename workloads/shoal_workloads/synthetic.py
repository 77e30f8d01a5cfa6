"""A workload without a model: a quadratic in a sharded vector, with a step time of your choosing.

For measuring and testing the platform itself. The gradient of a step is a sum over its samples of known vectors, so a
run's parameters have a closed form however the samples were shared out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, Field

from shoal_core.errors import UserError
from shoal_core.grid import Grid
from shoal_core.workload import Identity, ReplicaShard, Workload

__all__ = ["Synthetic", "SyntheticConfig"]


class SyntheticConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    parameters: int = Field(4096, ge=1, description="length of the vector; a multiple of the workers of a cell")
    global_batch: int = Field(12, ge=1)
    micro_batch: int = Field(1, ge=1, description="samples a worker takes at once")
    seconds: float = Field(0.0, ge=0, description="time one micro-batch takes")
    hurry: Path | None = Field(None, description="a file: once it is there a micro-batch takes no time")
    lr: float = Field(0.05, gt=0)


def sample(index: int, length: int) -> torch.Tensor:
    """The target vector of one sample, values in [-1, 1]."""
    generator = torch.Generator().manual_seed(index)
    return torch.rand(length, generator=generator) * 2 - 1


class SyntheticShard(ReplicaShard):
    """One worker's shard of the vector, with momentum. Loss of a sample: half the squared distance a coordinate."""

    def __init__(self, config: SyntheticConfig, seed: int) -> None:
        self.config = config
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.size = dist.get_world_size() if dist.is_initialized() else 1
        full = torch.randn(config.parameters, generator=torch.Generator().manual_seed(seed))
        self.vector = full.chunk(self.size)[self.rank].clone()
        self.momentum = torch.zeros_like(self.vector)
        self.grid: Grid | None = None
        self.begin(0)

    def round_to(self, grid: Grid) -> int:
        self.grid = grid
        self.begin(0)
        return len(self.vector)

    def begin(self, step: int) -> None:
        self.gradient = torch.zeros_like(self.vector, dtype=torch.float32 if self.grid is None else torch.int64)
        self.loss, self.samples = 0.0, 0

    def accumulate(self, micro_batches: Sequence[Sequence[int]]) -> None:
        """Of each, gather the vector, sum this worker's gradients, scatter the sum: the traffic of a fully sharded
        model."""
        for ids in micro_batches:
            part = len(ids) // self.size
            self._accumulate(ids[self.rank * part : (self.rank + 1) * part])

    def _accumulate(self, ids: Sequence[int]) -> None:
        full = torch.empty(self.config.parameters)
        parts = list(full.chunk(self.size))
        if self.size > 1:
            dist.all_gather(parts, self.vector)
        else:
            parts[0].copy_(self.vector)
        if self.config.seconds and not (self.config.hurry and self.config.hurry.exists()):
            time.sleep(self.config.seconds)
        gradient = torch.zeros_like(full)
        for index in ids:
            distance = full - sample(index, self.config.parameters)
            gradient += distance
            self.loss += float(distance.pow(2).mean()) / 2
            self.samples += 1
        if self.grid is not None:
            gradient = self.grid.round(gradient)
        if self.size > 1:
            dist.all_reduce(gradient)
        self.gradient += gradient.chunk(self.size)[self.rank]

    def sums(self) -> torch.Tensor:
        return self.gradient

    def stats(self) -> list[float]:
        return [self.loss, float(self.samples)]

    def norm_sq(self, total: torch.Tensor) -> float:
        return float((total / self.config.global_batch).pow(2).sum())

    def commit(self, total: torch.Tensor, stats: Sequence[float], norm_sq: float) -> dict[str, float]:
        loss = stats[0] / stats[1]
        figures = {"grad_norm": math.sqrt(norm_sq), "lr": self.config.lr, "tokens": stats[1]}
        if not math.isfinite(norm_sq):
            return {"loss": loss, "lm_loss": loss, "mtp_loss": 0.0, **figures, "roll_back": 1.0}
        self.momentum.mul_(0.9).add_(total / self.config.global_batch)
        self.vector.sub_(self.momentum * self.config.lr)  # two roundings, wherever in a shard an element lies
        return {"loss": loss, "lm_loss": loss, "mtp_loss": 0.0, **figures}

    def evaluate(self, part: int, parts: int) -> list[float]:
        return [float(self.vector.pow(2).sum())]

    def eval_metrics(self, stats: Sequence[float]) -> dict[str, float]:
        return {"bpb": math.sqrt(stats[0])}

    def tensors(self) -> list[torch.Tensor]:
        return [self.vector, self.momentum]

    def state_dict(self) -> dict[str, Any]:
        if self.size == 1:
            return {"vector": self.vector, "momentum": self.momentum}
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.tensor import DTensor, Shard

        mesh = DeviceMesh("cpu", list(range(self.size)))
        named = {"vector": self.vector, "momentum": self.momentum}
        return {name: DTensor.from_local(value, mesh, [Shard(0)], run_check=False) for name, value in named.items()}

    def loaded(self, step: int) -> None:
        self.begin(step)


class Synthetic(Workload):
    """See the module."""

    Config = SyntheticConfig

    def __init__(self, config: SyntheticConfig) -> None:
        self.config = config
        self._origin = (0, 0)

    def preflight(self, workers_per_cell: int) -> dict[str, Any]:
        return {"parameters": self.config.parameters, "tokens_per_step": self.config.global_batch}

    def samples(self, step: int) -> tuple[int, int]:
        first = self._origin[1] + (step - self._origin[0]) * self.config.global_batch
        return first, first + self.config.global_batch

    def go_on(self, steps: int, samples: int) -> None:
        self._origin = (steps, samples)

    def identity(self) -> Identity:
        shape = ((self.config.parameters,), "float32")
        return {"state": {"vector": shape, "momentum": shape}, "data": {}}

    def mesh(self, workers_per_cell: int) -> dict[str, int]:
        return {"pp": 1, "ep": workers_per_cell}

    def shaped(self, sizes: Mapping[str, int]) -> Synthetic:
        workers = sizes["fsdp"] * sizes["ep"]
        if sizes["pp"] > 1 or self.config.parameters % workers:
            raise UserError(
                f"{self.config.parameters} parameters cannot be cut for {sizes['pp']} stages of {workers} workers",
                "choose a multiple of the workers, and one stage",
            )
        return self

    def other_bits(self, own: Mapping[str, int], other: Mapping[str, int]) -> None:
        return None

    @property
    def micro_batch(self) -> int:
        return self.config.micro_batch

    def warm_up(self, workers: int) -> None:
        SyntheticShard(self.config, 0).accumulate([[0]])

    def build(self, seed: int) -> SyntheticShard:
        return SyntheticShard(self.config, seed)
