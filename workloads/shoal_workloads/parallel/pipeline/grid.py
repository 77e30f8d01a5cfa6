"""Who is who in a cell with pipeline stages, and who holds which parameters.

The worker at stage rank p, expert-FSDP index f and expert index e has rank p * (efsdp * ep) + f * ep + e: an expert
group is a run of ranks, and the workers with the same f and e form a chain through the stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shoal_workloads.parallel.schedule import Schedule

__all__ = ["Grid", "holders_of"]


@dataclass(frozen=True)
class Grid:
    """The axes of a cell of `pp * chains` workers, `ep` of which share experts, as rank `rank` sees them."""

    pp: int
    chains: int
    ep: int
    rank: int

    @property
    def stage_rank(self) -> int:
        """This worker's place in its chain."""
        return self.rank // self.chains

    @property
    def chain(self) -> int:
        """Which chain this worker is in."""
        return self.rank % self.chains

    def at(self, stage_rank: int, chain: int | None = None) -> int:
        """The rank at a place of a chain, this worker's own if none is named."""
        return stage_rank * self.chains + (self.chain if chain is None else chain)

    def expert_group(self, rank: int) -> tuple[int, ...]:
        """The ranks that share experts with `rank`."""
        first = rank // self.ep * self.ep
        return tuple(range(first, first + self.ep))

    def expert_groups(self) -> list[tuple[int, ...]]:
        """All of them."""
        return [self.expert_group(rank) for rank in range(0, self.pp * self.chains, self.ep)]

    def holders(self, stage_ranks: Sequence[int]) -> list[int]:
        """Everybody at these places, in order."""
        return [self.at(stage_rank, chain) for stage_rank in stage_ranks for chain in range(self.chains)]

    def expert_holders(self, stage_ranks: Sequence[int]) -> list[list[int]]:
        """The same as rows of expert groups: column e holds the e-th part of the experts."""
        everybody = self.holders(stage_ranks)
        return [everybody[first : first + self.ep] for first in range(0, len(everybody), self.ep)]


def holders_of(schedule: Schedule, stage: int) -> tuple[int, ...]:
    """The stage ranks that hold `stage`: two in a two-way schedule, else one."""
    return tuple(rank for rank in range(schedule.ranks) if stage in schedule.stages_of(rank))
