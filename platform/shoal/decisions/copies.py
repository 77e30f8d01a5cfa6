"""Which copies of snapshots lie in whose memory."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["HELD", "Copies"]

HELD = 2
"""Copies of a shard that a keeper holds."""


@dataclass
class Copies:
    """Of one run. `keepers`: who was told to copy its snapshots to whom, last looked at in the generation `assigned`;
    `held`: keeper -> rank -> committed steps of the copies it holds; `era`: the generation since which no step was
    undone: older copies may be of a history that was left; `twofold`: steps at which the shards of a rank were of two
    shapes, so that it is not known of which a copy is."""

    keepers: dict[str, str] = field(default_factory=dict)
    assigned: int = -1
    held: dict[str, dict[int, tuple[int, ...]]] = field(default_factory=dict)
    era: int = 0
    twofold: int = -1

    def copy(self) -> Copies:
        held = {keeper: dict(ranks) for keeper, ranks in self.held.items()}
        return Copies(dict(self.keepers), self.assigned, held, self.era, self.twofold)

    def arrived(self, keeper: str, rank: int, steps: int) -> None:
        """A copy has arrived whole; the oldest makes room for it."""
        if steps == self.twofold:
            return
        ranks = self.held.setdefault(keeper, {})
        older = tuple(s for s in ranks.get(rank, ()) if s < steps)
        ranks[rank] = (*older, steps)[-HELD:]

    def undo(self, steps: int, generation: int) -> None:
        """Steps from `steps` on are taken back: copies of them count no more, nor do those that are under way."""
        self.keepers, self.era = {}, generation
        for ranks in self.held.values():
            for rank, kept in ranks.items():
                ranks[rank] = tuple(s for s in kept if s <= steps)

    def apart(self, steps: int) -> None:
        """Of the state after so many steps there are shards of another shape: copies of it do not count."""
        self.keepers, self.twofold = {}, steps
        for ranks in self.held.values():
            for rank, kept in ranks.items():
                ranks[rank] = tuple(s for s in kept if s != steps)
