"""Ways to live with failures beside each other: spare nodes, other shapes, nodes that may be taken away; and how often
to save with each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from statistics import fmean

from shoal.simulate.result import result
from shoal.simulate.settings import Settings
from shoal.simulate.simulation import Simulation

__all__ = ["STALL", "Policy", "Tried", "best_interval", "policies", "simulated"]

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


def simulated(settings: Settings, policy: Policy, seeds: Sequence[int]) -> Tried:
    """What of its time a run trains by a policy. `settings`: of one without spares and shapes, with the preemptions of
    spot nodes."""
    taken = settings.preemptions if policy.spot else 0.0
    asked = replace(settings, spare_nodes=policy.spare_nodes, elastic=policy.elastic, preemptions=taken)
    found = []
    for seed in seeds:
        run = Simulation(replace(asked, seed=seed))
        run.run()
        found.append((result(run), run.end))
    step = settings.times.step
    redone, seconds = (sum(parts) for parts in zip(*((one["lost"]["redone"], end) for one, end in found), strict=True))
    every = best_interval(step, settings.checkpoint, redone / seconds, STALL)
    trains = []
    for one, end in found:
        more = one["lost"]["redone"] / end * (every / settings.checkpoint - 1)  # it undoes so much more, on average
        share = one["steps"] * step / end - more  # a run that ends early trains no more
        trains.append(max(0.0, share) / (1 + STALL / every))
    return Tried(policy, tuple(trains), every, sum(one["outcome"] != "runs on" for one, _ in found))


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
