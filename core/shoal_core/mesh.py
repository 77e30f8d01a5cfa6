"""Coordinates inside a cell: pipeline ranks of FSDP x expert-parallel workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from shoal_core.errors import UserError
from shoal_core.workload import Workload

__all__ = ["Mesh", "Seat", "cell_mesh", "divisors_near", "multiples_near"]


class Seat(NamedTuple):
    """A place in a cell."""

    cell: int
    rank: int


@dataclass(frozen=True)
class Mesh:
    """Axis sizes of a cell: `pp` pipeline ranks ("stages") x `fsdp` x `ep` (the workers that share a layer's experts).

    `ep_node`: so many consecutive ranks of an expert group the workload takes for those of one node; a divisor of `ep`.

    `rank = stage * fsdp * ep + fsdp_index * ep + ep_index`: an expert group is `ep` consecutive ranks, a stage
    `fsdp * ep`. The workers with the same place in all stages (their "shard") form a chain through the pipeline.
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
            UserError: the axes do not divide the workers: which one, and the nearest sizes that do.
        """
        pp, ep = sizes.get("pp", 1), sizes.get("ep", 1 if sizes else workers)
        if pp < 1 or workers % pp:
            raise UserError(
                f"pp: {pp} pipeline ranks do not divide the {workers} workers of a cell",
                f"pp {divisors_near(pp, workers)}, or cells of {multiples_near(max(1, pp), workers)} workers",
            )
        stage = workers // pp
        if ep < 1 or stage % ep:
            each = f"the {workers} workers of a cell" if pp == 1 else f"the {stage} workers a stage"
            cells = multiples_near(pp * max(1, ep), workers)
            raise UserError(
                f"ep: {ep} does not divide {each}", f"ep {divisors_near(ep, stage)}, or cells of {cells} workers"
            )
        fsdp = sizes.get("fsdp", stage // ep)
        if pp * fsdp * ep != workers:
            raise UserError(
                f"fsdp: pp {pp} x fsdp {fsdp} x ep {ep} are not the {workers} workers of a cell",
                f"fsdp {stage // ep}, or cells of {pp * fsdp * ep} workers",
            )
        return cls(pp, fsdp, ep, sizes.get("ep_node", 1))

    @property
    def workers(self) -> int:
        return self.pp * self.fsdp * self.ep

    @property
    def per_stage(self) -> int:
        """Workers of a stage; so many chains there are."""
        return self.fsdp * self.ep

    def coords(self, rank: int) -> tuple[int, int]:
        """(stage, shard) of a rank."""
        return divmod(rank, self.per_stage)

    def named(self, rank: int) -> dict[str, int]:
        """The coordinates of a rank, as records give them."""
        stage, shard = self.coords(rank)
        return {"stage": stage, "shard": shard}

    def chain(self, rank: int) -> range:
        """Ranks of the chain that `rank` is in, stage after stage."""
        return range(rank % self.per_stage, self.workers, self.per_stage)

    def stage(self, rank: int) -> range:
        """Ranks of the stage that `rank` is in."""
        first = rank - rank % self.per_stage
        return range(first, first + self.per_stage)

    def group(self, rank: int) -> range:
        """Ranks of the expert group that `rank` is in."""
        first = rank - rank % self.ep
        return range(first, first + self.ep)

    def groups(self, stages: Sequence[int] | None = None) -> list[range]:
        """The expert groups of some stages, or of all: a row each, so that column e holds the e-th part of the
        experts."""
        chosen = range(self.pp) if stages is None else stages
        return [self.group(rank) for stage in chosen for rank in self.stage(stage * self.per_stage)[:: self.ep]]

    def holders(self, stages: Sequence[int]) -> list[int]:
        """All ranks of some stages, in order."""
        return [rank for stage in stages for rank in self.stage(stage * self.per_stage)]


def divisors_near(value: int, whole: int) -> str:
    """The divisors of `whole` next to `value`: "2 or 4"."""
    divisors = [n for n in range(1, whole + 1) if whole % n == 0]
    below, above = [n for n in divisors if n < value][-1:], [n for n in divisors if n > value][:1]
    return " or ".join(map(str, below + above))


def multiples_near(unit: int, value: int) -> str:
    """The multiples of `unit` next to `value`, above 0: "4 or 8"."""
    below = value // unit * unit
    return " or ".join(str(n) for n in (below, below + unit) if n)


def cell_mesh(workload: Workload, workers: int) -> Mesh:
    """The mesh of a workload's cells of `workers`.

    Raises:
        UserError: the axes do not divide the workers.
    """
    try:
        return Mesh.of(workload.mesh(workers), workers)
    except UserError as error:
        raise UserError(f"workers_per_cell: {workers}: {error.problem}", error.remedy) from error
