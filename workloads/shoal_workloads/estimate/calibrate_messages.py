"""Measures what workers of one machine say to each other (`Messages`), by the product's own means: processes of one
thread each, over gloo; and what a commit takes."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from math import sqrt
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import fully_shard

from shoal_core.errors import UserError
from shoal_workloads.estimate.hardware import Line, Messages
from shoal_workloads.parallel.dispatch import Route, Transfer
from shoal_workloads.parallel.groups import make_groups
from shoal_workloads.parallel.zero import Held, Zero
from shoal_workloads.recipe.adamw import AdamW, AdamWConfig

__all__ = ["line", "messages", "update"]

REPEATS = 15
WIDTHS = (256, 1280)
"""Of square matrices of float32: 0.26 and 6.6 MB, as layers of models have them that one trains on such a machine."""
BUSY, UNITS = 512, 4
Point = tuple[float, float]
"""Bytes from others, and seconds."""


def messages(workers: int, seconds: float = 120.0) -> Messages | None:
    """Between `workers` processes; none between fewer than two.

    Raises:
        UserError: they did not come to an end within `seconds`, or one failed: what it said.
    """
    if workers < 2:
        return None
    with tempfile.TemporaryDirectory() as folder:
        store, out = Path(folder) / "store", Path(folder) / "found"
        command = [sys.executable, "-m", __spec__.name, str(store), str(out), str(workers)]
        logs = [(Path(folder) / f"log{rank}").open("w+") for rank in range(workers)]
        ranks = [
            subprocess.Popen([*command, str(rank)], stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
            for rank, log in enumerate(logs)
        ]
        try:
            end = time.monotonic() + seconds
            for rank, log in zip(ranks, logs, strict=True):
                if rank.wait(max(0.0, end - time.monotonic())):
                    log.seek(0)
                    said = (log.read().strip().splitlines() or ["nothing"])[-1]
                    raise UserError(f"--calibrate: a process that sends failed ({said})", "see that gloo works here")
        except subprocess.TimeoutExpired as error:
            raise UserError(
                f"--calibrate: {workers} processes did not get through their messages in {seconds:.0f} s",
                "fewer workers, or a machine with less to do",
            ) from error
        finally:
            for rank, log in zip(ranks, logs, strict=True):
                rank.kill()
                rank.wait()
                log.close()
        found = json.loads(out.read_text())
    return Messages(waiting=found["waiting"], **{name: line(points) for name, points in found["lines"].items()})


def line(points: Sequence[Point]) -> Line:
    """Through the least and the most bytes; neither part is less than nothing."""
    (few, soon), (many, late) = min(points), max(points)
    byte = (late - soon) / (many - few)
    if byte <= 0 or byte * few > soon:
        byte = late / many
    return Line(fixed=max(0.0, late - byte * many), byte=byte)


def update(count: int = 12, side: int = 1024) -> float:
    """Seconds for each parameter that a worker holds, of so many matrices: sums copied out, their norm, clipping,
    AdamW."""
    torch.set_num_threads(1)
    parameters, grads = ([torch.randn(side, side) for _ in range(count)] for _ in range(2))
    adamw = AdamW(parameters, AdamWConfig())

    def step() -> None:
        total = torch.empty(count * side * side)
        parts = [part.view(side, side) for part in total.split(side * side)]
        for part, grad in zip(parts, grads, strict=True):
            torch.mul(grad, 1.0, out=part)
        torch.linalg.vector_norm(total, dtype=torch.float64)
        total.mul_(0.5)
        adamw.step(parts, 1e-9, 1)

    return timed(step) / (count * side**2)


def timed(run: Callable[[], None]) -> float:
    """Seconds, all ranks beginning at once where there are several: the lower quartile, since what is short and met by
    other work takes many times as long."""
    found = []
    for _ in range(2 * REPEATS + 2):
        if dist.is_initialized():
            dist.barrier()
        start = time.monotonic()
        run()
        found.append(time.monotonic() - start)
    return statistics.quantiles(found[2:], n=4)[0]


# ---- of a rank


class Unit(nn.Module):
    """Multiplies `times` over with one matrix."""

    def __init__(self, width: int, times: int) -> None:
        super().__init__()
        self.linear, self._times = nn.Linear(width, width, bias=False), times

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self._times):
            x = F.silu(self.linear(x))
        return x


def fsdp(width: int, rows: int, times: int) -> tuple[list[float], list[float]]:
    """Seconds of a unit's forward and backward, side by side with others that have nothing to do with it, and what it
    takes more where they share it."""
    stack = nn.Sequential(*[Unit(width, times) for _ in range(UNITS)])
    x = torch.randn(rows, width)

    def passes() -> list[float]:
        found = []
        for _ in range(REPEATS + 2):
            dist.barrier()
            start = time.monotonic()
            loss = stack(x).sum()
            between = time.monotonic()
            loss.backward()
            found.append((between - start, time.monotonic() - between))
        return [statistics.median(one) / UNITS for one in zip(*found[2:], strict=True)]

    alone = passes()
    for unit in stack:
        fully_shard(unit, reshard_after_forward=False)
    fully_shard(stack, reshard_after_forward=False)
    return alone, [two - one for one, two in zip(alone, passes(), strict=True)]


def meetings(workers: int) -> tuple[list[Point], list[Point], float]:
    """Gather and reduce of units that compute next to nothing; and of units that do compute what their workers wait for
    each other besides, over the root of two meetings a unit in its seconds."""
    taken = [4.0 * width * width * (workers - 1) / workers for width in (*WIDTHS, BUSY)]
    few = [fsdp(width, 8, 1)[1] for width in WIDTHS]
    gather, reduce = ([(b, one[i]) for b, one in zip(taken, few, strict=False)] for i in range(2))
    computed, more = fsdp(BUSY, 384, 6)
    said = sum(line(points).seconds(taken[-1]) for points in (gather, reduce))
    return gather, reduce, max(0.0, sum(more) - said) / sqrt(2 * sum(computed))


def holders(width: int, count: int, rank: int, ranks: tuple[int, ...]) -> tuple[Point, Point]:
    """Gather and reduce of so many matrices that all `ranks` hold: by what comes from others, or, of one, by all."""
    groups = make_groups([ranks]) if len(ranks) > 1 else {}
    each = [nn.Parameter(torch.randn(width, width)) for _ in range(count)]
    zero = Zero([Held(str(i), one, torch.tensor(ranks)) for i, one in enumerate(each)], groups, rank, "cpu")
    for one in each:
        one.grad = torch.randn(width, width)
    out = [torch.empty_like(shard.local) for shard in zero.shards]

    def gather() -> None:
        zero.changed()
        zero.gather()

    moved = 4.0 * count * width * width * ((len(ranks) - 1) / len(ranks) if len(ranks) > 1 else 1.0)
    return (moved, timed(gather)), (moved, timed(lambda: zero.scatter(out)))


def exchange(rows: int, workers: int, width: int = 256) -> Point:
    """One way of one pass, with what it says of sizes first."""
    group = dist.group.WORLD
    assert group is not None
    each = [rows // workers] * workers
    x = torch.randn(sum(each), width)

    def trip() -> None:
        counts = torch.tensor(each)
        dist.all_to_all_single(torch.empty_like(counts), counts, group=group)
        Transfer(x, Route(group, each, each), fp8=(False, False)).land()

    return 4.0 * width * rows * (workers - 1) / workers, timed(trip)


def send(numel: int, rank: int) -> Point:
    """There and back, half of it."""
    mine, theirs = torch.randn(numel), torch.empty(numel)

    def both() -> None:
        if rank == 0:
            dist.send(mine, 1)
            dist.recv(theirs, 1)
        elif rank == 1:
            dist.recv(theirs, 0)
            dist.send(mine, 0)

    return 4.0 * numel, timed(both) / 2


def across(numel: int, workers: int) -> Point:
    """Bytes: as `step.committed` counts them."""
    sums = torch.randn(numel)
    return 2 * 4.0 * numel * (workers - 1) / workers, timed(lambda: dist.all_reduce(sums))


def rank_main(store: str, out: str, workers: int, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", store=dist.FileStore(store, workers), rank=rank, world_size=workers, timeout=timedelta(seconds=60)
    )
    found: dict[str, list[Point]] = {}
    found["gather"], found["reduce"], waiting = meetings(workers)
    for width, count in ((256, 4), (1024, 10)):
        both = holders(width, count, rank, tuple(range(workers)))
        for name, point in zip(("holders_gather", "holders_reduce"), both, strict=True):
            found.setdefault(name, []).append(point)
        (moved, gathered), (_, scattered) = holders(width, count, rank, (rank,))
        found.setdefault("held", []).append((moved, gathered + scattered))
    found["exchange"] = [exchange(rows, workers) for rows in (64, 2048)]
    found["send"] = [send(numel, rank) for numel in (1 << 12, 1 << 18)]
    found["sum"] = [across(numel, workers) for numel in (1 << 16, 1 << 22)]
    if rank == 0:
        Path(out).write_text(json.dumps({"lines": found, "waiting": waiting}))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    rank_main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
