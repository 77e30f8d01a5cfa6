"""Ways to live with failures beside each other: spare nodes, other shapes, nodes that may be taken away; and how often
to save with each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from statistics import fmean

from shoal.simulate.settings import Settings
from shoal.simulate.simulation import Simulation

__all__ = [
    "STALL",
    "Outcome",
    "Policy",
    "Tried",
    "best_interval",
    "intervals",
    "policies",
    "run",
    "simulated",
    "weighed",
]

STALL = 0.04
"""Of a step, that saving takes from training: the copy to memory, measured (docs/checkpoints.md)."""
LONGEST = 3600.0
"""Seconds between two checkpoints at most, where no simulated run went back to one."""


@dataclass(frozen=True)
class Policy:
    """`spare_nodes` stand by; `elastic`: cells take other shapes; `spot`: nodes may be taken away at any time."""

    spare_nodes: int
    elastic: bool = False
    spot: bool = False

    @property
    def name(self) -> str:
        spares = {0: "no spares", 1: "1 spare node"}.get(self.spare_nodes, f"{self.spare_nodes} spare nodes")
        return ("spot, " if self.spot else "") + ("other shapes" if self.elastic else spares)


@dataclass(frozen=True)
class Tried:
    """A policy, simulated with several seeds. `trains`: of all time the share in which the run got on, by seed, when it
    saves every `checkpoint` steps, which costs least; `ended`: seeds whose run could not go on."""

    policy: Policy
    trains: tuple[float, ...]
    checkpoint: int
    ended: int

    @property
    def mean(self) -> float:
        return fmean(self.trains)


def policies(nodes: int, *, spot: bool) -> Iterator[Policy]:
    """What is tried for a cluster of so many nodes: no spares, other shapes, a spare for every 64 nodes, and twice as
    many; with `spot` on such nodes too."""
    few = max(1, nodes // 64)
    for taken in (False, True) if spot else (False,):
        yield Policy(0, spot=taken)
        yield Policy(0, elastic=True, spot=taken)
        yield Policy(few, spot=taken)
        yield Policy(2 * few, spot=taken)


@dataclass(frozen=True)
class Outcome:
    """What a seed's run came to: committed `steps` of `step` seconds, seconds of steps that were done again (`redone`),
    of all `seconds`, with a checkpoint every `checkpoint` steps; `ended`: it could not go on."""

    steps: int
    step: float
    redone: float
    seconds: float
    checkpoint: int
    ended: bool

    def trains(self, every: int) -> float:
        """Of all time the share in which it got on, had it saved every so many steps: what is done again grows with
        them, and a run that ends early trains no more."""
        more = self.redone / self.seconds * (every / self.checkpoint - 1)
        return max(0.0, self.steps * self.step / self.seconds - more) / (1 + STALL / every)


def run(settings: Settings, policy: Policy, seed: int) -> Outcome:
    """Simulate one seed of a policy. `settings`: of a run without spares and shapes, with the preemptions of spot
    nodes."""
    taken = settings.preemptions if policy.spot else 0.0
    asked = replace(
        settings.by_node(), spare_nodes=policy.spare_nodes, elastic=policy.elastic, preemptions=taken, seed=seed
    )
    simulation = Simulation(asked, timed=False)
    simulation.run()
    redone = sum(seconds for (_, phase), seconds in simulation.ledger.lost.items() if phase == "redone")
    step, ended = settings.times.step, bool(simulation.outcome)
    return Outcome(simulation.ledger.useful, step, redone, simulation.end, settings.checkpoint, ended)


def weighed(policy: Policy, runs: Sequence[Outcome]) -> Tried:
    """What a policy's seeds come to, with checkpoints as often as is best."""
    first = runs[0]
    redone = sum(one.redone for one in runs) / sum(one.seconds for one in runs)
    every = best_interval(first.step, first.checkpoint, redone, STALL)
    return Tried(policy, tuple(one.trains(every) for one in runs), every, sum(one.ended for one in runs))


def simulated(settings: Settings, policy: Policy, seeds: Sequence[int]) -> Tried:
    """The same, one seed after the other."""
    return weighed(policy, [run(settings, policy, seed) for seed in seeds])


def intervals(step: float, every: int) -> list[int]:
    """Steps between two checkpoints to be tried around a number of them: a quarter to four times as many."""
    longest = max(1, int(LONGEST / step))
    return sorted({min(longest, max(1, round(every * 2.0**power))) for power in (-2, -1, 0, 1, 2)})


def best_interval(step: float, checkpoint: int, redone: float, stall: float) -> int:
    """Steps between two checkpoints that cost least: Young's formula, with the time that going back cost in simulation
    for a rate of failures (J. W. Young, "A first order approximation to the optimum checkpoint interval", 1974).

    Args:
        step: seconds.
        checkpoint: steps between those of the simulation.
        redone: of all time, the share in which steps were done again there. It grows with the interval.
        stall: of a step, what saving takes.
    """
    longest = max(1, int(LONGEST / step))
    if redone <= 0:
        return longest
    # stall / n + redone * n / checkpoint is least where both are the same
    return min(longest, max(1, round(sqrt(stall * checkpoint / redone))))
