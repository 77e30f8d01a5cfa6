"""The copy of a state that is written while training goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal_core.ckpt.pieces import Piece
from shoal_core.ckpt.state import bytes_of

if TYPE_CHECKING:
    import torch

    from shoal_core.lane import Copy, Lane

__all__ = ["Stage", "Staged"]


@dataclass(frozen=True)
class Staged:
    """A copy of what a rank has of a state, which may still be on its way."""

    rooms: Mapping[Piece, torch.Tensor]
    copy: Copy

    def read(self) -> dict[Piece, memoryview]:
        """Its bytes, once they are there. Any thread."""
        self.copy.wait()
        return {piece: bytes_of(room) for piece, room in self.rooms.items()}


class Stage:
    """One copy in the CPU's memory; its memory is used again for the next. `lane`: what it leaves its device over;
    whoever changes the state lets it precede."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._kept: dict[Piece, torch.Tensor] = {}

    def take(self, mine: Mapping[Piece, torch.Tensor]) -> Staged:
        """Begin to copy what this rank is to write (`state.held`). The last copy, which has ended, is gone."""
        self._kept = {piece: self._room(piece, local) for piece, local in mine.items()}
        self._lane.follow()
        return Staged(self._kept, self._lane.copy(list(self._kept.values()), list(mine.values())))

    def _room(self, piece: Piece, local: torch.Tensor) -> torch.Tensor:
        from shoal_core.lane import room_for

        kept = self._kept.get(piece)
        return room_for(local) if kept is None or kept.is_pinned() != local.is_cuda else kept
