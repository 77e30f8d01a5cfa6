"""Refuses what does not fit in a GPU's memory, by part, and finds the nearest setting that would."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from shoal_core.errors import UserError
from shoal_workloads.config import PretrainConfig
from shoal_workloads.footprint import GB, Footprint, footprint
from shoal_workloads.model.recompute import LEVELS
from shoal_workloads.parallel.check import check_layout
from shoal_workloads.parallel.schedule import ZERO_BUBBLE

__all__ = ["check_fits", "nearest", "settled"]

Change = dict[str, Any]
"""Settings that differ, by their path in the job file."""


def settled(config: PretrainConfig, workers: int) -> PretrainConfig:
    """The config with what a cell of `workers` was left to choose by the memory of a GPU: whether gradients are reduced
    once a step. A CPU, whose memory nobody counts, goes without. Every cell chooses the same: it asks nothing else."""
    parallel = config.parallel
    if parallel.reduce_once != "auto":
        return config
    config, once = (_apply(config, {"workload.parallel.reduce_once": choice}) for choice in (False, True))
    chosen = config.device == "cuda" and parallel.pp == 1 and workers > 1
    return once if chosen and footprint(once, workers).total <= config.device_gb * GB else config


def check_fits(config: PretrainConfig, workers: int) -> Footprint:
    """What the worker of a cell of `workers` that needs most takes.

    Raises:
        UserError: more than a GPU has; its parts, and the nearest setting that would fit.
    """
    config = settled(config, workers)
    need = footprint(config, workers)
    if need.total <= config.device_gb * GB:
        return need
    found = nearest(config, workers)
    spread = f", at p{100 * config.routing.quantile:g} routing" if config.parallel.ep > 1 else ""
    where = f"a worker on pipeline rank {need.place}" if config.parallel.pp > 1 else "a worker"
    raise UserError(
        f"workload.device_gb: {where} needs {need.total / GB:.1f} GB of the {config.device_gb:g} that a GPU has "
        f"({need.words()}){spread}",
        "a smaller model, or larger cells with larger pp or ep: no change of recomputation, moments, micro-batch or "
        "size of the cells makes it fit"
        if found is None
        else f"it fits with {_words(found)}",
    )


def nearest(config: PretrainConfig, workers: int) -> Change | None:
    """The setting with the fewest changes that fits, the cheapest in time first; none if none does."""
    config = settled(config, workers)
    for change in _changes(config, workers):
        cell, changed = change.get("workers_per_cell", workers), _apply(config, change)
        try:
            if footprint(changed, cell).total > config.device_gb * GB:
                continue
            check_layout(changed, cell)
        except UserError:  # no layout at all
            continue
        return change
    return None


def _changes(config: PretrainConfig, workers: int) -> Iterator[Change]:
    """Every combination of settings that take less memory, the fewest changes first, and of as many the least slow."""
    parallel, each = config.parallel, config.batch.micro_batch
    levels = LEVELS[LEVELS.index(parallel.recompute) :]
    moments = ["bf16"] if config.optim.moments == "bf16" else ["fp32", "bf16"]
    waiting: list[int | None] = [parallel.waiting]
    reshard, once = [parallel.reshard_after_forward], [parallel.reduce_once]
    if parallel.pp > 1 and parallel.schedule in ZERO_BUBBLE:
        waiting += [n for n in (4, 2, 1, 0) if parallel.waiting is None or n < parallel.waiting]
    if parallel.pp == 1 and not parallel.reshard_after_forward:
        reshard.append(True)
    if parallel.reduce_once:
        once.append(False)
    micro = [n for n in range(each, 0, -1) if each % n == 0]
    names = ("recompute", "waiting", "reshard_after_forward", "reduce_once")
    here = (*(f"workload.parallel.{name}" for name in names), "workload.optim.moments", "workload.batch.micro_batch")
    now = (*(getattr(parallel, name) for name in names), config.optim.moments, each, workers)
    sizes = (workers, 2 * workers, 4 * workers)
    every = [
        {name: new for name, new, old in zip((*here, "workers_per_cell"), values, now, strict=True) if new != old}
        for values in product(levels, waiting, reshard, once, moments, micro, sizes)
    ]
    # sorting is stable: of as many changes, those come first that change what stands later in the product
    yield from sorted(every, key=lambda change: len(change) + 2 * ("workers_per_cell" in change))


def _apply(config: PretrainConfig, change: Change) -> PretrainConfig:
    """The config with a change of its own settings."""
    for path, value in change.items():
        if path.startswith("workload."):
            _, section, field = path.split(".")
            changed = getattr(config, section).model_copy(update={field: value})
            config = config.model_copy(update={section: changed})
    return config


def _words(change: Change) -> str:
    said = {path: str(value).lower() if isinstance(value, bool) else value for path, value in change.items()}
    return ", ".join(f"{path}={value}" for path, value in said.items())
