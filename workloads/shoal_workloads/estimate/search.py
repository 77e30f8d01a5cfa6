"""Finds the layouts in which a job's step takes least time on a cluster: an exact search that looks no further once
nothing that is left could be faster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from math import inf
from typing import Any

from shoal_core.errors import UserError
from shoal_core.mesh import Mesh
from shoal_workloads.activations import Manner, layer_bytes
from shoal_workloads.config import PretrainConfig
from shoal_workloads.estimate.layer import Layers, total
from shoal_workloads.estimate.messages import lines_of
from shoal_workloads.estimate.step import WAITING, Cluster, Estimate, estimate
from shoal_workloads.footprint import fits, footprint
from shoal_workloads.model.recompute import LEVELS, Level
from shoal_workloads.parallel.check import check_layout
from shoal_workloads.parallel.fits import settled
from shoal_workloads.parallel.schedule import ZERO_BUBBLE
from shoal_workloads.parallel.schedule.balance import stage_layers
from shoal_workloads.params import count_parameters

__all__ = ["HARDLY", "Found", "by_cells", "search", "smallest"]

SCHEDULES = ("dualpipe", "dualpipev", "zbv", "zb1p", "interleaved", "1f1b")
PAIRS = ("dualpipe", "dualpipev")
"""Schedules that hide the exchange of rows."""
BUBBLES = {"1f1b": 1.0, "interleaved": 0.5}
"""Micro-batches' time that a schedule's bubble takes at least, a pipeline rank."""
HELD = ("pp", "ep", "schedule", "recompute", "waiting")
"""Settings to which a search can be held."""
HARDLY = 1.25
"""Times another's step, up to which a layout is near it."""
MOST = 1 << 17
"""GPUs of a cluster that is looked for."""


@dataclass(frozen=True)
class Found:
    """`best`: layouts that fit, the fastest first. `tried`: how many might, by bounds on their memory. `nearest`: of
    those that do not fit the one that lacks least memory, if none fits."""

    best: tuple[Estimate, ...]
    tried: int
    nearest: Estimate | None


def search(
    base: PretrainConfig,
    cluster: Cluster,
    keep: int = 3,
    held: Mapping[str, Any] | None = None,
    within: float = inf,
) -> Found:
    """The `keep` fastest layouts of this job that fit, of all sizes of cell, pipelines, schedules and recomputation.
    `held`: settings of `workload.parallel`, and `workers` of a cell, that all of them have;
    `within`: seconds of a step that no one is to take."""
    found = sorted(bounded(base, cluster, held or {}), key=lambda one: one[0])
    best: list[Estimate] = []
    lacking: list[tuple[PretrainConfig, int]] = []
    for bound, config, workers in found:
        if bound >= (best[-1].seconds if len(best) == keep else within):
            break
        try:
            check_layout(config, workers)
        except UserError:
            continue
        if fits(settled(config, workers), workers, cluster.hardware.memory_gb):
            best = sorted([*best, estimate(config, cluster, workers)], key=lambda one: one.seconds)[:keep]
        elif not best:
            lacking.append((config, workers))
    nearest = None if best or not lacking else estimate(*least(lacking, cluster))
    return Found(tuple(best), len(found), nearest)


def by_cells(base: PretrainConfig, than: Estimate, held: Mapping[str, Any]) -> list[Estimate]:
    """The same GPUs cut into cells of other sizes: of each the fastest layout that fits, if its step takes hardly
    longer (`HARDLY`) than that of another. held: see `search`; `workers` of it says nothing."""
    found = list[Estimate]()
    held = {name: value for name, value in held.items() if name in HELD}
    given = held.get("pp", 1) * held.get("ep", 1)
    odd = given // (given & -given)
    for workers in [odd * size for size in powers(than.cluster.workers // odd)]:
        if workers != than.mesh.workers:
            near = search(base, than.cluster, 1, {**held, "workers": workers}, HARDLY * than.seconds)
            found += [one for one in near.best if one.seconds < HARDLY * than.seconds]
    return found


def smallest(base: PretrainConfig, cluster: Cluster, held: Mapping[str, Any] | None = None) -> Cluster | None:
    """The fewest nodes of this kind, more than the cluster has, on which the job fits in some layout; none up to `MOST`
    GPUs. A layout that fits does so on every cluster that has room for its cell: so only cells that the cluster has no
    room for are looked at, the smallest first. Cells that are searched are powers of two (times what is held), and a
    batch fills no larger ones than it has samples for."""
    held = held or {}
    most = min(MOST, base.batch.global_batch // base.batch.micro_batch)
    given = held.get("pp", 1) * held.get("ep", 1)
    odd = given // (given & -given)
    for workers in of(held, "workers", [odd * size for size in powers(most // odd)]):
        more = Cluster(-(-workers // cluster.slots), cluster.slots, cluster.name, cluster.hardware)
        if more.nodes > cluster.nodes and search(base, more, 1, {**held, "workers": workers}).best:
            return more
    return None


def least(lacking: list[tuple[PretrainConfig, int]], cluster: Cluster) -> tuple[PretrainConfig, Cluster, int]:
    """Of those that do not fit the one that lacks least."""
    config, workers = min(lacking, key=lambda one: footprint(settled(*one), one[1]).total)
    return config, cluster, workers


def bounded(
    base: PretrainConfig, cluster: Cluster, held: Mapping[str, Any]
) -> Iterator[tuple[float, PretrainConfig, int]]:
    """Layouts that may fit, with seconds that a step takes at least: what the workers compute, were all stages equal,
    rows that nothing hides, and the bubble of the schedule."""

    model = base.model

    @cache
    def busiest(ep: int, recompute: Level, pairs: bool) -> float:
        """Seconds a micro-batch of one worker."""
        layers = Layers(changed(base, {"ep": ep, "recompute": recompute}), Mesh(ep=ep), cluster.hardware, cluster.slots)

        def layer(dense: bool) -> float:
            parts = [one(dense=dense) for one in (layers.forward, layers.input, layers.weight)]
            computed = sum(total(one, but="exchange") for one in parts)
            if dense or pairs:
                return computed
            return computed + max(0.0, sum(one.get("exchange", 0.0) for one in parts) - layers.beside(2))

        return model.n_dense * layer(True) + (model.n_moe + model.mtp_depth) * layer(False) + total(layers.head())

    @cache
    def kept(recompute: Level, elsewhere: bool) -> float:
        """Bytes that a micro-batch keeps in all stages: so many at least are held, by one worker or by its pipeline's
        stages for as many micro-batches."""
        manner = Manner(recompute, 2, base.precision == "fp8", fused=True, elsewhere=elsewhere)
        sizes = (
            layer_bytes(model, base.batch.micro_batch, base.data.seq_len, dense=i < model.n_dense, manner=manner)
            for i in range(model.n_layers)
        )
        return float(sum(sizes))

    def needed(changes: dict[str, Any], workers: int) -> float:
        """Bytes that the worker which needs most has at least."""
        pp, ep = changes["pp"], changes["ep"]
        others = counted.total - experts
        held = (others + experts / ep) / pp * (2 if pp > 1 and changes["schedule"] in PAIRS else 1)
        always = 6 * held if pp > 1 else 0  # parameters in bf16, gradients in float32
        return always + 8 * counted.total / workers + kept(changes["recompute"], ep > 1)

    counted = count_parameters(model)
    experts = model.n_moe * model.n_experts * counted.expert
    for changes, workers in layouts(base, cluster, held):
        count, rest = divmod(base.batch.global_batch, workers * base.batch.micro_batch)
        cells = min(cluster.workers // workers, count)
        if not cells or rest or needed(changes, workers) > cluster.hardware.memory_gb * 1e9:
            continue
        pp, name = changes["pp"], changes.get("schedule", "")
        most = -(-count // cells)  # of a worker; of a chain pp times as many
        each = busiest(changes["ep"], changes["recompute"], name in PAIRS)
        seconds = each * (most + BUBBLES.get(name, 0.0) * (pp - 1) / pp)
        if cells * workers > 1 and lines_of(cluster.hardware) is None:  # who is alone waits for nobody
            seconds /= 1 - WAITING
        yield seconds, changed(base, changes), workers


def changed(base: PretrainConfig, changes: dict[str, Any]) -> PretrainConfig:
    return base.model_copy(update={"parallel": base.parallel.model_copy(update=changes)})


def layouts(
    base: PretrainConfig, cluster: Cluster, held: Mapping[str, Any] | None = None
) -> Iterator[tuple[dict[str, Any], int]]:
    """Settings of `workload.parallel`, and workers of a cell. `held`: see `search`; a schedule, and what waits in it,
    only of those that have a pipeline."""
    model, held = base.model, held or {}
    experts = [ep for ep in of(held, "ep", powers(cluster.workers)) if model.n_experts % ep == 0]

    @cache
    def fills(name: str, pp: int) -> bool:
        """Whether there are layers for all stages."""
        stages = {"dualpipe": pp, "1f1b": pp, "zb1p": pp}.get(name, 2 * pp)
        try:
            stage_layers(model, stages, base.data.seq_len)
        except UserError:
            return False
        return True

    for pp, ep in product(of(held, "pp", powers(min(cluster.workers, model.n_layers))), experts):
        for fsdp in powers(cluster.workers // (pp * ep)):
            workers = pp * fsdp * ep
            if workers != held.get("workers", workers):
                continue
            for recompute in of(held, "recompute", LEVELS):
                shared: dict[str, Any] = {"pp": pp, "ep": ep, "recompute": recompute}
                if pp == 1:
                    yield from (({**shared, "reshard_after_forward": again}, workers) for again in (False, True))
                    continue
                for name in of(held, "schedule", SCHEDULES):
                    if fills(name, pp):
                        for waiting in of(held, "waiting", (None, 4, 1) if name in ZERO_BUBBLE else (None,)):
                            yield {**shared, "schedule": name, "waiting": waiting}, workers


def of(held: Mapping[str, Any], name: str, every: Sequence[Any]) -> Sequence[Any]:
    """The one value that is held, or every one."""
    return [held[name]] if name in held else every


def powers(most: int) -> list[int]:
    """Of two, up to `most`."""
    return [2**n for n in range(max(0, most).bit_length())]
