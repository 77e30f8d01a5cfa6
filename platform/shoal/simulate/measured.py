"""Times of a simulation by what `benchmarks/reshape.py` measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from shoal.record.jsonl import read_json
from shoal.simulate.settings import REGROUP, REGROUP_WORKERS, Times
from shoal_core.errors import UserError

__all__ = ["by_benchmark"]

KEYS = ("noticed_median", "next_commit_median", "reshaped_median", "fill_median", "step_median")


def by_benchmark(times: Times, path: Path, workers: int) -> Times:
    """`times`, of which those that a death or a change of shape takes are as measured: until a death is heard of, to
    begin a generation (with the controller's time for so many workers), to form cells of another shape. What copying a
    state takes hangs on its size and stays.

    Raises:
        UserError: the file is not such a result.
    """
    found = read_json(path)
    if found is None:
        raise UserError(f"--measured {path}: there is no such file", f"make it: {HOW}")
    for key in KEYS:
        value = found.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise UserError(f"--measured {path}: its {key!r} is no time", f"make it: {HOW}")
    noticed, commits, reshaped, fill, step = (float(found[key]) for key in KEYS)
    regroup = commits - noticed - step + REGROUP * workers / REGROUP_WORKERS
    form = reshaped - commits - fill - step
    return replace(times, closed=noticed, regroup=max(0.0, regroup), form=max(0.0, form))


HOW = "python benchmarks/reshape.py --json FILE"
