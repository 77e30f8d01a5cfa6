"""What it takes to go on in cells of another shape when there is no spare, and what that is worth.

    python benchmarks/reshape.py --json FILE [--repeats 10] [--seconds 0.04]

2 cells x 4 workers, each worker on a node of its own, no spare: real processes and real gloo without Ray
(`shoal.testing`). The quadratic of `shoal_workloads.synthetic` sleeps for each micro-batch, one sample for each worker
of the cell that takes it: a step lasts as long as the share of it that a worker has.

**time**, `--repeats` runs with `elastic: {cells: [2, 2]}`, in which 2 x 3 workers follow. A worker is killed (SIGKILL),
and its node with it. Wall times from just before the signal to the line of the record:
- next commit: to the first step that a generation formed after it commits (by the other cell alone);
- reshaped: to the first step in the new shape. Before that come `told` (to pause for it) and the phases of the record:
  `pause` (in it the step above), `form` (of it `fill`: the slowest worker) and `first_step`;
- bytes: what crossed (the record) and what each worker had from itself (each says in its log what its shard was filled
  from), as shares of the new state; together they are 1 where every range is had once. `busiest`: what the source that
  gave most to others gave, over the mean of all members of the former shape.

**throughput**, workers killed one by one from 8 down to 2: with every shape allowed (`any`); with two cells (`two`,
down to 3: these are one cell of two, whose state nobody else holds); with `elastic` off (`dropped`, one kill: the other
cell goes on alone, until it loses a worker too). Samples a second by the median of steps that follow. `share`: against
(throughput of 8) x survivors / 8; `counted`: what it is by counting micro-batches; `over_dropping`: against `dropped`.

Every run is stopped and its record audited: steps lost, samples repeated and skipped.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from shoal import batching
from shoal.record import read
from shoal.testing.processes import WORKERS_LOG
from shoal.worker import courier

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.support.lab import Lab, lab

CELLS, WORKERS = 2, 4
EVERYBODY = CELLS * WORKERS
NODES = {f"n{number}": 1 for number in range(EVERYBODY)}
TIMED = {"global_batch": 24, "parameters": 252_000, "seconds": 0.02}
"""3 micro-batches a cell and step; 2 MB of state."""
SHARED = {"global_batch": 168, "parameters": 840}
"""Micro-batches that 8, 7, 6, 4, 3 and 2 workers share without a rest, and 5 nearly so."""
STATE = 8
"""Bytes of state that a parameter has: its value and its momentum."""
ANY = {"hold_s": 0.0}
TWO = {"hold_s": 0.0, "cells": [CELLS, CELLS]}
STEPS = 4
"""Whose median is a throughput."""
LOOK = 0.1
"""Seconds between two looks at a record: seldom enough to leave the cores to the run."""
FILLED = "filled from "


def saying(fill: Callable[..., Counter[str]]) -> Callable[..., Counter[str]]:
    """`courier.fill`, which puts into the worker's log what came from whom."""

    @functools.wraps(fill)
    def filled(step: Any, name: Any, addresses: Any, shelf: Any, own: str, *more: Any) -> Counter[str]:
        given = fill(step, name, addresses, shelf, own, *more)
        os.write(1, f"{FILLED}{json.dumps([own, given])}\n".encode())  # in one: all workers have one log
        return given

    return filled


if __name__ == "__mp_main__":  # so this module is called in the processes of a lab, before their work begins
    courier.fill = saying(courier.fill)


# ---- runs


@contextmanager
def running(workload: dict[str, Any], elastic: dict[str, Any] | None, audits: list[dict[str, Any]]) -> Iterator[Lab]:
    """A run at full strength, which is stopped and audited at the end."""
    shape = {"cells": CELLS, "workers_per_cell": WORKERS, "elastic": elastic, "audit": {"samples": True}}
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name,
        lab(Path(name), NODES, steps=10**6, workload=workload, **shape) as one,
    ):
        one.full(STEPS)
        yield one
        one.stop()
        run = one.finished()
        audits.append({key: run[key] for key in ("steps_lost", "samples_repeated", "samples_skipped")})


def strike(one: Lab) -> tuple[float, int]:
    """Kill a worker of the last cell that trains, and its node. Returns when, and in which generation."""
    now = read.plan(one.path)[-1]
    victim = list(now["assignment"].values())[-1][-1]
    when = time.time()
    one.kill_node(victim.rpartition("@")[2])
    return when, now["generation"]


def steady(one: Lab, seats: int, after: int) -> tuple[list[int], list[float]]:
    """Wait until so many workers train, in a generation after this one, and have for some steps. Returns the sizes of
    its cells, and the times of its steps (unix)."""

    def now() -> tuple[int, list[int], list[float]]:
        newest = read.plan(one.path)[-1]
        sizes = [len(crew) for crew in newest["assignment"].values()]
        times = [line["time"] for line in one.steps() if line["generation"] == newest["generation"]]
        return newest["generation"], sizes, times

    def trains() -> bool:
        time.sleep(LOOK)
        generation, sizes, times = now()
        return generation > after and sum(sizes) == seats and len(times) > STEPS

    one.until(trains)
    return now()[1:]


# ---- times and bytes


def timed(audits: list[dict[str, Any]]) -> dict[str, Any]:
    """A worker is killed, and the others take another shape: what that took, and what it moved."""
    with running(TIMED, TWO, audits) as one:
        when, generation = strike(one)
        steady(one, 6, generation)
        steps, (told,), death = one.steps(), one.events("reshaped"), one.events("death")[0]
        log = (one.path.parent / WORKERS_LOG).read_text()
    before = [line["seconds"] for line in steps if line["generation"] == generation and line["time"] < when]
    after = [line["time"] for line in steps if line["generation"] > generation]
    given = [json.loads(line.removeprefix(FILLED)) for line in log.splitlines() if line.startswith(FILLED)]
    times = {"noticed": death["time"] - when, "next_commit": after[0] - when, "reshaped": told["time"] - when}
    times |= {"told": told["time"] - told["seconds"] - when, **told["phases"], "step": median(before)}
    return times | bytes_of(given, told["bytes"], told["before"], told["after"]) | {"load": os.getloadavg()[0]}


def bytes_of(
    given: list[tuple[str, dict[str, int]]], crossed: int, before: list[int], after: list[int]
) -> dict[str, float]:
    """What was moved, as shares of the new state. `given`: each worker, and the bytes of its shard that are of each
    holder; `crossed`: bytes, by the record; `before`, `after`: cells, and the workers of each."""
    state = after[0] * STATE * TIMED["parameters"]
    own = sum(came.get(reader, 0) for reader, came in given)
    gave: Counter[str] = Counter()
    for reader, came in given:
        gave.update({holder: size for holder, size in came.items() if holder != reader})
    busiest = max(gave.values(), default=0) * before[0] * before[1] / max(1, gave.total())
    return {"crossed": crossed / state, "own": own / state, "bytes_ratio": (crossed + own) / state, "busiest": busiest}


# ---- throughput


def descent(
    seconds: float, elastic: dict[str, Any] | None, seats: dict[int, int], audits: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Workers are killed one by one; a row for each number of `seats` (by the number of survivors), which are those
    that train then."""
    rows: list[dict[str, Any]] = []
    with running(SHARED | {"seconds": seconds}, elastic, audits) as one:
        generation = -1
        for survivors, wanted in seats.items():
            if survivors < EVERYBODY:
                _, generation = strike(one)
            sizes, times = steady(one, wanted, generation)
            step = median(later - earlier for earlier, later in pairwise(times))
            row = {"survivors": survivors, "cells": len(sizes), "workers": sizes[0], "step": step}
            rows.append(row | {"throughput": SHARED["global_batch"] / step})
            print(f"{'elastic off' if elastic is None else elastic}: {json.dumps(rows[-1])}", flush=True)
    return shared(rows)


def shared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same with shares: throughput against that of the first row, for each survivor."""

    def longest(row: dict[str, Any]) -> int:
        """Micro-batches of the cell that has most."""
        return -(-batching.count(0, SHARED["global_batch"], row["workers"], 1) // row["cells"])

    first = rows[0]
    for row in rows:
        fewer = first["survivors"] / row["survivors"]
        row["share"] = fewer * row["throughput"] / first["throughput"]
        row["counted"] = fewer * longest(first) / longest(row)
    return rows


# ---- all of it


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """Medians of the times, the worst of the rest."""
    each, audits = result["time"], result["audits"]
    figures = {name: [one[name] for one in each] for name in (each[0] if each else ())}
    found: dict[str, Any] = {f"{name}_median": median(values) for name, values in figures.items()}
    found |= {f"{name}_max": max(values) for name, values in figures.items()}
    found["bytes_ratio"] = max(figures.get("bytes_ratio", ()), default=None)
    runs = result["throughput"]
    found |= {f"throughput_share_min_{name}": min(row["share"] for row in rows[1:]) for name, rows in runs.items()}
    found["throughput_share_min"] = found.get("throughput_share_min_any")
    for name in ("any", "two") if "dropped" in runs else ():
        alone, rows = runs["dropped"][-1]["throughput"], runs[name]
        alive = (row for row in rows if WORKERS <= row["survivors"] < EVERYBODY)
        found[f"over_dropping_{name}"] = {row["survivors"]: row["throughput"] / alone for row in alive}
    return found | {name: sum(one[name] for one in audits) for name in (audits[0] if audits else ())}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", type=Path, required=True)
    options.add_argument("--repeats", type=int, default=10, help="changes of shape that are timed")
    options.add_argument("--seconds", type=float, default=0.04, help="of a micro-batch, where throughput is measured")
    asked = options.parse_args()
    result: dict[str, Any] = {"date": date.today().isoformat(), "seconds": asked.seconds}
    result |= {"load": os.getloadavg(), "time": [], "throughput": {}, "audits": []}

    def write() -> None:
        asked.json.write_text(json.dumps(result | summary(result), indent=1) + "\n")

    for _ in range(asked.repeats):
        result["time"].append(timed(result["audits"]))
        print(json.dumps(result["time"][-1]), flush=True)
        write()
    down = range(EVERYBODY, 1, -1)
    runs: dict[str, tuple[Any, dict[int, int]]]
    runs = {"any": (ANY, {n: n for n in down}), "two": (TWO, {n: n - n % CELLS for n in down[:-1]})}
    runs["dropped"] = None, {EVERYBODY: EVERYBODY, EVERYBODY - 1: WORKERS}
    for name, (elastic, seats) in runs.items():
        result["throughput"][name] = descent(asked.seconds, elastic, seats, result["audits"])
        write()
    result["load_after"] = os.getloadavg()
    write()
    print(json.dumps(summary(result), indent=1))


if __name__ == "__main__":
    main()
