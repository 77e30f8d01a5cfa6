"""Many simulated runs, side by side on this machine's processors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

from shoal.simulate.policies import Outcome, Policy, run
from shoal.simulate.settings import Settings

__all__ = ["Task", "outcomes"]

WORTH = 4096
"""Nodes of all runs together from which on processes are started: each takes a second to begin."""


class Task(NamedTuple):
    """One seed of a policy."""

    settings: Settings
    policy: Policy
    seed: int


def outcomes(tasks: Sequence[Task]) -> Iterator[Outcome]:
    """What becomes of each, in their order: the same wherever it is simulated."""
    processes = min(len(tasks), os.cpu_count() or 1)
    if processes < 2 or sum(task.settings.nodes for task in tasks) < WORTH:
        yield from (run(*task) for task in tasks)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(run, *zip(*tasks, strict=True))
