"""The engine without pipeline stages: every worker takes its own samples through the whole model.

Parameters are gathered layer by layer (FSDP2) and gradients scattered as backward makes them, or once for several
micro-batches (`parallel.reduce_once`); experts may be spread over `ep` workers besides (see `layout`). Shapes: B
samples of a micro-batch that are this worker's, T positions, L_r routers, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch.distributed.fsdp import FSDPModule

from shoal_core.grid import Grid
from shoal_workloads.config import PretrainConfig
from shoal_workloads.parallel.engine import Engine, Factors, Figures, Read
from shoal_workloads.parallel.fits import settled
from shoal_workloads.parallel.layout import layout_of, let_go, shard_model
from shoal_workloads.parallel.rounded import Rounded
from shoal_workloads.precision.products import Products

__all__ = ["Fsdp"]


class Fsdp(Engine):
    """See `Engine`."""

    def __init__(self, config: PretrainConfig, rank: int, workers: int, dtype: torch.dtype, products: Products) -> None:
        """Uninitialised. `rank` of `workers` in the current default process group. Collective over it."""
        self._micro_batch, self._rank, self._workers = config.batch.micro_batch, rank, workers
        layout = layout_of(config.device, config.parallel)
        self.exchange = layout.exchange
        self.model, self.shards = shard_model(
            config.model,
            layout,
            device=config.device,
            dtype=dtype,
            products=products,
            reshard_after_forward=config.parallel.reshard_after_forward,
        )
        once = settled(config, workers).parallel.reduce_once and isinstance(self.model, FSDPModule)
        self._once = cast(FSDPModule, self.model) if once else None
        self._rounded: Rounded | None = None

    def round_to(self, grid: Grid) -> None:
        """See `Engine`: every worker's gradients by themselves, but for rows of experts on several nodes."""
        self._rounded = Rounded(self.model, self.shards, self.exchange, grid)

    def begin(self, step: int) -> None:
        """See `Engine`. What an evaluation gathered is let go of: no backward did it, and since then the state may have
        been written to."""
        let_go(self.model)
        if self._rounded is not None:
            self._rounded.begin()
        for shard in self.shards:
            shard.parameter.grad = None

    def reads(self, micro_batches: Sequence[Sequence[int]]) -> list[Sequence[int]]:
        """See `Engine`: of each micro-batch the part that is this worker's by its rank."""
        sizes = [len(ids) // self._workers for ids in micro_batches]
        return [
            ids[self._rank * size : (self._rank + 1) * size] for ids, size in zip(micro_batches, sizes, strict=True)
        ]

    def accumulate(
        self, micro_batches: Sequence[Sequence[int]], read: Read, factors: Factors, figures: Figures
    ) -> None:
        """See `Engine`: one after the other. What is reduced once is so before this returns, since the sums may be
        asked for next, and more micro-batches after that."""
        for left, ids in zip(reversed(range(len(micro_batches))), self.reads(micro_batches), strict=True):
            if self._once is not None:
                self._once.set_requires_gradient_sync(left == 0)
            losses = self.model(read(ids))
            factors.loss(losses).backward()
            figures.loads += losses.loads
            figures.count(losses)
            figures.samples += len(ids)

    def reduce(self, parts: Sequence[torch.Tensor]) -> None:
        """See `Engine`: FSDP has added them up."""
        if self._rounded is not None:
            self._rounded.reduce(parts)
            return
        for shard, part in zip(self.shards, parts, strict=True):
            grad = shard.local_grad
            if grad is None:
                part.zero_()
            else:
                torch.mul(grad, shard.grad_scale, out=part)

    def updated(self) -> None:
        """See `Engine`: FSDP gathers the shards whenever it computes with them."""

    def nats(self, part: int, parts: int, each: int, read: Read) -> Iterator[tuple[Sequence[int], list[float]]]:
        """See `Engine`."""
        for first in range(0, each, self._micro_batch):
            ids = [part + parts * i for i in range(first, min(first + self._micro_batch, each))]
            yield ids, self.model(read(ids), mtp=False).lm_each.tolist()
