"""`shoal plan --model`: what training a model on a cluster takes and costs, before anything is rented."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.cli.bill import LEVELS, Policy, layout_of, shown, values
from shoal.printable import printable
from shoal_core.errors import UserError

if TYPE_CHECKING:
    from shoal_workloads.config import PretrainConfig
    from shoal_workloads.estimate import Bill, Cluster, Estimate

__all__ = ["Asked", "estimated", "parse_gpus"]

DAYS = 14.0
"""Simulated at most."""
GPUS = re.compile(r"(\d+)x(\d+)x(\S+)")
COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


@dataclass(frozen=True)
class Asked:
    """The options of `shoal plan --model`; None: what is best, or said by the model."""

    model: str
    cluster: str
    pp: int | None = None
    ep: int | None = None
    schedule: str = "dualpipe"
    workers_per_cell: int | None = None
    seq_len: int = 4096
    global_batch: int = 15_360
    micro_batch: int = 1
    precision: str = "fp8"
    recompute: str = "norms"
    waiting: int | None = None
    tokens: str | None = None
    price: float | None = None
    hardware: Path | None = None
    failures: bool = False
    seed: int = 0


def estimated(asked: Asked, *, search: bool, as_json: bool) -> bool:
    """Print the estimate. Returns whether it fits."""
    from rich.console import Console

    from shoal_workloads.estimate import bill, estimate

    cluster, config = parse_gpus(asked.cluster, asked.hardware), config_of(asked)
    reasons = list[str]()
    if search or asked.pp is None or asked.ep is None:
        found, reasons = searched(config, cluster)
    else:
        workers = asked.workers_per_cell or asked.pp * asked.ep
        checked(config, workers)
        found = estimate(config, cluster, workers)
        if not found.fits:
            reasons.append(lacks(found))
    tokens = None if asked.tokens is None else count_of(asked.tokens)
    price = cluster.hardware.price
    each = price.dollars if asked.price is None else asked.price
    if asked.price is None:
        reasons.append(f"${price.dollars:.2f} a GPU and hour: {price.source}, {price.of} (--price says otherwise)")
    cost = bill(found, tokens or 1e12, each)
    policies = failing(asked, found, cost) if asked.failures else []
    if as_json:
        print(json.dumps(values(found, cost if tokens else None, policies, reasons), indent=2))
        return found.fits
    console = Console(markup=False, highlight=False)
    for part in shown(asked.model, found, cost, tokens is not None, policies):
        console.print(part)
    for reason in reasons:
        console.print(f"- {printable(reason)}")
    return found.fits


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
    if found is None or not float(found[1]):
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
    if asked.recompute not in LEVELS:
        raise UserError(f"--recompute: {asked.recompute!r} is no level", f"one of {', '.join(LEVELS)}")
    parallel: dict[str, Any] = {
        "pp": asked.pp or 1,
        "ep": asked.ep or 1,
        "schedule": asked.schedule,
        "dispatch": "hierarchical",
        "recompute": LEVELS[asked.recompute],
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
        return PretrainConfig.model_validate(section)
    except ValidationError as error:
        raise UserError(wrong_fields(error), "see shoal plan --help, and docs/configuration.md") from error


# ---- layouts


def searched(config: PretrainConfig, cluster: Cluster) -> tuple[Estimate, list[str]]:
    """The fastest layout that fits, and why it; if none does, the one that lacks least.

    Raises:
        UserError: there is no layout at all.
    """
    from shoal_workloads.estimate.search import search

    found = search(config, cluster)
    if found.best:
        best, *others = found.best
        reasons = [f"the fastest of {found.tried} layouts that fit: {layout_of(best)}"]
        reasons += [f"then {layout_of(one)}: {one.seconds / best.seconds - 1:+.1%}, {why(one, best)}" for one in others]
        return best, reasons
    if found.nearest is None:
        raise UserError(
            f"--cluster: on {cluster.nodes} nodes of {cluster.slots} {cluster.name} {config.model.preset} fits in no "
            "layout: parameters, gradients and what one micro-batch keeps are more than the memory",
            "more nodes, or GPUs with more memory",
        )
    return found.nearest, [f"no layout fits: {lacks(found.nearest)}"]


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


# ---- failures


def failing(asked: Asked, found: Estimate, cost: Bill) -> list[Policy]:
    """What the run costs when workers fail as Llama 3's did, by the controller's own decisions in simulation: with
    spare nodes, without, and changing its shape."""
    from shoal.simulate.result import result
    from shoal.simulate.settings import Settings, Times
    from shoal.simulate.simulation import Simulation
    from shoal_workloads.estimate import bill

    cluster, step = found.cluster, found.seconds
    across = found.step["sum across cells"] + found.step["optimizer"]
    days = min(DAYS, cost.days)
    spares = max(1, cluster.nodes // 64)
    policies = []
    for name, spare, elastic in (
        ("no spares", 0, False),
        ("another shape", 0, True),
        (f"{spares} spare nodes", spares, False),
    ):
        times = Times(step=step, across=across)
        settings = Settings(
            cluster.nodes, cluster.slots, found.mesh.workers, days, spare, found.micro_batches, 100, 1.0, asked.seed,
            times, elastic,
        )  # fmt: skip
        simulation = Simulation(settings)
        simulation.run()
        trains = float(result(simulation)["ettr"])
        paid = bill(found, cost.tokens, cost.price, trains)
        policies.append(Policy(name, trains, replace(paid, gpus=(cluster.nodes + spare) * cluster.slots)))
    return policies
