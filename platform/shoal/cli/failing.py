"""What failures do to the bill of `shoal plan --model`: the run, simulated by policy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING

from shoal.cli.bill import Priced

if TYPE_CHECKING:
    from shoal_workloads.estimate import Bill, Estimate
    from shoal_workloads.estimate.hardware import Price

__all__ = ["Rates", "priced"]

DAYS = 14.0
"""Simulated at most."""
CHECKPOINT = 100
"""Steps between two in simulation; what it costs to go back is reckoned from it."""
SPOT = 0.5
"""Of the price, what a spot node is assumed to cost."""


@dataclass(frozen=True)
class Rates:
    """What is assumed of failures: `rate`, a factor on those of Llama 3's pre-training; whether there are `spot` nodes,
    each taken away `preemptions` times a day, at `spot_price` dollars a GPU and hour; None: what the table says, or
    half of the price. Simulated with so many `seeds`, from `seed` on."""

    rate: float
    spot: bool
    spot_price: float | None
    preemptions: float
    seeds: int
    seed: int

    def price(self, price: Price, paid: float) -> tuple[float, str]:
        """Of a spot node, and where it is from if nobody said it. paid: of another."""
        if self.spot_price is not None:
            return self.spot_price, ""
        if price.spot is not None:
            return price.spot, f" ({price.source}, {price.of}; --spot-price says otherwise)"
        return SPOT * paid, " (half of the price: assumed; --spot-price says otherwise)"

    def words(self, price: Price, paid: float) -> list[str]:
        """What is assumed, for people."""
        said = [f"failures at {self.rate:g} x Llama 3's rates (arXiv 2407.21783, 2024-07; --rate says otherwise)"]
        if self.spot:
            each, source = self.price(price, paid)
            said.append(
                f"spot nodes at ${each:.2f} a GPU and hour{source}, each taken away {self.preemptions:g} times a day "
                "with two minutes' notice, another there in an hour (assumed, 2026-11; --preemptions)"
            )
        return said


def priced(found: Estimate, cost: Bill, rates: Rates) -> list[Priced]:
    """Every policy, the cheapest on average first."""
    from rich.console import Console
    from rich.progress import Progress

    from shoal.simulate.policies import policies, simulated
    from shoal.simulate.settings import Settings, Times

    cluster = found.cluster
    across = found.step["sum across cells"] + found.step["optimizer"]
    settings = Settings(
        nodes=cluster.nodes,
        slots=cluster.slots,
        workers=found.mesh.workers,
        days=min(DAYS, cost.days),
        spare_nodes=0,
        micro_batches=found.micro_batches,
        checkpoint=CHECKPOINT,
        rate=rates.rate,
        times=Times(step=found.seconds, across=across),
        preemptions=rates.preemptions,
    )
    spot, _ = rates.price(cluster.hardware.price, cost.price)
    seeds = range(rates.seed, rates.seed + rates.seeds)
    ways, tried_ways = list(policies(cluster.nodes, spot=rates.spot)), list[Priced]()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for policy in progress.track(ways, description="failures, simulated"):
            tried = simulated(settings, policy, seeds)
            gpus = (cluster.nodes + policy.spare_nodes) * cluster.slots
            paid = replace(cost, gpus=gpus, price=spot if policy.spot else cost.price)
            dollars = [
                paid.dollars / share if share else inf for share in (tried.mean, max(tried.trains), min(tried.trains))
            ]
            tried_ways.append(Priced(tried, cost.days / tried.mean if tried.mean else inf, *dollars))
    return sorted(tried_ways, key=lambda one: one.dollars)
