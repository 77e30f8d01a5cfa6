"""What failures do to the bill of `shoal plan --model`: the run, simulated by policy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from statistics import fmean
from typing import TYPE_CHECKING

from shoal.cli.bill import Failing, Interval, Priced
from shoal_core.errors import UserError

if TYPE_CHECKING:
    from shoal.simulate.many import Simulate
    from shoal.simulate.policies import Outcome, Policy, Tried
    from shoal.simulate.settings import Settings
    from shoal_workloads.estimate import Bill, Reckoned
    from shoal_workloads.estimate.hardware import Price

__all__ = ["Rates", "priced", "under_a_step", "within"]

DAYS = 14.0
"""Simulated at most."""
CHECKPOINT = 100
"""Steps between two in simulation; what it costs to go back is reckoned from it."""
NEAR = 0.005
"""Of the days, by which more is as good."""
MANY = 64
"""Nodes from which on runs are simulated in processes of their own."""
TRIED = 6
"""Runs of a seed that compare intervals: five, and one of which they are reckoned."""
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


def priced(cuts: Sequence[Reckoned], length: float, price: float, rates: Rates) -> Failing:
    """What failures make of a run of so many tokens. cuts: ways to cut the GPUs into cells, the run's own first; every
    policy is simulated of that, and of the others those that could cost less than its cheapest.

    Raises:
        UserError: GPUs, or spot nodes, cost nothing.
    """
    from rich.console import Console
    from rich.progress import Progress

    from shoal.simulate.many import side_by_side
    from shoal.simulate.policies import policies

    cluster = cuts[0].cluster
    if not price or (rates.spot and not rates.price(cluster.hardware.price, price)[0]):
        raise UserError(
            "--failures: at 0 dollars a GPU and hour no policy is cheaper than another",
            "say what they cost, or would, with --price and --spot-price",
        )
    ways = list(policies(cluster.nodes, spot=rates.spot))
    with (
        Progress(console=Console(stderr=True), transient=True) as progress,
        side_by_side(worth=cluster.nodes >= MANY) as simulate,
    ):
        bar = progress.add_task("failures, simulated", total=rates.seeds * (len(ways) + len(cuts) - 1 + TRIED))
        pricing = Pricing(length, price, rates, simulate, lambda: progress.advance(bar))
        own = pricing.all((cuts[0], way, CHECKPOINT) for way in ways)
        cheapest = own[0]
        others: list[tuple[Reckoned, Policy, int]] = []
        for cut in cuts[1:]:
            may = [way for way in ways if pricing.dollars(cut, way) < cheapest.dollars]
            others += [(cut, way, CHECKPOINT) for way in may or [cheapest.tried.policy]]
        progress.update(bar, total=rates.seeds * (len(ways) + len(others) + TRIED))
        cells = list[Priced]()
        for one in [cheapest, *pricing.all(others)]:
            if all(one.found is not known.found for known in cells):  # the cheapest of its kind: they are in order
                cells.append(one)
        cells.sort(key=lambda one: one.dollars)
        return Failing(own, cells, pricing.intervals(cells[0]))


@dataclass(frozen=True)
class Pricing:
    """What is the same for all that is simulated; `advance` is called after each run."""

    length: float
    price: float
    rates: Rates
    simulate: Simulate
    advance: Callable[[], None]

    def all(self, wanted: Iterable[tuple[Reckoned, Policy, int]]) -> list[Priced]:
        """Layouts with a policy each, and steps between two checkpoints of the simulation: the cheapest first."""
        from shoal.simulate.policies import weighed

        found = [self.of(cut, weighed(policy, runs)) for (cut, policy, _), runs in self.runs(list(wanted))]
        return sorted(found, key=lambda one: one.dollars)

    def runs(
        self, wanted: Sequence[tuple[Reckoned, Policy, int]]
    ) -> Iterator[tuple[tuple[Reckoned, Policy, int], list[Outcome]]]:
        """The runs of all seeds of each."""
        from shoal.simulate.many import Task

        seeds = range(self.rates.seed, self.rates.seed + self.rates.seeds)
        tasks = [Task(self.settings(cut, every), policy, seed) for cut, policy, every in wanted for seed in seeds]
        found = self.simulate(tasks) if tasks else iter(())
        for one in wanted:
            runs: list[Outcome] = []
            for _ in seeds:
                runs.append(next(found))
                self.advance()
            yield one, runs

    def settings(self, found: Reckoned, every: int) -> Settings:
        """Of a run without spares and shapes, simulated for `DAYS` at most, and for a day at least."""
        from shoal.simulate.settings import Settings, Times

        cluster, workers = found.cluster, found.mesh.workers
        across = sum(found.step.get(name, 0.0) for name in ("sum across cells", "optimizer"))
        return Settings(
            nodes=cluster.nodes,
            slots=cluster.slots,
            workers=workers,
            days=min(DAYS, max(1.0, self.length / found.tokens_per_second / 86400)),
            spare_nodes=0,
            micro_batches=found.micro_batches,
            checkpoint=every,
            rate=self.rates.rate,
            times=Times(step=found.seconds, across=across),
            preemptions=self.rates.preemptions,
            at_most=None if found.cells * workers == cluster.workers else found.cells,
        )

    def dollars(self, found: Reckoned, policy: Policy) -> float:
        """Without failures: none cost less."""
        from shoal_workloads.estimate import bill

        cluster = found.cluster
        each = self.rates.price(cluster.hardware.price, self.price)[0] if policy.spot else self.price
        return bill(found, self.length, each).dollars * (cluster.nodes + policy.spare_nodes) / cluster.nodes

    def of(self, found: Reckoned, tried: Tried) -> Priced:
        """With what is paid."""
        whole, days = self.dollars(found, tried.policy), self.length / found.tokens_per_second / 86400
        dollars = [whole / share if share else inf for share in (tried.mean, max(tried.trains), min(tried.trains))]
        return Priced(found, tried, days / tried.mean if tried.mean else inf, *dollars)

    def intervals(self, best: Priced) -> list[Interval]:
        """What it costs to save more and less often than Young's formula says, as simulated so, beside what the
        formula makes of them."""
        from shoal.simulate.policies import intervals

        policy, whole = best.tried.policy, self.dollars(best.found, best.tried.policy)
        tried = intervals(best.found.seconds, best.tried.checkpoint)
        found: list[Interval] = []
        wanted = [(best.found, policy, every) for every in (CHECKPOINT, *tried)]
        (_, base), *others = self.runs(wanted)
        for (_, _, every), runs in others:
            simulated, reckoned = (fmean(one.trains(every) for one in seeds) for seeds in (runs, base))
            found.append(Interval(every, *(whole / share if share else inf for share in (simulated, reckoned))))
        return found


def under_a_step(found: Reckoned, tokens: float, price: float) -> str:
    """That so many tokens are less than a step has, if they are, and what one takes."""
    from shoal_workloads.estimate import bill

    if tokens >= found.tokens:
        return ""
    cost = bill(found, found.tokens, price).dollars
    return f"not enough for one step: {found.tokens:,.0f} tokens, {found.seconds:.3g} s, ${cost:,.2f}"


def within(budget: float | None, days: float | None, cost: Bill, failing: Failing) -> tuple[Bill, Failing, list[str]]:
    """As many tokens as the money is enough for by the cheapest policy; or the days, by the cheapest of those that take
    hardly longer than the fastest. That one comes first.

    Raises:
        UserError: with no policy the run gets anywhere.
    """
    policies = list(failing.policies)
    fastest = min(one.days for one in policies)
    if fastest == inf:
        raise UserError("with failures no policy gets anywhere", "a smaller --rate, fewer --preemptions or more nodes")
    said = "ordered by dollars"
    if days:
        policies.sort(key=lambda one: (one.days > fastest * (1 + NEAR), one.dollars))
        said = f"ordered by dollars, those first that take at most {NEAR:.1%} longer than the fastest"
    share = budget / policies[0].dollars if budget else (days or 0.0) / policies[0].days
    whole = replace(cost, tokens=cost.tokens * share, seconds=cost.seconds * share)
    first = f"{policies[0].tried.policy.name}: enough for {whole.tokens:.3g} tokens; policies are {said}"
    return whole, replace(failing, policies=policies).times(share), [first]
