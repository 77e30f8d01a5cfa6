"""A node dies and none takes its place, on one Ray cluster: Shoal's cells take another shape; Ray Train, told that
fewer workers will do, starts those again from its last checkpoint.

Used by `reshape.py`. A cluster of this machine with 8 nodes of one slot, each a network namespace. Both train with 8
workers in steps of 0.1 s. Shoal's nodes are replaced after each kill, so that it is 2 x 4 again before the next; Ray
Train's are not: it goes on with 7 workers, then with 6.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray_train_baseline
from recovery_runs import Run
from reshape_runs import CELLS, EVERYBODY, TIMED, TWO, WORKERS, at_work, times_of, victim
from shoal.cluster import local

__all__ = ["measure"]

CLUSTER = "bench-reshape"
STEP = 0.1
FEWEST = 2
PORT = 8297


def measure(
    found: dict[str, list[dict[str, Any]]],
    repeats: int,
    kills: int,
    audits: list[dict[str, Any]],
    say: Callable[[str], None],
) -> None:
    """Add the figures of each kill to `found`: `shoal`'s and `ray_train`'s."""
    with cluster(say):
        for one in reshaped(repeats, audits) if repeats else ():
            found["shoal"].append(one)
        for other in ray_train_baseline.measure(CLUSTER, range(kills), "node", STEP, (FEWEST, EVERYBODY)):
            found["ray_train"].append(other)


@contextmanager
def cluster(say: Callable[[str], None]) -> Iterator[None]:
    local.up(CLUSTER, nodes=EVERYBODY, slots=1, dashboard_port=PORT, say=say)
    try:
        yield
    finally:
        local.down(CLUSTER)


def reshaped(repeats: int, audits: list[dict[str, Any]]) -> Iterator[dict[str, float]]:
    """Shoal's run: a node is killed, and replaced once the others have taken another shape."""
    workload = {"path": "shoal_workloads.synthetic:Synthetic", **TIMED, "seconds": STEP / 3}
    shape = {"cells": CELLS, "workers_per_cell": WORKERS, "elastic": TWO, "workload": workload}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        run = Run(CLUSTER, Path(folder), STEP, spares=0, **shape)
        try:
            for _ in range(repeats):
                run.wait_for(at_work(run.path, EVERYBODY, -1), "two cells of four")
                node, generation = victim(run.path)
                when = local.kill_node(CLUSTER, node).time
                run.wait_for(at_work(run.path, EVERYBODY - CELLS, generation), "two cells of three")
                yield times_of(run.path, when, generation)
                local.add_node(CLUSTER, slots=1)
            end = run.close()
            audits.append({key: end[key] for key in ("steps_lost", "samples_repeated", "samples_skipped")})
        finally:
            run.end()
