"""Schedules by name, and which settings each of them takes."""

from __future__ import annotations

from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING

from shoal_core.errors import UserError
from shoal_workloads.parallel.schedule.actions import LAYOUTS, Schedule, Step
from shoal_workloads.parallel.schedule.bounded import bounded
from shoal_workloads.parallel.schedule.dualpipe import dualpipe, dualpipev
from shoal_workloads.parallel.schedule.one_f_one_b import interleaved, one_f_one_b, rounds
from shoal_workloads.parallel.schedule.zero_bubble import zb1p, zbv

if TYPE_CHECKING:
    from shoal_workloads.config import ParallelConfig

__all__ = ["build", "needed_micro_batches", "schedule_of", "stages_of_model"]


def stages_of_model(name: str, pp: int, virtual: int | None = None) -> int:
    """Into how many stages `name` cuts the model on `pp` ranks; `virtual`: stages a rank, for interleaved only.

    Raises:
        UserError: no such schedule, or it does not take these settings.
    """
    if name not in LAYOUTS:
        raise UserError(f"schedule: no schedule {name!r}", f"one of {', '.join(LAYOUTS)}")
    if pp < 1:
        raise UserError(f"pp: {pp} pipeline ranks", "at least 1")
    if name == "dualpipe" and pp % 2:
        raise UserError(f"pp: dualpipe wants an even number of ranks, not {pp}", f"pp {max(2, pp - 1)} or {pp + 1}")
    fixed = {"1f1b": 1, "zb1p": 1, "zbv": 2, "dualpipev": 2, "dualpipe": 2}.get(name)
    if fixed is None:
        if virtual is not None and virtual < 2:
            raise UserError(f"virtual: interleaved with {virtual} stages a rank", "at least 2; schedule 1f1b has 1")
        return pp * (virtual or 2)
    if virtual not in (None, fixed):
        raise UserError(f"virtual: {name} has {fixed} stages a rank, not {virtual}", "leave it out, or interleaved")
    return pp if name == "dualpipe" else pp * fixed


def _fits(name: str, pp: int, micro_batches: int) -> bool:
    if name == "interleaved":
        return micro_batches % rounds(pp, micro_batches) == 0
    if name == "dualpipev":
        return micro_batches >= 2 * pp
    return name != "dualpipe" or (micro_batches >= 2 * pp and micro_batches % 2 == 0)


def needed_micro_batches(name: str, pp: int, micro_batches: int) -> int:
    """The smallest number of micro-batches, at least `micro_batches`, that the schedule takes on `pp` ranks."""
    return next(n for n in count(max(1, micro_batches)) if _fits(name, pp, n))


def build(name: str, pp: int, micro_batches: int, virtual: int | None = None) -> Schedule:
    """The schedule `name` on `pp` ranks.

    Args:
        name: 1f1b, interleaved, zb1p, zbv, dualpipev or dualpipe.
        micro_batches: of all directions together.
        virtual: stages a rank of interleaved; 2 where not given.

    Raises:
        UserError: the settings do not fit the schedule; the message names the nearest that do.
    """
    stages = stages_of_model(name, pp, virtual)
    if micro_batches < 1 or not _fits(name, pp, micro_batches):
        raise UserError(*_misfit(name, pp, micro_batches))

    def order(rank: int) -> list[Step]:
        match name:
            case "1f1b":
                return one_f_one_b(rank, pp, micro_batches)
            case "interleaved":
                return interleaved(rank, pp, stages // pp, micro_batches)
            case "zb1p":
                return zb1p(rank, pp, micro_batches)
            case "zbv":
                return zbv(rank, pp, micro_batches)
            case "dualpipev":
                return dualpipev(rank, pp, micro_batches)
            case _:
                return dualpipe(rank, pp, micro_batches)

    return Schedule(name, pp, stages, micro_batches, tuple(tuple(order(rank)) for rank in range(pp)))


def schedule_of(parallel: ParallelConfig, micro_batches: int) -> Schedule:
    """The schedule of a job for at least `micro_batches` of a chain: as many as it takes.

    Raises:
        UserError: the settings do not fit the schedule.
    """
    least = needed_micro_batches(parallel.schedule, parallel.pp, micro_batches)
    return _scheduled(parallel.schedule, parallel.pp, least, parallel.virtual, parallel.waiting)


@lru_cache(maxsize=64)
def _scheduled(name: str, pp: int, micro_batches: int, virtual: int | None, waiting: int | None) -> Schedule:
    return bounded(build(name, pp, micro_batches, virtual), waiting)


def _misfit(name: str, pp: int, micro_batches: int) -> tuple[str, str]:
    """What is wrong with the number of micro-batches, and the nearest that fit."""
    rule = {
        "interleaved": f"a number that divides into rounds of at least {pp} (pp), all of one size",
        "dualpipev": f"at least 2 x pp = {2 * pp}",
        "dualpipe": f"an even number, at least 2 x pp = {2 * pp}",
    }.get(name, "at least 1")
    above = needed_micro_batches(name, pp, micro_batches)
    below = next((n for n in range(micro_batches - 1, 0, -1) if _fits(name, pp, n)), None)
    nearest = f"{above} micro-batches" if below is None else f"{below} or {above} micro-batches"
    if name.startswith("dualpipe") and micro_batches < 2 * pp:
        ranks = micro_batches // 2 if name == "dualpipev" else micro_batches // 4 * 2
        nearest += f", or pp {ranks}" if ranks and _fits(name, ranks, micro_batches) else ""
    return f"micro_batches: {name} on {pp} ranks wants {rule}, not {micro_batches}", nearest
