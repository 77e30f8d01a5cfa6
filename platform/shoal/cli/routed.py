"""How unevenly `shoal plan` takes tokens to choose experts: as assumed, as a job says, or as in a run."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal_core.errors import UserError

if TYPE_CHECKING:
    from shoal_workloads.config import PretrainConfig
    from shoal_workloads.estimate import Reckoned
    from shoal_workloads.routing import RoutingConfig

__all__ = ["at_quantile", "routed", "routing_values", "routing_words"]


def routed(config: PretrainConfig, quantile: str | None, like: str | None) -> PretrainConfig:
    """The config with the routing that is asked for: a quantile such as p99.9, and the run whose MaxVio is taken.

    Raises:
        UserError: it is no quantile; or no such run, or one that tells nothing of experts.
    """
    routing = config.routing
    if quantile is not None:
        routing = routing.model_copy(update={"quantile": parse_quantile(quantile)})
    if like is not None:
        routing = of_run(like, routing.quantile)
    return config.model_copy(update={"routing": routing})


def parse_quantile(text: str) -> float:
    """p99 is 0.99.

    Raises:
        UserError: it is none.
    """
    found = re.fullmatch(r"p(\d{1,2}(?:\.\d{1,6})?)", text.strip().lower())
    if found is None or not float(found[1]):
        raise UserError(f"--routing: {text!r} is no quantile", "write it like p99 or p99.9: over p0 and under p100")
    return round(float(found[1]) / 100, 9)


def of_run(run: str, quantile: float) -> RoutingConfig:
    """What a run's recorded MaxVio says of the model that it trained.

    Raises:
        UserError: no such run, or it tells nothing of experts.
    """
    from shoal.record import read
    from shoal.record.finding import find_run
    from shoal_core.loading import own_settings
    from shoal_workloads.config import PretrainConfig
    from shoal_workloads.routing import measured

    path = find_run(run, os.environ.get("SHOAL_STORAGE"))
    with read.readable(path):
        steps = read.steps(path)
        rows = list(violations(steps))
        if not rows:
            raise UserError(
                f"--like {run}: no step on record says how evenly experts were used (max_violation.0, ...)",
                "name a run of shoal_workloads.pretrain:Pretrain with MoE layers that has committed steps",
            )
        trained = PretrainConfig.model_validate(own_settings(read.config(path)["workload"]))
        batches = sorted(step["samples"][1] - step["samples"][0] for step in steps)
        samples = batches[len(batches) // 2]
        return measured(rows, trained.model, samples, trained.data.seq_len, quantile)


def violations(steps: Sequence[dict[str, Any]]) -> Iterator[list[float]]:
    """MaxVio of every router, of the steps that have all of them."""
    prefix = "max_violation."
    names = sorted({name for step in steps for name in step if name.startswith(prefix)})
    for step in steps:
        found = [step.get(name) for name in names]
        if names and all(isinstance(value, int | float) for value in found):
            yield [float(value) for value in found if value is not None]


def at_quantile(found: Reckoned) -> str:
    """ " at p99 routing", where experts are spread over workers."""
    config = config_with_experts(found)
    return "" if config is None or found.mesh.ep == 1 else f" at p{100 * config.routing.quantile:g} routing"


def config_with_experts(found: Reckoned) -> PretrainConfig | None:
    """None: a model of one's own, of whose experts nothing is known."""
    from shoal_workloads.estimate import Estimate

    return found.config if isinstance(found, Estimate) else None


def routing_values(found: Reckoned) -> dict[str, float] | None:
    """For a program: the settings, and the rows of the busiest worker over the mean."""
    config = config_with_experts(found)
    if config is None:
        return None
    return {**config.routing.model_dump(), "busiest": busiest_of(config, found.mesh.ep)}


def routing_words(found: Reckoned, like: str | None) -> list[str]:
    """What it comes to and where it is from, where experts are spread over workers."""
    from shoal_workloads.routing import RoutingConfig

    config = config_with_experts(found)
    if config is None or found.mesh.ep == 1:
        return []
    routing, busiest = config.routing, busiest_of(config, found.mesh.ep)
    assumed = RoutingConfig(quantile=routing.quantile) == routing
    source = (
        f"as in {Path(like).name}" if like else "assumed; --like RUN takes a run's" if assumed else "as the job says"
    )
    return [
        f"routing: in {100 * routing.quantile:g}% of micro-batches and layers the busiest of {found.mesh.ep} workers "
        f"gets at most {busiest:.2f} times the mean's rows (workload.routing.lasting={routing.lasting:.3g}, "
        f"by_text={routing.by_text:.3g}: {source})"
    ]


def busiest_of(config: PretrainConfig, ep: int) -> float:
    from shoal_workloads.routing import busiest

    return busiest(config.routing, config.model, ep, ep * config.batch.micro_batch, config.data.seq_len)
