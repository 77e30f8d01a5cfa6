"""What a worker takes of a node, and how many such slots a node has. Pure, but that it says so in Ray's words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Self

from shoal.config import Job

__all__ = ["Slot"]

COUNTED = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
"""What an actor asks Ray for by options of its own: Ray counts these apart, and shows each worker its own GPU alone."""


@dataclass(frozen=True)
class Slot:
    """One unit of `resource`, on a node whose labels the selector `labels` (Ray's) picks. `needs`: what a worker takes
    beside, or how much of the resource if not one; `runtime_env`: of its process, in Ray's words."""

    resource: str
    needs: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    runtime_env: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, job: Job) -> Self:
        """That of a job's workers."""
        return cls(job.slot_resource, job.slot_needs, job.slot_labels, job.worker_runtime_env)

    @property
    def takes(self) -> dict[str, float]:
        """Resources that a worker takes."""
        return {self.resource: 1.0, **self.needs}

    def count(self, offers: Mapping[str, float]) -> int:
        """How many slots these resources of one node make."""
        return min(int(exact(offers.get(name, 0.0)) / exact(amount)) for name, amount in self.takes.items())

    def on(self, labels: Mapping[str, str]) -> bool:
        """Whether a node with these labels may be taken: `v`, `!v`, `in(v, w)` and `!in(v, w)`, of which those that say
        no are true of a node that has no such label."""
        return all(picks(wanted, labels.get(name)) for name, wanted in self.labels.items())

    def of_many(self, count: int) -> dict[str, float]:
        """Resources of so many slots of one node."""
        return {name: amount * count for name, amount in self.takes.items()}

    def options(self) -> dict[str, Any]:
        """What an actor asks Ray for that takes one slot."""
        takes = self.takes
        asked: dict[str, Any] = {"num_cpus": 0}
        asked |= {option: plain(takes.pop(name)) for name, option in COUNTED.items() if name in takes}
        if takes:
            asked["resources"] = {name: plain(amount) for name, amount in takes.items()}
        if self.runtime_env:
            asked["runtime_env"] = dict(self.runtime_env)
        return asked

    def words(self) -> str:
        """What picks the nodes, said after their number; empty if nothing does."""
        picked = ", ".join(f"{name}={wanted}" for name, wanted in self.labels.items())
        return f" (of those with {picked})" if picked else ""


def picks(wanted: str, label: str | None) -> bool:
    """Whether a selector's value is true of a node's label; None: it has none."""
    positive = wanted.removeprefix("!")
    listed = positive.removeprefix("in").strip()
    values = [value.strip() for value in listed[1:-1].split(",")] if listed.startswith("(") else [positive]
    return (label in values) is not wanted.startswith("!")


def exact(amount: float) -> Fraction:
    """To Ray's own precision, a ten-thousandth."""
    return Fraction(round(amount * 10_000), 10_000)


def plain(amount: float) -> float:
    """A whole number as one: of a resource that is counted in units Ray takes nothing else."""
    return int(amount) if float(amount).is_integer() else amount
