"""The bill of `shoal plan`: an estimate with what it costs, in words that people read (`bill_tables` lays them out) and
for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple

from shoal.cli.routed import routing_values

if TYPE_CHECKING:
    from shoal.simulate.policies import Tried
    from shoal_workloads.estimate import Bill, Estimate, Reckoned

__all__ = ["LEVELS", "Failing", "Interval", "Priced", "Trainable", "dollars", "estimate_values", "layout_of", "number"]

LEVELS: dict[str, bool | str] = {"none": False, "norms": True, "ffn": "ffn", "dispatch": "dispatch"}
"""Levels of recomputation, by the words of `--recompute`."""
WORDS = {str(level): word for word, level in LEVELS.items()}


@dataclass(frozen=True)
class Priced:
    """A layout with a policy, and what the run costs so, its spare nodes paid for: `dollars` on average, `least` of the
    seed with which it gets on best, `most` of that with which it does worst. A run that gets nowhere costs without
    end."""

    found: Reckoned
    tried: Tried
    days: float
    dollars: float
    least: float
    most: float

    def times(self, share: float) -> Priced:
        """The same for so many times the tokens."""
        return Priced(
            self.found, self.tried, *(share * value for value in (self.days, self.dollars, self.least, self.most))
        )


class Interval(NamedTuple):
    """Dollars of the run if it saves `every` so many steps: as simulated so, and as Young's formula has it."""

    every: int
    dollars: float
    reckoned: float


@dataclass(frozen=True)
class Failing:
    """What failures make of the cost, the cheapest first: by policy, in the run's own layout; with `cells` of other
    sizes, each by its cheapest policy; with other `intervals` of saving, of the cheapest of all."""

    policies: Sequence[Priced]
    cells: Sequence[Priced]
    intervals: Sequence[Interval]

    def times(self, share: float) -> Failing:
        """The same for so many times the tokens."""
        policies, cells = ([one.times(share) for one in found] for found in (self.policies, self.cells))
        return Failing(
            policies, cells, [Interval(one.every, share * one.dollars, share * one.reckoned) for one in self.intervals]
        )

    def words(self) -> list[str]:
        """What is cheapest of all, and whether the simulation agrees with the formula."""
        from shoal.simulate.policies import STALL

        best, own = self.cells[0], min(self.policies, key=lambda one: one.dollars)
        if not isfinite(best.dollars):
            return ["with failures no policy gets anywhere"]
        said = [
            f"the cheapest of all: {best.tried.policy.name}, {layout_of(best.found)}, a checkpoint every "
            f"{best.tried.checkpoint} steps"
        ]
        if best.found is not own.found:
            slower = best.found.seconds / own.found.seconds - 1
            said.append(
                f"{1 - best.dollars / own.dollars:.1%} cheaper than the fastest layout: its step takes {slower:+.1%}, "
                f"but it trains {best.tried.mean:.2%} of the time and not {own.tried.mean:.2%}"
            )
        least = min(self.intervals, key=lambda one: one.dollars)
        young = next(one for one in self.intervals if one.every == best.tried.checkpoint)
        agree = f"every {least.every} steps costs {1 - least.dollars / young.dollars:.2%} less"
        said.append(
            f"how often to save, by Young's formula, with {STALL:.0%} of a step each: of the {len(self.intervals)} "
            "intervals simulated " + ("none costs less" if least is young else agree)
        )
        return said


@dataclass(frozen=True)
class Trainable:
    """How far a model could be trained; `why`: what keeps it from being."""

    model: str
    found: Estimate | None
    cost: Bill | None
    why: str

    @property
    def parameters(self) -> int:
        from shoal_workloads.params import count_parameters

        return 0 if self.found is None else count_parameters(self.found.config.model).total

    def values(self) -> dict[str, Any]:
        """For a program."""
        cost = self.cost
        return {
            "model": self.model,
            "parameters": self.parameters or None,
            "layout": None if self.found is None else layout_of(self.found),
            "tokens": None if cost is None else cost.tokens,
            "days": None if cost is None else cost.days,
            "dollars": None if cost is None else cost.dollars,
            "why": self.why or None,
        }


def layout_of(found: Reckoned) -> str:
    """ "2 cells of pp 16 x fsdp 1 x ep 64, dualpipe, waiting 4, recompute dispatch"."""
    layout = found.layout
    cells = "1 cell" if found.cells == 1 else f"{found.cells} cells"
    words = [f"{cells} of pp {layout['pp']} x fsdp {layout['fsdp']} x ep {layout['ep']}"]
    if layout["schedule"] is not None:
        words.append(layout["schedule"])
        words += [] if layout["waiting"] is None else [f"waiting {layout['waiting']}"]
    elif layout["reshard_after_forward"]:
        words.append("reshard_after_forward")
    if layout["recompute"] is not None:
        words.append(f"recompute {WORDS[str(layout['recompute'])]}")
    return ", ".join(words)


def number(value: float, unit: str) -> str:
    said = f"{value:,.0f}" if value >= 10_000 else f"{value:.4g}"
    return f"{said} {unit}".rstrip()


def estimate_values(
    found: Reckoned, cost: Bill | None, failing: Failing | None, reasons: Sequence[str]
) -> dict[str, Any]:
    """For a program; bytes, seconds, dollars. What hangs on a number of tokens is null without one."""
    from shoal_workloads.estimate import bill

    policies = [] if failing is None else failing.policies
    return {
        "fits": found.fits,
        "memory_peak_bytes": found.peak,
        "memory_parts": dict(found.parts),
        "routing": routing_values(found),
        "step_seconds": found.seconds,
        "step_parts": dict(found.step),
        "step_phases": dict(found.phases),
        "tokens_per_second": found.tokens_per_second,
        "mfu": found.mfu,
        "gpu_hours_per_trillion_tokens": bill(found, 1e12, 0.0).gpu_hours_per_trillion_tokens,
        "gpu_hours": None if cost is None else cost.gpu_hours,
        "days": None if cost is None else cost.days,
        "dollars": None if cost is None else cost.dollars,
        "tokens": None if cost is None else cost.tokens,
        "dollars_with_failures": {one.tried.policy.name: finite(one.dollars) for one in policies} or None,
        "policies": [policy_values(one) for one in policies] or None,
        "cells": None if failing is None else [policy_values(one) for one in failing.cells],
        "intervals": None if failing is None else [
            {"every": one.every, "dollars": finite(one.dollars), "dollars_by_young": finite(one.reckoned)}
            for one in failing.intervals
        ],
        "layout": dict(found.layout),
        "reasons": list(reasons),
    }  # fmt: skip


def policy_values(one: Priced) -> dict[str, Any]:
    """A policy for a program; dollars of the whole run if it has a number of tokens, else of 10^12."""
    policy = one.tried.policy
    return {
        "name": policy.name, "spare_nodes": policy.spare_nodes, "elastic": policy.elastic, "spot": policy.spot,
        "checkpoint_every": one.tried.checkpoint, "trains": list(one.tried.trains), "ended": one.tried.ended,
        "days": finite(one.days), "dollars": finite(one.dollars),
        "dollars_least": finite(one.least), "dollars_most": finite(one.most), "layout": dict(one.found.layout),
    }  # fmt: skip


def finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if isfinite(value) else None


def dollars(value: float) -> str:
    """$10,747, $574.7K, $5.747M."""
    if not isfinite(value):
        return "-"
    if value < 100_000:
        return f"${value:,.0f}"
    return f"${value / 1e3:.1f}K" if value < 999_950 else f"${value / 1e6:,.3f}M"
