"""Which copies of snapshots lie in whose memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["HELD", "Copies", "arrived"]

HELD = 2
"""Copies of a shard that a keeper holds."""


@dataclass
class Copies:
    """Of one run. `keepers`: who was told to copy its snapshots to whom, last looked at in the generation `assigned`;
    `held`: keeper -> rank -> committed steps of the copies it holds; `era`: the generation since which no step was
    undone: older copies may be of a history that was left. Those of each shape are told apart by its number."""

    keepers: dict[str, str] = field(default_factory=dict)
    assigned: int = -1
    held: dict[str, dict[int, tuple[int, ...]]] = field(default_factory=dict)
    era: int = 0

    def copy(self) -> Copies:
        held = {keeper: dict(ranks) for keeper, ranks in self.held.items()}
        return Copies(dict(self.keepers), self.assigned, held, self.era)

    def undo(self, steps: int, generation: int) -> None:
        """Steps from `steps` on are taken back: copies of them count no more, nor do those that are under way."""
        self.keepers, self.era = {}, generation
        for ranks in self.held.values():
            for rank, kept in ranks.items():
                ranks[rank] = tuple(s for s in kept if s <= steps)


def arrived(copies: Mapping[int, Copies], keeper: str, rank: int, steps: int, shape: int) -> None:
    """A copy has arrived whole; the oldest makes room for it. `copies`: of each shape, by its number."""
    there = [(one, number) for number, of in copies.items() for one in of.held.get(keeper, {}).get(rank, ())]
    kept = [*sorted(one for one in there if one < (steps, shape)), (steps, shape)][-HELD:]
    for number, of in copies.items():
        mine = tuple(one for one, its in kept if its == number)
        if mine or rank in of.held.get(keeper, {}):
            of.held.setdefault(keeper, {})[rank] = mine
