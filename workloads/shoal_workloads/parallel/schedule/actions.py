"""What a pipeline step is made of: actions on micro-batches, in a fixed order on every rank.

A model is cut into stages; a rank holds one or several. Layouts:
    loop    stage s on rank s % ranks (1F1B, ZB1P: one a rank; interleaved: several)
    v       2 * ranks stages, r and 2 * ranks - 1 - r on rank r, so that the first and the last are together
    two-way `ranks` stages, two copies of each: micro-batches of the first half go from rank 0 to the last (stage s on
            rank s), those of the second half the other way (stage s on rank ranks - 1 - s)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["LAYOUTS", "ZERO_BUBBLE", "Action", "Kind", "Pair", "Schedule", "Step"]

Kind: TypeAlias = Literal["F", "B", "I", "W"]

LAYOUTS = {
    "1f1b": "loop",
    "interleaved": "loop",
    "zb1p": "loop",
    "zbv": "v",
    "dualpipev": "v",
    "dualpipe": "two-way",
}
ZERO_BUBBLE = ("dualpipe", "dualpipev", "zbv", "zb1p")
"""Schedules in which gradients of weights may wait."""


@dataclass(frozen=True)
class Action:
    """One micro-batch through one stage. F: forward; B: full backward; I: gradient of the input alone; W: gradient of
    the weights alone, some time after I."""

    kind: Kind
    stage: int
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.kind}{self.stage}.{self.micro_batch}"


@dataclass(frozen=True)
class Pair:
    """A forward and a full backward at once, the communication of one behind the computation of the other."""

    forward: Action
    backward: Action

    def __str__(self) -> str:
        return f"{self.forward}&{self.backward}"


Step: TypeAlias = Action | Pair


@dataclass(frozen=True)
class Schedule:
    """The orders of all ranks for one optimizer step.

    Attributes:
        name: a key of `LAYOUTS`.
        ranks: pipeline ranks.
        stages: into how many the model is cut.
        micro_batches: in all, both directions of a two-way schedule together.
        orders: what each rank does, one after the other.
    """

    name: str
    ranks: int
    stages: int
    micro_batches: int
    orders: tuple[tuple[Step, ...], ...]

    def __hash__(self) -> int:
        """Of what is short: the orders, of thousands of steps, are looked at where all else is equal."""
        return hash((self.name, self.ranks, self.stages, self.micro_batches))

    def rank_of(self, stage: int, micro_batch: int) -> int:
        """The rank where `micro_batch` meets `stage`."""
        layout = LAYOUTS[self.name]
        if layout == "loop":
            return stage % self.ranks
        if layout == "v":
            return min(stage, self.stages - 1 - stage)
        return stage if micro_batch < self.micro_batches // 2 else self.ranks - 1 - stage

    def stages_of(self, rank: int) -> tuple[int, ...]:
        """The stages `rank` holds, the one that its first micro-batch of direction 0 meets first."""
        layout = LAYOUTS[self.name]
        if layout == "loop":
            return tuple(range(rank, self.stages, self.ranks))
        return rank, self.stages - 1 - rank

    def holders(self, stage: int) -> tuple[int, ...]:
        """The ranks that hold `stage`: two in a two-way schedule, else one."""
        return tuple(rank for rank in range(self.ranks) if stage in self.stages_of(rank))
