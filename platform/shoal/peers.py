"""Who writes a checkpoint together: the ranks of a cell, which talk over a group of their own, and the cells."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shoal_core.ckpt.across import Share
from shoal_core.ckpt.pieces import Piece, block_bytes, deal, spread
from shoal_core.ckpt.state import shared

if TYPE_CHECKING:
    import torch

__all__ = ["Cells", "Dealt", "Group"]


class Group:
    """The ranks of a process group of CPUs, as those who write and read a checkpoint together; none: this rank alone,
    whatever world it is in."""

    def __init__(self, process_group: Any) -> None:
        import torch.distributed as dist

        self._group = process_group
        alone = process_group is None
        self.rank, self.size = (0, 1) if alone else (dist.get_rank(process_group), dist.get_world_size(process_group))
        self.broken = False
        """A peer is gone."""

    def exchange(self, word: Any) -> list[Any]:
        """See `together.Peers`."""
        try:
            return self._exchange(word)
        except RuntimeError:
            self.broken = True
            raise

    def _exchange(self, word: Any) -> list[Any]:
        import torch
        import torch.distributed as dist

        if self.size == 1:
            return [word]
        mine = torch.frombuffer(bytearray(json.dumps(word).encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(mine)]), group=self._group)
        longest = max(int(length) for length in lengths)
        words = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(words, torch.nn.functional.pad(mine, (0, longest - len(mine))), group=self._group)
        return [json.loads(bytes(said[: int(length)].numpy())) for said, length in zip(words, lengths, strict=True)]


@dataclass(frozen=True)
class Cells:
    """Those that save a state together. `formed`: number of each, and which of its formations it is; `place`: of this
    one among them; `name`: of this save, which all have for it and for no other."""

    formed: tuple[tuple[int, int], ...]
    place: int
    name: str

    def gone(self, standing: Collection[tuple[int, int]]) -> list[int]:
        """Places of those that are not among the ones that there are now."""
        return [place for place, one in enumerate(self.formed) if one not in standing]


class Dealt:
    """What each rank of a cell writes of a state: all ranks know it, and ask each other only where somebody's pieces
    are others than the last time. `peers`: for what is asked between two steps."""

    def __init__(self, peers: Group) -> None:
        self._peers = peers
        self._mine: list[Piece] | None = None
        self._steps = -1
        self.ranks: list[list[Piece]] = []

    def learn(self, mine: list[Piece], steps: int) -> None:
        """Tell and hear who has which pieces of the state after so many steps. Collective, but the second time for the
        same steps: then nobody has to be there.

        Raises:
            ValueError: they are no state. RuntimeError: a peer is gone.
        """
        if self._steps == steps:
            return
        if any(self._peers.exchange(mine != self._mine)):
            self._mine, self._steps = None, -1
            said = self._peers.exchange([piece.told() for piece in mine])
            self.ranks = deal([[Piece.heard(piece) for piece in one] for one in said])
            self._mine = mine
        self._steps = steps

    def shared(
        self, mine: dict[Piece, torch.Tensor], steps: int, cells: Cells, gone: Callable[[], Collection[int]]
    ) -> tuple[dict[Piece, torch.Tensor], Share | None]:
        """What this rank writes of what it has, and its cell's share. What is no state has no shares: who saves all of
        it is told why. gone: places of cells that are no more. Collective as `learn`.

        Raises:
            RuntimeError: a peer is gone.
        """
        try:
            self.learn(list(mine), steps)
        except ValueError:
            return mine, None
        numbers = tuple(number for number, _ in cells.formed)
        token = hashlib.sha256(cells.name.encode()).hexdigest()[:8]
        block = block_bytes([piece for pieces in self.ranks for piece in pieces])
        parts = spread(self.ranks[self._peers.rank], len(numbers))[cells.place]
        return shared(mine, parts), Share(numbers, cells.place, self._peers.size, token, block, gone)
