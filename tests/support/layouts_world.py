"""Runs of one training job in any layout, each rank of several cells a process; what they return is plain data.

The ranks of a `World` become cells of their own torch worlds, as the platform makes them; matching ranks of all cells
are joined to add up the sums.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from shoal import batching, checkpoint
from shoal.checkpoint import Saver
from shoal.worker.ballot import Ballot
from shoal.worker.copies import CopyServer
from shoal.worker.courier import put_together
from shoal.worker.exact import Fixed
from shoal.worker.groups import leave_world
from shoal.worker.shelf import Held, Shelf, state_name
from shoal.worker.step import world_broke
from shoal.worker.sums import Sums, largest
from shoal_core.ckpt.folder import Folder
from shoal_core.ckpt.retention import Keep
from shoal_core.ckpt.tables import table_of
from shoal_core.lane import Lane
from shoal_workloads.config import PretrainConfig
from shoal_workloads.parallel.pipeline.pipeline import Pipeline
from shoal_workloads.pretrain import Pretrain
from shoal_workloads.replica import PretrainShard
from tests.support import synthetic

Piece = tuple[str, tuple[int, ...], tuple[int, ...], np.ndarray]


@dataclass
class Run:
    """What one rank saw. Pieces: (name, shape of the whole, where the piece begins, values)."""

    metrics: list[dict[str, float]]
    gradient: list[Piece]
    """The first step's, summed over the global batch."""
    loads: np.ndarray
    state: list[Piece]
    biases: np.ndarray
    evaluation: list[float]
    notes: list[dict[str, Any]]


@dataclass
class Place:
    """Of a rank: its cell and the group of its fellows in other cells."""

    cell: int
    cells: int
    rank: int
    workers: int
    cross: Any

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.cross is not None:
            self.cross.allreduce([tensor]).wait()
        return tensor


def enter(workers: int, cells: int, folder: str) -> Place | None:
    """Leave the harness's world for that of a cell, on the same backend; none for ranks that are not needed."""
    if workers * cells == 1:
        return Place(0, 1, 0, 1, None)
    everybody, backend = dist.get_rank(), dist.get_backend()
    dist.barrier()  # who leaves while others still connect would break their connections
    dist.destroy_process_group()
    if everybody >= workers * cells:
        return None
    cell, rank = divmod(everybody, workers)
    if workers > 1:
        store = dist.FileStore(os.path.join(folder, f"cell{cell}"), workers)
        dist.init_process_group(backend, store=store, rank=rank, world_size=workers, timeout=timedelta(seconds=60))
    cross = None
    if cells > 1:
        store = dist.FileStore(os.path.join(folder, f"cross{rank}"), cells)
        cross = dist.ProcessGroupGloo(store, cell, cells, timedelta(seconds=60))
    return Place(cell, cells, rank, workers, cross)


def pieces(replica: PretrainShard, flat: torch.Tensor) -> list[Piece]:
    out, first = [], 0
    for shard in replica.shards:
        local = shard.local
        part = flat[first : first + local.numel()].view_as(local)
        out.append((shard.name, shard.shape, shard.first, part.clone().numpy()))
        first += local.numel()
    return out


def state(replica: PretrainShard) -> list[Piece]:
    """Parameters, moments and averages, as a checkpoint has them. Collective over the cell where experts were moved."""
    found = replica.state_dict()
    return [
        (name, shard.shape, shard.first, local_of(found[name]).detach().clone().float().numpy())
        for kind in ("model", "adam_m", "adam_v", "ema")
        for shard in replica.shards
        if (name := f"{kind}.{shard.name}") in found
    ]


def local_of(tensor: Any) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def step(replica: PretrainShard, place: Place, number: int, given: list[int] | None = None) -> tuple[Any, Any]:
    """One step as the platform drives it: (sums over all cells, metrics). given: how many micro-batches each cell
    takes, else they share them."""
    config = replica.config
    one = place.workers * config.batch.micro_batch
    count, first = config.batch.global_batch // one, number * config.batch.global_batch
    mine = list(range(place.cell, count, place.cells))
    if given is not None:
        start = sum(given[: place.cell])
        mine = list(range(start, start + given[place.cell]))
    replica.begin(number)
    if mine:
        coming = [range(first + m * one, first + (m + 1) * one) for m in mine]
        replica.expect([coming])
        replica.accumulate(coming)
        replica.expect([])
    total = place.add(replica.sums().clone())
    stats = place.add(torch.tensor(replica.stats(), dtype=torch.float64))
    norm = torch.tensor([replica.norm_sq(total)], dtype=torch.float64)
    if place.workers > 1:
        dist.all_reduce(stats)
        dist.all_reduce(norm)
    assert stats[3] == config.batch.global_batch
    kept = total.clone()  # a commit may write to it
    return kept, replica.commit(total, stats.tolist(), float(norm))


def train(
    config: PretrainConfig,
    steps: int,
    workers: int,
    cells: int,
    folder: str,
    given: list[int] | None = None,
    generations: Sequence[int] = (),
    healed: int = -1,
) -> Run | None:
    """Train from the start and look at everything. generations: the steps before which one begins. healed: the step
    before which all cells but the first are replaced and copy its state, while it is about to add up its sums."""
    place = enter(workers, cells, folder)
    if place is None:
        return None
    replica = synthetic.build(config)
    metrics, gradient, loads = [], [], np.zeros(0)
    notes: list[dict[str, Any]] = []
    for number in range(steps):
        if number == healed:
            replica = heal(replica, place, number)
        if number in generations:
            replica.generation_began()
        total, found = step(replica, place, number, given)
        metrics.append(found)
        notes += replica.notes()
        if number == 0:
            numel = sum(shard.local.numel() for shard in replica.shards)
            gradient, loads = pieces(replica, total), total[numel:].clone().numpy()
    part, parts = place.cell * workers + place.rank, workers * cells
    figures = place.add(torch.tensor(replica.evaluate(part, parts), dtype=torch.float64))
    if workers > 1:
        dist.all_reduce(figures)
    biases = torch.stack(replica._biases).numpy().copy()
    return Run(metrics, gradient, loads, state(replica), biases, figures.tolist(), notes)


def heal(replica: PretrainShard, place: Place, number: int) -> PretrainShard:
    """The replica of the first cell, whose sums of step `number` are thrown away, or a new one with its state."""
    if place.cell == 0:
        one = place.workers * replica.config.batch.micro_batch
        replica.begin(number)
        replica.accumulate([range(one)])
        replica.sums()
    else:
        replica = synthetic.build(replica.config)
    with torch.no_grad():
        for tensor in replica.tensors():
            place.add(tensor if place.cell == 0 else tensor.zero_())
    if place.cell > 0:
        replica.loaded(number)
    return replica


def whole(parts: list[list[Piece]]) -> dict[str, np.ndarray]:
    """The tensors that the ranks of one cell hold pieces of. Every element must be held by exactly one of them."""
    out: dict[str, np.ndarray] = {}
    held: dict[str, np.ndarray] = {}
    for name, shape, first, values in (piece for rank in parts for piece in rank):
        if name not in out:
            out[name], held[name] = np.zeros(shape, np.float32), np.zeros(shape, np.int8)
        place = tuple(slice(start, start + length) for start, length in zip(first, values.shape, strict=True))
        out[name][place] = values
        held[name][place] += 1
    for name, times in held.items():
        assert (times == 1).all(), f"{name}: an element is held {times.min()} to {times.max()} times"
    return out


def save(config: PretrainConfig, steps: int, workers: int, folder: str, root: str) -> list[Piece] | None:
    """Train `steps` steps and write a checkpoint under `root` as the platform does."""
    place = enter(workers, 1, folder)
    if place is None:
        return None
    replica = synthetic.build(config)
    replica.generation_began()
    for number in range(steps):
        step(replica, place, number)
    failures: list[str] = []
    group = dist.new_group(backend="gloo") if workers > 1 else None
    tell = (lambda *_: None, lambda _, reason, __: failures.append(reason))
    saver = Saver(Path(root), group, Lane(), Keep(2), {}, *tell)
    saver.save(steps, 0, replica.state_dict())
    saver.join()
    assert not failures, failures
    remember(replica, Path(folder) / f"memory-{place.rank}")
    return state(replica)


MEMORY: list[CopyServer] = []
"""Of this process, for others."""


def remember(replica: PretrainShard, where: Path) -> None:
    """Hold what a rank has of the state for others, as one does that leaves its cell. `where`: a file for its
    address."""
    one = CopyServer("127.0.0.1", lambda *_: None, timeout=60, secret=lambda: "s")
    tensors = [tensor.detach().clone() for tensor in replica.tensors()]
    one.shelf.put(state_name(0, 2), Held(tensors, table_of(replica.placed(), replica.tensors())))
    MEMORY.append(one)
    where.write_text(f"{one.address[0]} {one.address[1]}")


def refill(config: PretrainConfig, workers: int, folder: str, holders: str) -> Any:
    """Build anew, and fill the state from the memory of those whose addresses lie in `holders`; the state, its bytes
    here, and how many came of each."""
    place = enter(workers, 1, folder)
    if place is None:
        return None
    replica = synthetic.build(config)
    step: Any = SimpleNamespace(
        shard=replica, sums=SimpleNamespace(state=dict), member=SimpleNamespace(rank=place.rank)
    )
    lines = [path.read_text().split() for path in sorted(Path(holders).glob("memory-*"))]
    addresses = {f"w{rank}": (host, int(port)) for rank, (host, port) in enumerate(lines)}
    having = {key: (address, [state_name(0, 2)]) for key, address in addresses.items()}
    given = put_together(step, having, Shelf(), "", "s", 60.0, turn=place.rank)
    replica.loaded(2)
    named = sum(local.nbytes for _, local in replica.placed())
    return state(replica), named, given


def load(config: PretrainConfig, steps: int, workers: int, folder: str, path: str) -> Any:
    """Build anew, load a checkpoint of `steps` steps; the state, and the metrics of the next step."""
    place = enter(workers, 1, folder)
    if place is None:
        return None
    replica = synthetic.build(config)
    group = dist.new_group(backend="gloo") if workers > 1 else None
    replica.loaded(checkpoint.load(Folder.at(path), replica.state_dict(), group).steps)
    return state(replica), step(replica, place, steps)[1]


def exact(config: PretrainConfig, workers: int, folder: str, order: Sequence[int]) -> Any:
    """The sums of step 0 in fixed point, of micro-batches of a cell taken in `order`, and the figures of each."""
    place = enter(workers, 1, folder)
    if place is None:
        return None
    replica, one = synthetic.build(config), workers * config.batch.micro_batch
    fixed, figures = Fixed(len(order)), {}
    fixed.begin()
    for m in order:
        replica.begin(0)
        replica.accumulate([range(m * one, (m + 1) * one)])
        fixed.add(replica.sums())
        figures[m] = replica.stats()
    return fixed.total(), figures


@dataclass
class Exact:
    """What a rank came to in exact mode: the last metrics, and its part of the state."""

    metrics: dict[str, float]
    state: list[Piece]
    biases: np.ndarray
    guard: list[float]


def exact_run(config: PretrainConfig, steps: int, workers: int, folder: str, placed: bool = False) -> Exact | None:
    """`steps` steps in exact mode of a run of one cell, as its workers take them. placed: experts are placed anew."""
    place = enter(workers, 1, folder)
    if place is None:
        return None
    replica, workload = synthetic.build(config), Pretrain(config)
    if placed:
        replica.generation_began()
    fixed = Fixed(largest(workload, steps))
    sums = Sums(workload, replica, place.rank, workers, fixed)
    metrics: dict[str, float] = {}
    for number in range(steps):
        first, last = workload.samples(number)
        micro_batches = batching.count(first, last, workers, workload.micro_batch)
        ballot = Ballot(last - first, micro_batches, workers, 1, len(replica.stats()), exact=True, compare=False)
        for _ in range(3):
            total = sums.add_up(number, range(micro_batches))
            words = ballot.fill(sums.vote(place.rank, total), first_cell=True)
            if workers > 1:
                dist.all_reduce(words)
            count = ballot.read(words, number, first)
            norm_sq, peak = sums.judged(count)
            if agreed := sums.agreed(count, peak):
                break
            sums.forget()
        assert agreed
        value = sums.value(total)
        fixed.follow(peak)
        metrics = replica.commit(value, count.stats, norm_sq)
        sums.forget()
    biases = torch.stack(replica._biases).numpy().copy()
    return Exact(metrics, state(replica), biases, replica._guard.state.tolist())


def die(config: PretrainConfig, workers: int, folder: str, victim: int) -> Any:
    """Rank `victim` leaves the cell's world in the middle of a step; how the others hear of it: (error, seconds)."""
    place = enter(workers, 1, folder)
    if place is None:
        return None
    replica = synthetic.build(config)
    step(replica, place, 0)
    assert isinstance(replica.engine, Pipeline)
    seen = 0
    forward = replica.model.stage

    def stage(*args: Any, **options: Any) -> Any:
        nonlocal seen
        seen += 1
        if place.rank == victim and seen == 3:
            raise KeyboardInterrupt
        return forward(*args, **options)

    replica.model.stage = stage  # type: ignore[method-assign]
    start = time.monotonic()
    try:
        step(replica, place, 1)
    except KeyboardInterrupt:
        leave_world()
        return "left", time.monotonic() - start
    except RuntimeError as error:
        return type(error).__name__ if world_broke(error) else repr(error), time.monotonic() - start
    return "nothing", time.monotonic() - start
