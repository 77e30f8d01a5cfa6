"""One worker's part of a model in pipeline stages: what it holds, and its part of a step.

The workers of a cell form chains (see `Grid`), each of which takes its own micro-batches through all stages. A stage's
parameters are held by one worker of every chain, or by two in a two-way schedule, whose copies are kept equal like all
others: by summing the gradients over the holders.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from shoal_workloads.config import ParallelConfig, PretrainConfig
from shoal_workloads.model.deepseek import DeepSeekV3
from shoal_workloads.parallel.dispatch import Exchange
from shoal_workloads.parallel.exchange import make_exchange
from shoal_workloads.parallel.groups import make_groups
from shoal_workloads.parallel.pipeline.executor import Executor, Record
from shoal_workloads.parallel.pipeline.grid import Grid, holders_of
from shoal_workloads.parallel.pipeline.stages import Factors, Figures, ModelStages
from shoal_workloads.parallel.schedule import (
    LAYOUTS,
    Action,
    Schedule,
    Span,
    build,
    needed_micro_batches,
    picture,
    restrict,
)
from shoal_workloads.parallel.schedule.balance import stage_layers
from shoal_workloads.parallel.zero import Held, Zero
from shoal_workloads.precision.products import Products

__all__ = ["Pipeline", "schedule_of"]

Read = Callable[[Sequence[int]], tuple[torch.Tensor, torch.Tensor]]


@lru_cache(maxsize=16)
def schedule_of(parallel: ParallelConfig, micro_batches: int) -> Schedule:
    """The configured schedule for at least `micro_batches`: as many as it takes.

    Raises:
        UserError: the settings do not fit the schedule.
    """
    count = needed_micro_batches(parallel.schedule, parallel.pp, micro_batches)
    return build(parallel.schedule, parallel.pp, count, parallel.virtual)


class Pipeline:
    """`model`: as the whole, with values where this worker holds them; `zero`: the parameters it holds, in shards.
    `records`: when this worker did what in the last step, if `measure`."""

    def __init__(self, config: PretrainConfig, dtype: torch.dtype, products: Products) -> None:
        """Uninitialised. Collective over the cell, the current default process group."""
        self._config, self._parallel, self._dtype = config, config.parallel, dtype
        workers, parallel = dist.get_world_size(), config.parallel
        self.grid = Grid(parallel.pp, workers // parallel.pp, parallel.ep, dist.get_rank())
        self._schedule = schedule_of(parallel, 1)
        self._layers = stage_layers(config.model, self._schedule.stages, config.data.seq_len)
        groups = make_groups(self._members())
        mates = self.grid.expert_group(self.grid.rank)
        self._exchange: Exchange | None = None
        if len(mates) > 1:
            gradients = make_groups(self.grid.expert_groups())[mates]
            self._exchange = make_exchange(
                groups[mates], kind=parallel.dispatch, per_node=parallel.ep_node, gradients=gradients
            )
        with torch.device("meta"):
            self.model = DeepSeekV3(config.model, self._exchange, dtype, products)
        held = list(self._hold())
        for moe in self.model.moe_layers():  # all of them: every worker applies the balancing rule to every router
            moe.router.bias = torch.zeros(config.model.n_experts, device=config.device)
        self.zero = Zero(held, groups, self.grid.rank, config.device)
        self.measure = False
        self.records: list[Record] = []
        self._origin = 0.0
        """Time of `records` at which the cell's workers met before the step."""

    def _members(self) -> Iterator[Sequence[int]]:
        """All process groups of the cell: expert groups, and holders of the same parameters."""
        grid = self.grid
        yield from grid.expert_groups()
        for ranks in dict.fromkeys(holders_of(self._schedule, stage) for stage in range(self._schedule.stages)):
            yield grid.holders(ranks)
            yield from zip(*grid.expert_holders(ranks), strict=True)
        yield grid.holders(self._embedders())

    def _embedders(self) -> tuple[int, ...]:
        """The stage ranks with the embedding: those of the first stage, and of the last if MTP modules read tokens."""
        readers = {0, self._schedule.stages - 1} if self._config.model.mtp_depth else {0}
        return tuple(sorted({rank for stage in readers for rank in holders_of(self._schedule, stage)}))

    def _hold(self) -> Iterator[Held]:
        """Give values to what this worker holds, in the same order on all that hold it."""
        grid, last = self.grid, self._schedule.stages - 1
        if grid.stage_rank in self._embedders():
            yield from self._give("embedding", self.model.embedding, self._embedders())
        for stage in sorted(self._schedule.stages_of(grid.stage_rank)):
            ranks = holders_of(self._schedule, stage)
            for layer in self._layers[stage]:
                yield from self._give(f"layers.{layer}", self.model.layers[layer], ranks)
            if stage == last:
                yield from self._give("norm", self.model.norm, ranks)
                yield from self._give("head", self.model.head, ranks)
                for depth, module in enumerate(self.model.mtp):
                    yield from self._give(f"mtp.{depth}", module, ranks)

    def _give(self, prefix: str, module: nn.Module, ranks: Sequence[int]) -> Iterator[Held]:
        """Give memory to a module held at the stage ranks `ranks`."""
        module.to_empty(device=self._config.device)
        for name, parameter in module.named_parameters(prefix):
            if parameter.dim() > 1 and not name.endswith(".router.weight"):  # what is computed with in float32 anyhow
                parameter.data = parameter.data.to(self._dtype)
            spread = ".experts." in name
            mesh = self.grid.expert_holders(ranks) if spread else self.grid.holders(ranks)
            yield Held(name, parameter, torch.tensor(mesh))

    def accumulate(self, micro_batches: Sequence[Sequence[int]], read: Read, factors: Factors) -> Figures:
        """Forward and backward over whole micro-batches of the cell: ids of all its workers, in the order of ranks.
        A schedule that wants more gets micro-batches of no weight, which nobody computes. Collective over the cell.

        Raises:
            RuntimeError: a peer is gone.
        """
        self.zero.gather()
        size, pp = self._config.batch.micro_batch, self._parallel.pp
        starts = [(self.grid.chain * pp + part) * size for part in range(pp)]
        mine = [ids[start : start + size] for ids in micro_batches for start in starts]
        schedule = schedule_of(self._parallel, len(mine))
        if self.measure:
            dist.barrier()  # clocks of different machines have nothing else in common
            self._origin = time.monotonic()
        stages = self._run(schedule, dict(zip(self._places(schedule, len(mine)), mine, strict=False)), read, factors)
        return stages.figures

    def picture(self, micro_batches: int) -> dict[str, Any]:
        """The step just measured, of as many micro-batches of the cell, beside the planned one: see
        `schedule.picture`. Of the first chain. Collective over the cell.

        Raises:
            RuntimeError: a peer is gone.
        """
        count = micro_batches * self._parallel.pp
        schedule = schedule_of(self._parallel, count)
        present = set(self._places(schedule, count))
        orders = restrict(schedule, present).orders
        mine = torch.zeros(max(len(order) for order in orders), 2, dtype=torch.float64)
        for row, record in zip(mine, self.records, strict=False):
            row[0], row[1] = record.start - self._origin, record.end - self._origin
        found = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(found, mine)
        chain = [found[self.grid.at(place, chain=0)].tolist() for place in range(self.grid.pp)]
        spans = [
            [Span(step, *times) for step, times in zip(order, rank, strict=False)]
            for order, rank in zip(orders, chain, strict=True)
        ]
        return picture(schedule, present, spans)

    @torch.no_grad()
    def nats(self, micro_batches: Sequence[Sequence[int]], read: Read) -> list[list[float]]:
        """Nats of every sample of this chain's micro-batches, in one direction; known at the last stage alone, none
        elsewhere. Collective over the cell, each of whose chains brings as many micro-batches.

        Raises:
            RuntimeError: a peer is gone.
        """
        self.zero.gather()
        schedule = self._forward_only(len(micro_batches))
        places = list(self._places(schedule, len(micro_batches)))
        stages = self._run(schedule, dict(zip(places, micro_batches, strict=True)), read, None)
        return [stages.nats.get(place, []) for place in places]

    def _run(
        self, schedule: Schedule, ids: dict[int, Sequence[int]], read: Read, factors: Factors | None
    ) -> ModelStages:
        config, size = self._config, self._config.batch.micro_batch
        like = torch.zeros(size, config.data.seq_len + 1, dtype=torch.int64, device=config.device)
        hidden = torch.empty(size, config.data.seq_len, config.model.d_model, dtype=self._dtype, device=config.device)
        stages = ModelStages(self.model, self._layers, lambda place: read(ids[place])[0], like, factors)
        executor = Executor(
            schedule, self.grid, stages, hidden, overlap=self._exchange is not None, measure=self.measure
        )
        executor.run(ids)
        self.records = executor.records
        return stages

    def _places(self, schedule: Schedule, count: int) -> Iterable[int]:
        """Which of a schedule's micro-batches `count` real ones are: both directions get as many."""
        if LAYOUTS[schedule.name] != "two-way":
            return range(count)
        return [place // 2 + place % 2 * (schedule.micro_batches // 2) for place in range(count)]

    def _forward_only(self, count: int) -> Schedule:
        """Every micro-batch through all stages, as soon as it can be."""
        base = self._schedule
        two_way = LAYOUTS[base.name] == "two-way"
        total = count + count % 2 if two_way else count
        half = total // 2 if two_way else total
        empty = Schedule(base.name, base.ranks, base.stages, total, ())
        actions = [Action("F", stage, place) for place in range(total) for stage in range(base.stages)]
        actions.sort(key=lambda action: (action.micro_batch % half + action.stage, action.stage))
        orders = tuple(
            tuple(action for action in actions if empty.rank_of(action.stage, action.micro_batch) == rank)
            for rank in range(base.ranks)
        )
        return Schedule(base.name, base.ranks, base.stages, total, orders)
