"""`shoal plan --model`: what training a model on a cluster takes and costs, before anything is rented."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.cli.bill import LEVELS, estimate_values, layout_of
from shoal.cli.bill_tables import estimate_lines
from shoal.cli.failing import Rates, priced, under_a_step, within
from shoal.cli.plan_picture import draw_plan
from shoal.cli.routed import routed, routing_words
from shoal.printable import printable
from shoal_core.errors import UserError

if TYPE_CHECKING:
    from shoal.config import Job
    from shoal_workloads.config import PretrainConfig
    from shoal_workloads.estimate import Cluster, Estimate, Reckoned

__all__ = [
    "Asked",
    "checked",
    "config_of",
    "estimated",
    "of_job",
    "paid",
    "parse_gpus",
    "searched",
    "told",
    "unused",
    "wanted",
]

GPUS = re.compile(r"(\d+)x(\d+)x(\S+)")
MOST = 1e18
"""Tokens: all that were ever written are fewer."""
COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The options of `shoal plan --model`; None: what is best, or said by the model, or not asked for. Of a job
    `model` is its file, and what the file says (layout, batch, precision) is not asked."""

    model: str
    cluster: str
    pp: int | None = None
    ep: int | None = None
    schedule: str | None = None
    workers_per_cell: int | None = None
    seq_len: int = 4096
    global_batch: int = 15_360
    micro_batch: int = 1
    precision: str = "fp8"
    recompute: str | None = None
    waiting: int | None = None
    tokens: str | None = None
    budget: float | None = None
    days: float | None = None
    price: float | None = None
    hardware: Path | None = None
    rates: Rates | None = None
    picture: Path | None = None
    routing: str | None = None
    like: str | None = None


def estimated(asked: Asked, *, search: bool, as_json: bool) -> bool:
    """Print the estimate. Returns whether it fits."""
    from shoal_workloads.estimate import estimate

    cluster, config = parse_gpus(asked.cluster, asked.hardware), config_of(asked)
    config = config.model_copy(update={"device": cluster.hardware.kind})
    reasons, held = list[str](), held_to(asked)
    if search or asked.pp is None or asked.ep is None:
        found, reasons = searched(config, cluster, held)
    else:
        workers = asked.workers_per_cell or asked.pp * asked.ep
        checked(config, workers)
        found, held = estimate(config, cluster, workers), dict(vars(config.parallel))
        if not found.fits:
            reasons.append(lacks(found))
    others = [] if asked.rates is None or asked.workers_per_cell else other_cells(config, found, held)
    return told(asked, [found, *others], reasons, None, as_json=as_json)


def of_job(job: Job, config: PretrainConfig, asked: Asked, *, as_json: bool) -> bool:
    """The same of a job, its cells and steps as it says. Returns whether it fits."""
    from shoal_workloads.estimate import estimate

    cluster, reasons = parse_gpus(asked.cluster, asked.hardware), list[str]()
    config = routed(config, asked.routing, asked.like)
    kind = cluster.hardware.kind
    if config.device != kind:
        reasons.append(f"workload.device={config.device}: reckoned as if it were {kind}")
    if config.precision == "fp32" and kind == "cuda":
        reasons.append("workload.precision=fp32: products are reckoned at the rate of bf16")
    config = config.model_copy(update={"device": kind})
    found = estimate(config, cluster, job.workers_per_cell, job.cells)
    if not found.fits:
        reasons.append(lacks(found))
    if averages := found.memory.averages:
        reasons.append(f"averages of the parameters: {averages / 1e9:.1f} GB a worker, in the CPU's memory")
    tokens = config.batch.samples(job.steps - 1, config.data.seq_len)[1] * config.data.seq_len
    others = [] if asked.rates is None else other_cells(config, found, dict(vars(config.parallel)))
    return told(asked, [found, *others], reasons, float(tokens), as_json=as_json)


def told(asked: Asked, cuts: Sequence[Reckoned], reasons: list[str], tokens: float | None, *, as_json: bool) -> bool:
    """Print an estimate with its bill, of so many tokens where nothing else is asked for. cuts: first the run's own;
    then the same GPUs in cells of other sizes. Returns whether it fits."""
    from rich.console import Console

    from shoal_workloads.estimate import bill

    found = cuts[0]
    cluster = found.cluster
    each, source = paid(asked, cluster)
    reasons += [*routing_words(found, asked.like), *unused(cluster, found.cells * found.mesh.workers), *source]
    reasons += corrected(cluster)
    length = wanted(asked, found, each)
    if length is not None and (lacking := under_a_step(found, length, each)):
        raise UserError(lacking, "more of --tokens, --budget or --days, or smaller steps")
    length = length or tokens
    cost, failing = bill(found, length or 1e12, each), None
    if asked.rates is not None:
        failing = priced(cuts, cost.tokens, each, asked.rates)
        reasons += asked.rates.words(cluster.hardware.price, each)
        if asked.budget or asked.days:
            cost, failing, said = within(asked.budget, asked.days, cost, failing)
            reasons += said
        reasons += failing.words()
    if asked.picture is not None:
        draw_plan(found, failing, asked.picture)
    if as_json:
        print(json.dumps(estimate_values(found, cost if length else None, failing, reasons), indent=2))
        return found.fits
    console = Console(markup=False, highlight=False)
    for part in estimate_lines(asked.model, found, cost, length is not None, failing):
        console.print(part)
    for reason in reasons:
        console.print(f"- {printable(reason)}")
    return found.fits


def paid(asked: Asked, cluster: Cluster) -> tuple[float, list[str]]:
    """Dollars a GPU and hour, and where they are from if nobody said them."""
    price = cluster.hardware.price
    if asked.price is not None:
        return asked.price, []
    return price.dollars, [f"${price.dollars:.2f} a GPU and hour: {price.source}, {price.of} (--price says otherwise)"]


def corrected(cluster: Cluster) -> list[str]:
    """That estimates are corrected by what runs took, if they are."""
    learned = cluster.hardware.learned
    return [] if learned is None else [f"corrected {learned.words} (shoal plan --learn)"]


def unused(cluster: Cluster, workers: int) -> list[str]:
    """That there are more GPUs than workers, if there are."""
    if workers == cluster.workers:
        return []
    return [f"{workers:,} of {cluster.workers:,} GPUs train; all are paid for, and counted in the MFU"]


def wanted(asked: Asked, found: Reckoned, price: float) -> float | None:
    """Tokens of the run: as said, or as many as the money or the days are enough for where nothing fails.

    Raises:
        UserError: more than one of them is said.
    """
    from shoal_workloads.estimate import bill

    said = [name for name in ("tokens", "budget", "days") if getattr(asked, name) is not None]
    if len(said) > 1:
        raise UserError(f"--{said[0]} and --{said[1]} both say how long the run is", "say one of them")
    if asked.budget is not None:
        if not price:
            raise UserError("--price: at 0 dollars a budget is enough for anything", "say --days or --tokens")
        return asked.budget / bill(found, 1.0, price).dollars
    if asked.days is not None:
        return asked.days * 86400 * found.tokens_per_second
    return None if asked.tokens is None else count_of(asked.tokens)


# ---- what is asked for


def parse_gpus(text: str, own: Path | None = None) -> Cluster:
    """`NODESxSLOTSxGPU`, such as `256x8xH800`.

    Raises:
        UserError: it is written otherwise, or there is no such GPU.
    """
    from shoal_workloads.estimate import Cluster, hardware

    found = GPUS.fullmatch(text)
    if found is None or not int(found[1]) or not int(found[2]):
        raise UserError(f"--cluster {text}: not of the form NODESxGPUSxKIND", "write it like 256x8xH800")
    return Cluster(int(found[1]), int(found[2]), found[3], hardware(found[3], own))


def count_of(text: str) -> float:
    """A number of tokens such as 14.8T.

    Raises:
        UserError: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?)([kmbt]?)", text.strip().lower())
    if found is None or not 0 < float(found[1]) <= MOST:
        raise UserError(f"--tokens: {text!r} is no number of tokens", "write it like 14.8T, 300B or 2e12")
    return float(found[1]) * COUNTS[found[2]]


def config_of(asked: Asked) -> PretrainConfig:
    """A job's workload section as it would have to be.

    Raises:
        UserError: no such model, or a setting that no job takes.
    """
    import difflib

    from pydantic import ValidationError

    from shoal_workloads.config import PretrainConfig, wrong_fields
    from shoal_workloads.model.presets import PRESETS

    if asked.model not in PRESETS:
        near = difflib.get_close_matches(asked.model, PRESETS, n=3, cutoff=0.3)
        raise UserError(f"--model: there is no preset {asked.model!r}", f"one of {', '.join(near or PRESETS)}")
    if asked.recompute is not None and asked.recompute not in LEVELS:
        raise UserError(f"--recompute: {asked.recompute!r} is no level", f"one of {', '.join(LEVELS)}")
    parallel: dict[str, Any] = {
        "pp": asked.pp or 1,
        "ep": asked.ep or 1,
        "schedule": asked.schedule or "dualpipe",
        "dispatch": "hierarchical",
        "recompute": LEVELS[asked.recompute or "norms"],
        "waiting": asked.waiting,
    }
    section = {
        "model": {"preset": asked.model},
        "data": {"corpus": "none", "seq_len": asked.seq_len},
        "batch": {"global_batch": asked.global_batch, "micro_batch": asked.micro_batch},
        "optim": {"moments": "bf16"},
        "parallel": parallel,
        "precision": asked.precision,
        "device": "cuda",
    }
    try:
        config = PretrainConfig.model_validate(section)
    except ValidationError as error:
        raise UserError(wrong_fields(error), "see shoal plan --help, and docs/configuration.md") from error
    return routed(config, asked.routing, asked.like)


# ---- layouts


def held_to(asked: Asked) -> dict[str, Any]:
    """What is said of the layout, to which a search is held."""
    recompute = None if asked.recompute is None else LEVELS[asked.recompute]
    found = {
        "pp": asked.pp, "ep": asked.ep, "schedule": asked.schedule, "recompute": recompute, "waiting": asked.waiting,
        "workers": asked.workers_per_cell,
    }  # fmt: skip
    return {name: value for name, value in found.items() if value is not None}


def searched(
    config: PretrainConfig, cluster: Cluster, held: Mapping[str, Any] | None = None
) -> tuple[Estimate, list[str]]:
    """The fastest layout that fits, of those with what is `held`, and why it; if none does, the one that lacks least.

    Raises:
        UserError: there is no layout at all.
    """
    from shoal_workloads.estimate.search import search, smallest

    found = search(config, cluster, held=held)
    if found.best:
        best, *others = found.best
        reasons = [f"the fastest that fits, of {found.tried:,} layouts: {layout_of(best)}"]
        reasons += [f"then {layout_of(one)}: {one.seconds / best.seconds - 1:+.1%}, {why(one, best)}" for one in others]
        return best, reasons
    more = smallest(config, cluster, held)
    enough = "and on no cluster of them" if more is None else f"but on {more.nodes} nodes of {more.slots}"
    if found.nearest is None:
        raise UserError(
            f"--cluster: on {cluster.nodes} nodes of {cluster.slots} {cluster.name} {config.model.preset} fits in no "
            f"layout, {enough}: parameters, gradients and what one micro-batch keeps are more than the memory",
            "GPUs with more memory, or a --global-batch that larger cells can share"
            if more is None
            else f"--cluster {more.nodes}x{more.slots}x{more.name}",
        )
    return found.nearest, [f"no layout fits, {enough}: {lacks(found.nearest)}"]


def other_cells(config: PretrainConfig, found: Estimate, held: Mapping[str, Any]) -> list[Estimate]:
    """The same GPUs cut into cells of other sizes, in layouts that are near the best."""
    from rich.console import Console

    from shoal_workloads.estimate.search import by_cells

    with Console(stderr=True).status("cells of other sizes"):
        return by_cells(config, found, held)


def checked(config: PretrainConfig, workers: int) -> None:
    """Raises: UserError: cells of so many workers cannot share the model so."""
    from shoal_workloads.parallel.check import check_layout

    try:
        check_layout(config, workers)
    except UserError as error:
        raise UserError(error.problem.removeprefix("workload."), error.remedy) from error


def lacks(found: Estimate) -> str:
    """By how much it does not fit, and what would."""
    from shoal_workloads.parallel.fits import nearest

    memory = found.cluster.hardware.memory_gb
    more = found.memory.total / 1e9 - memory
    config = found.config.model_copy(update={"device_gb": memory})
    change = nearest(config, found.mesh.workers)
    if change is not None and change.get("workers_per_cell", 0) > found.cluster.workers:
        change = None
    remedy = (
        "" if change is None else "; it fits with " + ", ".join(f"{name}={value}" for name, value in change.items())
    )
    return f"{layout_of(found)} needs {more:.1f} GB more than the {memory:g} of a {found.cluster.name}{remedy}"


def why(one: Estimate, best: Estimate) -> str:
    """What takes it longer than the best, most of all."""
    more = {name: one.step.get(name, 0.0) - best.step.get(name, 0.0) for name in {*one.step, *best.step}}
    name = max(more, key=lambda key: more[key])
    if more[name] <= 0:
        return "no part takes longer"
    return f"for {name} {more[name]:.2f} s more"
