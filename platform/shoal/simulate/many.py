"""Many simulated runs, side by side on this machine's processors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import NamedTuple

from shoal.simulate.policies import Outcome, Policy, run
from shoal.simulate.settings import Settings

__all__ = ["Simulate", "Task", "side_by_side"]


class Task(NamedTuple):
    """One seed of a policy."""

    settings: Settings
    policy: Policy
    seed: int


Simulate = Callable[[Sequence[Task]], Iterator[Outcome]]
"""What becomes of each task, in their order: the same wherever it is simulated."""


@contextmanager
def side_by_side(*, worth: bool) -> Iterator[Simulate]:
    """A way to simulate, in as many processes as there are processors if that is `worth` the second in which they
    start, else in this one."""
    processes = os.cpu_count() or 1
    if not worth or processes < 2:
        yield lambda tasks: (run(*task) for task in tasks)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        try:
            yield lambda tasks: pool.map(run, *zip(*tasks, strict=True))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
