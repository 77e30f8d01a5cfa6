"""Coordinates inside a cell: pipeline stages of FSDP x expert-parallel ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from shoal_core.errors import UserError

__all__ = ["Mesh", "Seat", "cell_mesh"]


class Seat(NamedTuple):
    """A place in a cell."""

    cell: int
    rank: int


@dataclass(frozen=True)
class Mesh:
    """Axis sizes of a cell: `pp` stages x `fsdp` x `ep` (the ranks that share a layer's experts).

    `ep_node`: so many consecutive ranks of an expert group the workload takes for those of one node; a divisor of `ep`.

    `rank = stage * fsdp * ep + fsdp_index * ep + ep_index`: an expert group is `ep` consecutive ranks, a stage
    `fsdp * ep`.
    """

    pp: int = 1
    fsdp: int = 1
    ep: int = 1
    ep_node: int = 1

    @classmethod
    def of(cls, sizes: Mapping[str, int], workers: int) -> Mesh:
        """From the axis sizes a workload names; `fsdp` is what is left of a cell's `workers`. A workload that names
        none has one stage whose ranks all talk to each other.

        Raises:
            UserError: the axes do not divide the workers.
        """
        pp, ep = sizes.get("pp", 1), sizes.get("ep", 1 if sizes else workers)
        fsdp = sizes.get("fsdp", workers // (pp * ep) if pp * ep else 0)
        if min(pp, ep, fsdp) < 1 or pp * fsdp * ep != workers:
            per = max(1, pp) * max(1, ep)
            below, above = workers // per * per, -(-workers // per) * per
            fits = " or ".join(str(n) for n in sorted({below, above} - {0}))
            raise UserError(
                f"workers_per_cell: {workers} workers cannot be cut into pp {pp} x ep {ep} x fsdp {max(1, fsdp)}",
                f"set workers_per_cell to a multiple of pp x ep = {per} (nearest: {fits}), or lower pp or ep",
            )
        return cls(pp, fsdp, ep, sizes.get("ep_node", 1))

    @property
    def workers(self) -> int:
        return self.pp * self.fsdp * self.ep

    @property
    def per_stage(self) -> int:
        return self.fsdp * self.ep

    def coords(self, rank: int) -> tuple[int, int]:
        """(stage, shard) of a rank."""
        return divmod(rank, self.per_stage)

    def named(self, rank: int) -> dict[str, int]:
        """The coordinates of a rank, as records give them."""
        stage, shard = self.coords(rank)
        return {"stage": stage, "shard": shard}

    def group(self, rank: int) -> range:
        """Ranks of the expert group that `rank` is in."""
        first = rank - rank % self.ep
        return range(first, first + self.ep)

    def stage(self, rank: int) -> range:
        """Ranks of the stage that `rank` is in."""
        first = rank - rank % self.per_stage
        return range(first, first + self.per_stage)


def cell_mesh(workload: object, workers: int) -> Mesh:
    """The mesh of a workload's cells of `workers`: what its method `mesh(workers_per_cell)` names, if it has one.

    Raises:
        UserError: the axes do not divide the workers.
    """
    names = getattr(workload, "mesh", None)
    return Mesh.of(names(workers) if names else {}, workers)
