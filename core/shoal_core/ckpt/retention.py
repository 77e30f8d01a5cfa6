"""Which checkpoints of a run stay. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

__all__ = ["Keep", "Saved", "staying"]


@dataclass(frozen=True)
class Saved:
    """A whole checkpoint: `finite`: it was saved after a step that was a number; `bpb`: bits per byte on held-out text,
    if it was evaluated."""

    steps: int
    finite: bool = True
    bpb: float | None = None


@dataclass(frozen=True)
class Keep:
    """What stays: the `last` ones; the first in every span of `every` steps for good (0: none); the `best` ones by bits
    per byte."""

    last: int = 2
    every: int = 0
    best: int = 0


def staying(found: Iterable[Saved], keep: Keep, used: Collection[int] = ()) -> set[int]:
    """Steps of the checkpoints that stay. used: of those that somebody may be reading.

    The newest stays whatever it is, and so does the newest healthy one: what was saved after a step that was no number
    takes no healthy one's place.
    """
    whole = sorted(found, key=lambda one: one.steps)
    healthy = [one for one in whole if one.finite]
    stays = {one.steps for one in [*whole[-1:], *healthy[-max(1, keep.last) :]]}
    stays |= {one.steps for one in whole if one.steps in used}
    if keep.every:
        first: dict[int, int] = {}
        for one in healthy:
            first.setdefault(one.steps // keep.every, one.steps)
        stays |= {steps for span, steps in first.items() if span}
    if keep.best:
        told = [(one.bpb, -one.steps) for one in healthy if one.bpb is not None and one.bpb == one.bpb]
        stays |= {-steps for _, steps in sorted(told)[: keep.best]}
    return stays
