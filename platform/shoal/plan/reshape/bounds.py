"""Which shapes a run may take: what the job allows, what the workload lets pass and what the batch can be cut for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import gcd, isqrt

from shoal_core.errors import UserError
from shoal_core.mesh import Mesh
from shoal_core.workload import Workload

__all__ = ["Bounds", "Limits", "bounds_of", "check_limits", "meshes_within", "remark"]


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
    """
    meshes, refused = [home], dict[Mesh, str]()
    for mesh in meshes_within(home, limits, gcd(*batches) // workload.micro_batch):
        if mesh == home or not passes(workload, mesh):
            continue
        why = workload.other_bits(asdict(home), asdict(mesh)) if exact else None
        if why is None:
            meshes.append(mesh)
        else:
            refused[mesh] = f"reduce: exact could not promise its bits there: {why}"
    return Bounds(tuple(meshes), limits, refused)


def check_limits(limits: Limits, home: Mesh, cells: int) -> None:
    """Whether a run may begin as it is asked to: `cells` cells of `home`.

    Raises:
        UserError: the limits leave that out.
    """
    least, most = limits.cells
    found = [
        ("ep", "ep", home.ep, limits.ep),
        ("pp", "pp", home.pp, limits.pp),
        ("cells", "cells", cells, None if least <= cells <= most else limits.cells),
    ]
    for field_, word, size, sizes in found:
        if sizes is not None and size not in sizes:
            words = " to ".join(map(str, sizes)) if field_ == "cells" else ", ".join(map(str, sizes))
            raise UserError(
                f"elastic.{field_}: allows {words}, and the run begins with {word} {size}",
                f"let elastic.{field_} allow {size} too, or leave it out to allow any",
            )
    if limits.min_workers > cells * home.workers:
        raise UserError(
            f"elastic.min_workers: {limits.min_workers} workers, and the run has {cells} cells of {home.workers}",
            f"at most {cells * home.workers}",
        )


def remark(bounds: Bounds, home: Mesh) -> str:
    """What shapes a run may take, for whoever starts it."""
    others = sorted({mesh.workers for mesh in bounds.meshes if mesh != home})
    if others:
        return f"elastic: cells may also be of {', '.join(map(str, others))} workers ({len(bounds.meshes)} shapes)"
    if bounds.refused:
        return f"elastic: no other shape: {next(iter(bounds.refused.values()))}"
    return (
        "elastic: no other shape passes: cells' workers x micro_batch must divide the batch, and the model their number"
    )


def meshes_within(home: Mesh, limits: Limits, unit: int) -> Iterator[Mesh]:
    """Those that the limits allow and whose micro-batches cut up every step. `unit`: samples of the steps' greatest
    common part, in one worker's micro-batches."""
    parts = divisors(unit)
    for workers in parts:
        sizes = [part for part in parts if part <= workers and workers % part == 0]
        for pp in sizes if limits.pp is None else limits.pp:
            for ep in sizes if limits.ep is None else limits.ep:
                fsdp, rest = divmod(workers, pp * ep)
                if not rest and fsdp and (limits.fsdp or fsdp == home.fsdp):
                    yield Mesh(pp, fsdp, ep, gcd(ep, home.ep_node))


def divisors(number: int) -> list[int]:
    low = [n for n in range(1, isqrt(number) + 1) if number % n == 0]
    return sorted({*low, *(number // n for n in low)})


def passes(workload: Workload, mesh: Mesh) -> bool:
    """Whether the workload can be in such cells."""
    try:
        workload.shaped(asdict(mesh))
    except UserError:
        return False
    return True
