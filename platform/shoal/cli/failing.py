"""What failures do to the bill of `shoal plan --model`: the run, simulated by policy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING

from shoal.cli.bill import Priced
from shoal_core.errors import UserError

if TYPE_CHECKING:
    from shoal_workloads.estimate import Bill, Estimate, Hardware

__all__ = ["Rates", "priced"]

DAYS = 14.0
"""Simulated at most."""
CHECKPOINT = 100
"""Steps between two in simulation; what it costs to go back is reckoned from it."""


@dataclass(frozen=True)
class Rates:
    """What is assumed of failures: `rate`, a factor on those of Llama 3's pre-training; whether there are `spot` nodes,
    each taken away `preemptions` times a day, at `spot_price` dollars a GPU and hour, None: the table's."""

    rate: float
    spot: bool
    spot_price: float | None
    preemptions: float
    seeds: int
    seed: int

    def price(self, hardware: Hardware) -> float:
        """Of a spot node.

        Raises:
            UserError: the table has none.
        """
        each = hardware.price.spot if self.spot_price is None else self.spot_price
        if each is None:
            raise UserError("--spot: the table has no spot price of these GPUs", "say it: --spot-price")
        return each

    def words(self, hardware: Hardware) -> list[str]:
        said = [f"failures at {self.rate:g} x Llama 3's rates (arXiv 2407.21783, 2024-07; --rate says otherwise)"]
        if self.spot:
            source = (
                f" (half of the price: assumed, {hardware.price.of}; --spot-price)" if self.spot_price is None else ""
            )
            said.append(
                f"spot nodes at ${self.price(hardware):.2f} a GPU and hour{source}, each taken away "
                f"{self.preemptions:g} times a day with two minutes' notice, another there in an hour "
                "(assumed, 2026-11; --preemptions)"
            )
        return said


def priced(found: Estimate, cost: Bill, rates: Rates) -> list[Priced]:
    """Every policy, the cheapest on average first.

    Raises:
        UserError: spot nodes have no price.
    """
    from rich.console import Console
    from rich.progress import Progress

    from shoal.simulate.policies import policies, simulated
    from shoal.simulate.settings import Settings, Times

    cluster = found.cluster
    across = found.step["sum across cells"] + found.step["optimizer"]
    settings = Settings(
        cluster.nodes, cluster.slots, found.mesh.workers, min(DAYS, cost.days), 0, found.micro_batches, CHECKPOINT,
        rates.rate, rates.seed, Times(step=found.seconds, across=across), preemptions=rates.preemptions,
    )  # fmt: skip
    seeds = range(rates.seed, rates.seed + rates.seeds)
    asked = list(policies(cluster.nodes, spot=rates.spot))
    told = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for policy in progress.track(asked, description="failures, simulated"):
            tried = simulated(settings, policy, seeds)
            price = rates.price(cluster.hardware) if policy.spot else cost.price
            paid = replace(cost, gpus=(cluster.nodes + policy.spare_nodes) * cluster.slots, price=price)
            dollars = [
                paid.dollars / share if share else inf for share in (tried.mean, max(tried.trains), min(tried.trains))
            ]
            told.append(Priced(tried, cost.days / tried.mean if tried.mean else inf, *dollars))
    return sorted(told, key=lambda one: one.dollars)
