"""Which shapes a run may take: what the job allows, what the workload lets pass and what the batch can be cut for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import gcd

from shoal_core.errors import UserError
from shoal_core.mesh import Mesh
from shoal_core.workload import Workload

__all__ = ["Bounds", "Limits", "bounds_of"]


@dataclass(frozen=True)
class Limits:
    """What a job says may change. `fsdp`: whether that axis may; `ep`, `pp`: sizes that these axes may have (None:
    any); `cells`: fewest and most; `min_workers`: that must train; `hold_s`: seconds for which who comes must have
    stayed before the run grows onto it."""

    fsdp: bool = True
    ep: Sequence[int] | None = None
    pp: Sequence[int] | None = None
    cells: tuple[int, int] = (1, 100_000)
    min_workers: int = 1
    hold_s: float = 30.0


@dataclass(frozen=True)
class Bounds:
    """The shapes that a run may take: cells of one of `meshes`, within `limits`. `refused`: meshes that would do, were
    it not for what the job promises, and why."""

    meshes: tuple[Mesh, ...]
    limits: Limits = Limits()
    refused: Mapping[Mesh, str] = field(default_factory=dict)


def bounds_of(workload: Workload, home: Mesh, limits: Limits, batches: Sequence[int], *, exact: bool) -> Bounds:
    """The shapes of a run that begins with cells of `home`.

    Args:
        batches: samples of its steps.
        exact: recoveries may leave no trace in its bits.

    Raises:
        UserError: the limits leave out what it begins with.
    """
    check_home(limits, home)
    meshes, refused = [home], dict[Mesh, str]()
    for mesh in meshes_within(home, limits, gcd(*batches) // workload.micro_batch):
        if mesh == home or not passes(workload, mesh):
            continue
        if exact:
            refused[mesh] = UNPROMISED
        else:
            meshes.append(mesh)
    return Bounds(tuple(meshes), limits, refused)


UNPROMISED = (
    "reduce: exact promises its bits for cells of one shape alone: inside a cell gradients are added up before they are "
    "rounded, and not in the same order in another"
)


def check_home(limits: Limits, home: Mesh) -> None:
    """Whether a run may begin with cells of `home`."""
    for axis, sizes in (("ep", limits.ep), ("pp", limits.pp)):
        size = getattr(home, axis)
        if sizes is not None and size not in sizes:
            allowed = ", ".join(map(str, sizes)) or "nothing"
            raise UserError(
                f"elastic.{axis}: allows {allowed}, and the run begins with {axis} {size}",
                f"add {size} to elastic.{axis}, or leave elastic.{axis} out to allow any",
            )


def meshes_within(home: Mesh, limits: Limits, unit: int) -> Iterator[Mesh]:
    """Those that the limits allow and whose micro-batches cut up every step. `unit`: samples of the steps' greatest
    common part, in one worker's micro-batches."""
    for workers in divisors(unit):
        for pp in divisors(workers) if limits.pp is None else limits.pp:
            for ep in divisors(workers) if limits.ep is None else limits.ep:
                fsdp, rest = divmod(workers, pp * ep)
                if not rest and fsdp and (limits.fsdp or fsdp == home.fsdp):
                    yield Mesh(pp, fsdp, ep, gcd(ep, home.ep_node))


def divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def passes(workload: Workload, mesh: Mesh) -> bool:
    """Whether the workload can be in such cells."""
    try:
        workload.shaped({"pp": mesh.pp, "fsdp": mesh.fsdp, "ep": mesh.ep, "ep_node": mesh.ep_node})
    except UserError:
        return False
    return True
