"""Gradients that do not hang on the shape of the cell: what one worker makes of its own samples is rounded to fixed
point before it is added to anything of another's (`reduce: exact`).

Where FSDP adds up the workers' gradients, it is given a sum of integers instead (`Scatter`). Where experts are shared,
the rows of each worker go through them by themselves, in products of the same rows in the same order whoever holds the
expert, and each worker's part of the weights' gradients is rounded (`_Taps`). Cells whose workers share no experts take
the same way without sending anything (`Alone`): elsewhere tokens would be summed by another kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter
from torch.distributed.tensor import DTensor

from shoal_core.grid import Grid
from shoal_workloads.model.deepseek import DeepSeekV3
from shoal_workloads.model.exchange import Trip
from shoal_workloads.model.permute import Routes, counts_of, gather_rows, routes_of, spread, unspread
from shoal_workloads.parallel.dispatch import Exchange, Flat, in_order
from shoal_workloads.parallel.shards import ParamShard

__all__ = ["Rounded", "Scatter"]


class Rounded:
    """The gradients of one worker's `shards` of `model`, summed over the cell in units of `grid`, of one micro-batch of
    the cell. `exchange`: between those that share experts. Changes the model; not collective."""

    def __init__(self, model: DeepSeekV3, shards: Sequence[ParamShard], exchange: Exchange | None, grid: Grid) -> None:
        self._shards, self._grid = shards, grid
        self._taps: dict[int, tuple[_Taps, int]] = {}  # by the parameter
        plain = Scatter(grid, None)
        self._scatters = [plain]
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_custom_reduce_scatter(plain)
        for moe in model.moe_layers():
            if exchange is not None and not isinstance(exchange, Flat):
                continue  # what it adds up on the way to experts hangs on the shape anyhow
            moe.apart = True
            if exchange is None:
                moe.exchange = Alone()
                continue
            taps = _Taps(grid)
            moe.experts.tap = taps
            if isinstance(moe.experts, FSDPModule):
                self._scatters.append(Scatter(grid, taps))
                moe.experts.set_custom_reduce_scatter(self._scatters[-1])
            self._taps |= {id(p): (taps, place) for place, p in enumerate((moe.experts.gate_up, moe.experts.down))}

    def begin(self) -> None:
        """Forget all gradients."""
        for scatter in self._scatters:
            scatter.sums.clear()
        for taps, _ in self._taps.values():
            taps.sums = [None, None]

    def reduce(self, parts: Sequence[torch.Tensor]) -> None:
        """Write every shard's gradient to its part, int64."""
        found: dict[int, torch.Tensor] = {}
        for scatter in self._scatters:
            found |= scatter.sums
        for shard, part in zip(self._shards, parts, strict=True):
            grad, taps = shard.local_grad, self._taps.get(id(shard.parameter))
            if grad is None:
                part.zero_()
            elif isinstance(shard.parameter, DTensor):
                # FSDP cuts what it is handed into the gradients of shards, and of the integers the same are these
                sums = found[grad.untyped_storage().data_ptr()]
                part.copy_(sums.as_strided(grad.shape, grad.stride(), grad.storage_offset()))
            elif taps is not None and (total := taps[0].sums[taps[1]]) is not None:
                part.copy_(total)
            else:
                part.copy_(self._grid.round(grad))


class Scatter(ReduceScatter):
    """What FSDP adds up gradients with: integers, kept in `sums` by the memory of what FSDP is handed, whose values
    mean nothing. `taps`: which have the gradients already, as integers."""

    def __init__(self, grid: Grid, taps: _Taps | None) -> None:
        self._grid, self._taps = grid, taps
        self.sums: dict[int, torch.Tensor] = {}

    def allocate(self, size: Sequence[Any], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> None:
        """input_tensor: of each worker of the group its part of this one's gradients, laid one after the other."""
        mine = self._grid.round(input_tensor) if self._taps is None else self._taps.laid_out(group.size())
        total = torch.empty_like(output_tensor, dtype=torch.int64)
        dist.reduce_scatter_single(total, mine, group=group)
        self.sums[output_tensor.untyped_storage().data_ptr()] = total


class _Taps:
    """Sums up the gradients of the two weights of some experts, rounded source by source: `sums`, (E, 2M, D) and
    (E, D, M) int64, of the experts held here and all sources."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self.sums: list[torch.Tensor | None] = [None, None]

    def __call__(self, *weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Experts.tap`."""
        gate_up, down = (_Tap.apply(weight, self, place) for place, weight in enumerate(weights))
        return gate_up, down

    def add(self, place: int, grad: torch.Tensor) -> None:
        rounded, before = self._grid.round(grad), self.sums[place]
        self.sums[place] = rounded if before is None else before.add_(rounded)

    def laid_out(self, workers: int) -> torch.Tensor:
        """As FSDP lays out gradients that are cut along the experts' width."""
        known = [sums for sums in self.sums if sums is not None]
        cut = [sums.chunk(workers, dim=1) for sums in known]
        return torch.cat([parts[worker].flatten() for worker in range(workers) for parts in cut])


class _Tap(torch.autograd.Function):
    """The same weight; of what its gradient gets from here the taps are told."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, taps: _Taps, place: int) -> torch.Tensor:
        ctx.taps, ctx.place = taps, place
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        ctx.taps.add(ctx.place, grads[0])
        return grads[0], None, None


class Alone:
    """See `model.exchange.Exchange`: of a worker that has all experts."""

    ranks = 1

    def dispatch(
        self, tokens: torch.Tensor, gates: torch.Tensor, places: torch.Tensor, held: int, *, fp8: bool = False
    ) -> Trip:
        return _AloneTrip(tokens, gates, places, held)


class _AloneTrip:
    def __init__(self, tokens: torch.Tensor, gates: torch.Tensor, places: torch.Tensor, held: int) -> None:
        load = counts_of(places.flatten(), held)
        self._leaving = leaving = routes_of(places.flatten(), load, places.shape[1])
        self._rows = spread(tokens, leaving)
        self._gates = gather_rows(gates.flatten(), leaving.order, leaving.inverse)
        self._here = in_order(load, places.numel())

    @property
    def sources(self) -> list[Routes]:
        return [self._here]

    def dispatched(self) -> tuple[torch.Tensor, torch.Tensor, Routes]:
        return self._rows, self._gates, self._here

    def dispatched_again(self, tokens: torch.Tensor) -> torch.Tensor:
        return spread(tokens, self._leaving)

    def combine(self, y: torch.Tensor) -> None:
        self._back = y

    def combined(self) -> torch.Tensor:
        return unspread(self._back, self._leaving)
