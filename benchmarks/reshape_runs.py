"""Runs whose workers are killed and whose cells then take another shape: in a lab, and what a record says of any.

Used by `reshape.py` and `reshape_on_ray.py`.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from shoal import batching
from shoal.record import read
from shoal.testing.processes import WORKERS_LOG
from tests.support.corpora import write_corpus
from tests.support.lab import Lab, hurry, lab

__all__ = [
    "CELLS",
    "EVERYBODY",
    "SHARED",
    "TIMED",
    "TWO",
    "WORKERS",
    "at_work",
    "descent",
    "furthest",
    "model",
    "pace",
    "saying",
    "timed",
    "times_of",
    "undisturbed",
    "victim",
]

CELLS, WORKERS = 2, 4
EVERYBODY = CELLS * WORKERS
NODES = {f"n{number}": 1 for number in range(EVERYBODY)}
TIMED = {"global_batch": 24, "parameters": 252_000, "seconds": 0.02}
"""3 micro-batches a cell and step; 2 MB of state."""
SHARED = {"global_batch": 168, "parameters": 840}
"""Micro-batches that 8, 7, 6, 4, 3 and 2 workers share without a rest, and 5 nearly so."""
STATE = 8
"""Bytes of state that a parameter has: its value and its momentum."""
TWO = {"hold_s": 0.0, "cells": [CELLS, CELLS]}
STEPS = 4
"""Whose median is a throughput."""
LOOK = 0.1
"""Seconds between two looks at a record: seldom enough to leave the cores to the run."""
FILLED = "filled from "
KINDS = ("reshaped", "death")
PHASES = ("pause", "form", "fill", "first_step")


# ---- what a record says


def pace(path: Path, more: int = STEPS) -> tuple[int, list[int], list[float]]:
    """The newest generation, the sizes of its cells, and the times (unix) of its steps, none before there are more
    than `more`."""
    newest = read.plan(path)[-1]
    sizes = [len(crew) for crew in newest["assignment"].values()]
    times = [line["time"] for line in read.steps(path) if line["generation"] == newest["generation"]]
    return newest["generation"], sizes, times if len(times) > more else []


def at_work(path: Path, seats: int, after: int) -> Callable[[], bool]:
    """Whether so many workers train in a generation after this one, and have for some steps."""

    def now() -> bool:
        time.sleep(LOOK)
        generation, sizes, times = pace(path)
        return generation > after and sum(sizes) == seats and bool(times)

    return now


def victim(path: Path) -> tuple[str, int]:
    """The node of a worker of the last cell that trains, and the generation."""
    now = read.plan(path)[-1]
    worker: str = list(now["assignment"].values())[-1][-1]
    return worker.rpartition("@")[2], now["generation"]


def times_of(path: Path, when: float, generation: int) -> dict[str, float]:
    """Seconds from a death at `when`, in this generation, to what followed; `step`: a usual one before."""
    steps = read.steps(path)
    told, death = ([e for e in read.events(path) if e["kind"] == kind and e["time"] >= when] for kind in KINDS)
    before = [line["seconds"] for line in steps if line["generation"] == generation and line["time"] < when]
    after = [line["time"] for line in steps if line["generation"] > generation]
    times = {"noticed": death[0]["time"] - when, "next_commit": after[0] - when, "reshaped": told[0]["time"] - when}
    times |= {"told": told[0]["time"] - told[0]["seconds"] - when, "step": median(before)}
    return times | {name: told[0]["phases"][name] for name in PHASES}


# ---- runs in a lab


def saying(put_together: Callable[..., Counter[str]]) -> Callable[..., Counter[str]]:
    """`courier.put_together`, which puts into the worker's log what came from whom."""

    @functools.wraps(put_together)
    def put(step: Any, holders: Any, shelf: Any, own: str, *more: Any) -> Counter[str]:
        given = put_together(step, holders, shelf, own, *more)
        os.write(1, f"{FILLED}{json.dumps([own, given])}\n".encode())  # in one: all workers have one log
        return given

    return put


@contextmanager
def running(elastic: dict[str, Any] | None, audits: list[dict[str, Any]], **settings: Any) -> Iterator[Lab]:
    """A run at full strength, which ends, if need be by being stopped, and is audited."""
    shape = {"cells": CELLS, "workers_per_cell": WORKERS, "elastic": elastic, "audit": {"samples": True}}
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name,
        lab(Path(name), NODES, **{"steps": 10**6, **shape, **settings}) as one,
    ):
        one.full(STEPS)
        yield one
        if one.job["steps"] == 10**6:
            one.stop()
        run = one.finished()
        audits.append({key: run[key] for key in ("steps_lost", "samples_repeated", "samples_skipped")})


def strike(one: Lab) -> tuple[float, int]:
    """Kill a node and its worker. Returns when, and in which generation."""
    node, generation = victim(one.path)
    when = time.time()
    one.kill_node(node)
    return when, generation


def timed(audits: list[dict[str, Any]]) -> tuple[dict[str, float], list[float]]:
    """A worker is killed, and the others take another shape: what that took and what it moved; every step's loss."""
    with running(TWO, audits, workload=TIMED) as one:
        when, generation = strike(one)
        one.until(at_work(one.path, 6, generation))
        times, (told,) = times_of(one.path, when, generation), one.events("reshaped")
        log = (one.path.parent / WORKERS_LOG).read_text()
        losses = [line["loss"] for line in one.steps()]
    given = [json.loads(line.removeprefix(FILLED)) for line in log.splitlines() if line.startswith(FILLED)]
    moved = bytes_of(given, told["bytes"], told["before"], told["after"])
    return times | moved | {"load": os.getloadavg()[0]}, losses


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


# ---- losses


def undisturbed(steps: int) -> list[float]:
    """Losses of the run that `timed` disturbs."""
    with running(TWO, [], workload=TIMED, steps=steps) as one:
        hurry(one)
        return losses_of(one)


def model(steps: int, audits: list[dict[str, Any]]) -> float:
    """A small model of DeepSeek-V3's kind (experts, MTP, averages of the weights), a worker of which is killed:
    the greatest difference of a step's loss from that of the undisturbed run."""
    with tempfile.TemporaryDirectory() as folder:
        section = section_of(Path(folder))
        curves = []
        for disturbed in (False, True):
            with running(TWO, audits, workload=section, steps=steps) as one:
                if disturbed:
                    strike(one)
                curves.append(losses_of(one))
                assert bool(one.events("reshaped")) == disturbed, one.story()
    return furthest(*curves)


def losses_of(one: Lab) -> list[float]:
    """Of every step, once the run has ended."""
    one.finished()
    return [line["loss"] for line in one.steps()]


def section_of(folder: Path) -> dict[str, Any]:
    sizes = {"d_model": 48, "n_layers": 3, "n_heads": 2, "d_head": 8, "d_rope": 4, "d_v": 8, "d_kv": 12, "d_q": 24}
    experts = {"n_experts": 12, "d_expert": 12, "d_ffn": 48, "top_k": 2}
    return {
        "path": "shoal_workloads.pretrain:Pretrain",
        "model": {"preset": "demo", "vocab_size": 400, **sizes, **experts},
        "data": {"corpus": str(write_corpus(folder / "corpus")), "seq_len": 32},
        "batch": {"global_batch": 24, "micro_batch": 1},
        "schedule": {"budget": 40 * 24 * 32, "lr": 3e-3, "warmup_steps": 0},
        "optim": {"eps": 1e-3},  # as in the tests of layouts: rounding must not become full steps of Adam
        "ema_decay": 0.9,
    }


def furthest(one: Sequence[float], other: Sequence[float]) -> float:
    """The greatest difference of the steps of `one` from those of `other`, which goes on at least as long."""
    return max(abs(mine - theirs) for mine, theirs in zip(one, other[: len(one)], strict=True))


# ---- throughput


def descent(
    seconds: float, elastic: dict[str, Any] | None, seats: dict[int, int], audits: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Workers are killed one by one; a row for each number of `seats` (by the number of survivors), which are those
    that train then."""
    rows: list[dict[str, Any]] = []
    with running(elastic, audits, workload=SHARED | {"seconds": seconds}) as one:
        generation = -1
        for survivors, wanted in seats.items():
            if survivors < EVERYBODY:
                _, generation = strike(one)
            one.until(at_work(one.path, wanted, generation))
            _, sizes, times = pace(one.path)
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
