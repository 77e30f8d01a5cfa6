"""One worker's part of a model in pipeline stages: what it holds, and its part of a step.

The workers of a cell form chains (see `Mesh`), each of which takes its own micro-batches through all stages. A stage's
parameters are held by one worker of every chain, or by two in a two-way schedule, whose copies are kept equal like all
others: by summing the gradients over the holders. Shapes: B samples of a micro-batch, T positions, D width.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from shoal_core.mesh import Mesh
from shoal_workloads.config import PretrainConfig
from shoal_workloads.model.deepseek import DeepSeekV3
from shoal_workloads.model.ffn import Experts
from shoal_workloads.model.linear import Linear
from shoal_workloads.parallel.engine import Engine, Factors, Figures, Read
from shoal_workloads.parallel.exchange import make_exchange
from shoal_workloads.parallel.groups import make_groups
from shoal_workloads.parallel.pipeline.executor import Executor, Record
from shoal_workloads.parallel.pipeline.stages import ModelStages
from shoal_workloads.parallel.pipeline.streams import streams_of
from shoal_workloads.parallel.pipeline.wires import Wires, make_channels
from shoal_workloads.parallel.schedule import (
    LAYOUTS,
    Action,
    Schedule,
    Span,
    picture,
    restrict,
    schedule_of,
)
from shoal_workloads.parallel.schedule.balance import stage_layers
from shoal_workloads.parallel.zero import Held, Zero
from shoal_workloads.precision.products import Products

__all__ = ["Pipeline"]


class Pipeline(Engine):
    """See `Engine`. `zero`: the parameters this worker holds, in shards; `records`: when it did what in the last step,
    if that was timed (`timed`)."""

    def __init__(self, config: PretrainConfig, rank: int, workers: int, dtype: torch.dtype, products: Products) -> None:
        """Uninitialised. `rank` of `workers` in the current default process group. Collective over it."""
        self._config, self._parallel, self._dtype, self._rank = config, config.parallel, dtype, rank
        parallel = config.parallel
        self._mesh = Mesh.of({"pp": parallel.pp, "ep": parallel.ep}, workers)
        self._place, self._shard = self._mesh.coords(rank)
        self._schedule = schedule_of(parallel, 1)
        self._layers = stage_layers(config.model, self._schedule.stages, config.data.seq_len)
        groups = make_groups(self._members())
        mates = tuple(self._mesh.group(rank))
        self.exchange = None
        if len(mates) > 1:
            gradients = make_groups(self._mesh.groups())[mates]
            self.exchange = make_exchange(
                groups[mates], kind=parallel.dispatch, per_node=parallel.ep_node, gradients=gradients
            )
        self._wires = Wires(self._schedule, self._mesh.chain(rank), make_channels(self._schedule, config.device))
        with torch.device("meta"):
            self.model = DeepSeekV3(config.model, self.exchange, dtype, products)
        held = list(self._hold())
        for moe in self.model.moe_layers():  # all of them: every worker applies the balancing rule to every router
            moe.router.bias = torch.zeros(config.model.n_experts, device=config.device)
        at_once = self._schedule.stages_of(self._place) if self.exchange else ()
        self._streams = streams_of(config.device, at_once)
        self.zero = Zero(held, groups, rank, config.device)
        self.shards = self.zero.shards
        self._products, self._weights = products, list(_multiplied(self.model, products))
        self.timed = False
        self.records: list[Record] = []
        self._origin = 0.0
        """Time of `records` at which the cell's workers met before the step."""
        self._notes: list[dict[str, Any]] = []

    def _members(self) -> Iterator[Sequence[int]]:
        """All process groups of the cell: expert groups, and holders of the same parameters."""
        mesh, schedule = self._mesh, self._schedule
        yield from mesh.groups()
        for places in dict.fromkeys(schedule.holders(stage) for stage in range(schedule.stages)):
            yield mesh.holders(places)
            yield from zip(*mesh.groups(places), strict=True)
        yield mesh.holders(self._embedders())

    def _embedders(self) -> tuple[int, ...]:
        """The places in a chain with the embedding: those of the first stage, and of the last if MTP modules read
        tokens."""
        readers = {0, self._schedule.stages - 1} if self._config.model.mtp_depth else {0}
        return tuple(sorted({place for stage in readers for place in self._schedule.holders(stage)}))

    def _hold(self) -> Iterator[Held]:
        """Give values to what this worker holds, in the same order on all that hold it."""
        last = self._schedule.stages - 1
        if self._place in self._embedders():
            yield from self._give("embedding", self.model.embedding, self._embedders())
        for stage in sorted(self._schedule.stages_of(self._place)):
            places = self._schedule.holders(stage)
            for layer in self._layers[stage]:
                yield from self._give(f"layers.{layer}", self.model.layers[layer], places)
            if stage == last:
                yield from self._give("norm", self.model.norm, places)
                yield from self._give("head", self.model.head, places)
                for depth, module in enumerate(self.model.mtp):
                    yield from self._give(f"mtp.{depth}", module, places)

    def _give(self, prefix: str, module: nn.Module, places: Sequence[int]) -> Iterator[Held]:
        """Give memory to a module held at the `places` of every chain."""
        module.to_empty(device=self._config.device)
        for name, parameter in module.named_parameters(prefix):
            if parameter.dim() > 1 and not name.endswith(".router.weight"):  # what is computed with in float32 anyhow
                parameter.data = parameter.data.to(self._dtype)
            spread = ".experts." in name
            ranks = [list(group) for group in self._mesh.groups(places)] if spread else self._mesh.holders(places)
            yield Held(name, parameter, torch.tensor(ranks))

    def begin(self, step: int) -> None:
        """See `Engine`."""
        every = self._parallel.timed_every
        self.timed = every > 0 and step % every == 1 % every
        self.zero.begin()

    def reads(self, micro_batches: Sequence[Sequence[int]]) -> list[Sequence[int]]:
        """See `Engine`: the first stage embeds tokens, and the last predicts them."""
        reading = {0, self._schedule.stages - 1} & set(self._schedule.stages_of(self._place))
        return self._chain(micro_batches) if reading else []

    def _chain(self, micro_batches: Sequence[Sequence[int]]) -> list[Sequence[int]]:
        """What this worker's chain takes: the samples of as many workers as it has, each a micro-batch of its own."""
        size, pp = self._config.batch.micro_batch, self._mesh.pp
        starts = [(self._shard * pp + part) * size for part in range(pp)]
        return [ids[start : start + size] for ids in micro_batches for start in starts]

    def accumulate(
        self, micro_batches: Sequence[Sequence[int]], read: Read, factors: Factors, figures: Figures
    ) -> None:
        """See `Engine`: a schedule that wants more micro-batches than a chain has gets some of no weight, which nobody
        computes."""
        self._gather()
        mine = self._chain(micro_batches)
        schedule = schedule_of(self._parallel, len(mine))
        if self.timed:
            dist.barrier()  # clocks of different machines have nothing else in common
            self._origin = time.monotonic()
        stages = self._run(schedule, dict(zip(_places(schedule, len(mine)), mine, strict=False)), read, factors)
        figures.add(stages.figures)
        if self.timed:
            timed = self._picture(schedule, len(mine))
            self._notes = [{"kind": "pipeline_step", **timed}] if self._rank == 0 else []

    def _gather(self) -> None:
        """Compute with the shards as they are. Collective over the cell."""
        if self.zero.gather():
            self._products.settle(self._weights)

    def reduce(self, parts: Sequence[torch.Tensor]) -> None:
        """See `Engine`. What was added up in the pipeline and between its holders is rounded as a whole."""
        if self.grid is None:
            self.zero.scatter(parts)
            return
        sums = [torch.empty(part.shape, device=part.device) for part in parts]
        self.zero.scatter(sums)
        for part, one in zip(parts, sums, strict=True):
            part.copy_(self.grid.round(one))

    def updated(self) -> None:
        """See `Engine`."""
        self.zero.changed()

    def notes(self) -> list[dict[str, Any]]:
        """`pipeline_step`: when each rank of a chain did what, planned beside measured, every so many steps."""
        found, self._notes = self._notes, []
        return found

    def _picture(self, schedule: Schedule, count: int) -> dict[str, Any]:
        """What was just timed of `count` micro-batches of the first chain, beside the plan: see `schedule.picture`.
        Collective over the cell.

        Raises:
            RuntimeError: a peer is gone.
        """
        present = set(_places(schedule, count))
        orders = restrict(schedule, present).orders
        mine = torch.zeros(max(len(order) for order in orders), 2, dtype=torch.float64)
        for row, record in zip(mine, self.records, strict=False):
            row[0], row[1] = record.start - self._origin, record.end - self._origin
        found = [torch.empty_like(mine) for _ in range(self._mesh.workers)]
        dist.all_gather(found, mine)
        chain = [found[rank].tolist() for rank in self._mesh.chain(0)]
        spans = [
            [Span(step, *times) for step, times in zip(order, rank, strict=False)]
            for order, rank in zip(orders, chain, strict=True)
        ]
        return picture(schedule, present, spans)

    def nats(self, part: int, parts: int, each: int, read: Read) -> Iterator[tuple[Sequence[int], list[float]]]:
        """See `Engine`: those of the whole chain, in one direction, which its last stage alone gets to know."""
        micro, batches = self._config.batch.micro_batch, []
        for rank in self._mesh.chain(self._rank):
            ids = [part - self._rank + rank + parts * i for i in range(each + -each % micro)]
            batches += [ids[first : first + micro] for first in range(0, len(ids), micro)]
        self._gather()
        schedule = _forward_only(self._schedule, len(batches))
        places = list(_places(schedule, len(batches)))
        stages = self._run(schedule, dict(zip(places, batches, strict=True)), read, None)
        for ids, place in zip(batches, places, strict=True):
            yield ids, stages.nats[place].tolist() if place in stages.nats else []

    def _run(
        self, schedule: Schedule, ids: dict[int, Sequence[int]], read: Read, factors: Factors | None
    ) -> ModelStages:
        """Walk the schedule with the micro-batches that there are, by their place in it."""
        config, size = self._config, self._config.batch.micro_batch
        like = torch.zeros(size, config.data.seq_len + 1, dtype=torch.int64, device=config.device)
        self.model.rope(config.data.seq_len, like.device)  # made once, before stages have streams of their own
        hidden = torch.empty(size, config.data.seq_len, config.model.d_model, dtype=self._dtype, device=config.device)
        stages = ModelStages(self.model, self._layers, lambda place: read(ids[place]), like, factors)
        executor = Executor(
            schedule,
            self._place,
            stages,
            hidden,
            self._wires,
            overlap=self.exchange is not None,
            streams=self._streams,
            measure=self.timed,
        )
        executor.run(ids)
        self.records = executor.records
        return stages


def _multiplied(model: nn.Module, products: Products) -> Iterator[nn.Parameter]:
    """The weights that this worker holds and multiplies with in the format of `products`."""
    for module in model.modules():
        if isinstance(module, Linear | Experts) and module.products is products:
            yield from (weight for weight in module.parameters(recurse=False) if not weight.is_meta)


def _places(schedule: Schedule, count: int) -> Iterable[int]:
    """Which of a schedule's micro-batches `count` real ones are: both directions get as many."""
    if LAYOUTS[schedule.name] != "two-way":
        return range(count)
    return [place // 2 + place % 2 * (schedule.micro_batches // 2) for place in range(count)]


def _forward_only(base: Schedule, count: int) -> Schedule:
    """Every micro-batch through all stages of `base`, as soon as it can be."""
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
