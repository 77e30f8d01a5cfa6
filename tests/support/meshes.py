"""Ranks of cells of the real model one after the other in this process, on a process group that carries nothing: what
each has of a state, and how one mesh's is filled from another's."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from shoal.worker import courier
from shoal.worker.shelf import Held, Shelf
from shoal_core.ckpt.plan import Holder
from shoal_core.ckpt.tables import Table, table_of
from shoal_workloads.pretrain import Pretrain
from shoal_workloads.replica import PretrainShard
from tests.support import synthetic

NAME = "state/0/0"
SECTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all": {"ema_decay": 0.9, "model": {"mtp_depth": 2}, "optim": {"moments": "bf16"}},
}


@dataclass(frozen=True)
class Layout:
    """`workers` of a cell that share a model as `parallel` (pairs of a name and a value) says; `moved`: experts lie in
    other places than those of their numbers."""

    workers: int
    parallel: tuple[tuple[str, Any], ...] = ()
    moved: bool = False

    def __str__(self) -> str:
        words = [f"{name}{value}" for name, value in self.parallel]
        return "-".join([str(self.workers), *words, *["moved"] * self.moved])


def layout(workers: int, *, moved: bool = False, **parallel: Any) -> Layout:
    rebalance = {"rebalance": 2} if moved else {}
    return Layout(workers, tuple({**parallel, **rebalance}.items()), moved)


@contextmanager
def rank_of(rank: int, workers: int) -> Iterator[None]:
    """As in a cell of so many."""
    if workers > 1:
        dist.init_process_group("fake", rank=rank, world_size=workers, store=FakeStore())
    try:
        yield
    finally:
        if workers > 1:
            dist.destroy_process_group()


@cache
def shards(one: Layout, sections: str) -> tuple[PretrainShard, ...]:
    """Of every rank, with values of no meaning."""
    more = {**SECTIONS[sections]}
    model = {"n_layers": 4, "d_model": 24, **more.pop("model", {})}
    batch = {"global_batch": 24, "micro_batch": 1}
    config = synthetic.tiny(model=model, batch=batch, parallel=dict(one.parallel), **more)
    found = []
    for rank in range(one.workers):
        with rank_of(rank, one.workers):
            found.append(synthetic.with_samples(Pretrain(config).build_to_fill(7)))
    return tuple(found)


# ---- a state, by a way of its own: from the places of shards that the model itself names


@cache
def value(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """What a tensor of a state is, whole: each element another."""
    random = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)


def places(replica: PretrainShard, *, moved: bool) -> list[torch.Tensor]:
    """What should be known of where experts lie: places, those that are wanted, load, and steps measured."""
    experts, routers = replica.config.model.n_experts, len(replica._biases)
    random = torch.Generator().manual_seed(3)
    own = torch.arange(experts).repeat(routers, 1)
    load = torch.rand(own.shape, generator=random, dtype=torch.float64)
    if not moved:
        return [own, own, torch.zeros_like(load), torch.zeros(2, dtype=torch.int64)]
    found = torch.stack([torch.randperm(experts, generator=random) for _ in range(routers)])
    return [found, found.flip(0), load, torch.tensor([1, 1])]


def parts(replica: PretrainShard, *, moved: bool) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Every local tensor of a state that has a name, and what it should be. `moved`: whether experts were, before."""
    for kind, tensors in replica._optimizer.kinds().items():
        for shard, local in zip(replica.shards, tensors, strict=True):
            whole = value(f"{kind}.{shard.name}", shard.shape, local.dtype)
            if ".experts." in shard.name and replica._rebalance is not None:
                router = replica._rebalance._router_of[replica.shards.index(shard)]
                whole = whole[replica._rebalance._held[router].argsort()]
            ends = zip(shard.first, local.shape, strict=True)
            yield local, whole[tuple(slice(first, first + length) for first, length in ends)]
    for number, bias in enumerate(replica._biases):
        yield bias, value(f"router_bias.{number}", tuple(bias.shape), bias.dtype)
    if replica._rebalance is not None:
        yield from zip(replica._rebalance.tensors(), places(replica, moved=moved), strict=True)
    yield replica._guard.state, value("guard", tuple(replica._guard.state.shape), replica._guard.state.dtype)


@dataclass(frozen=True)
class Memory:
    """What a rank holds for others, and the table that they are told of it."""

    shelf: Shelf
    table: Table

    @classmethod
    def of(cls, held: Held) -> Memory:
        shelf = Shelf()
        shelf.put(NAME, held)
        return cls(shelf, shelf.tables(NAME)[NAME])


@cache
def memories(one: Layout, sections: str) -> tuple[Memory, ...]:
    """What every rank has in memory, of a state whose every element is known."""
    found = []
    for replica in shards(one, sections):
        if replica._rebalance is not None:
            for tensor, expected in zip(replica._rebalance.tensors(), places(replica, moved=True), strict=True):
                tensor.copy_(expected)
            replica.loaded(0)
        for local, expected in parts(replica, moved=True):
            local.copy_(expected)
        tensors = replica.tensors()
        copies = [tensor.detach().clone() for tensor in tensors]
        found.append(Memory.of(Held(copies, table_of(replica.placed(), tensors))))
    return tuple(found)


# ---- filled


def fill(
    replica: PretrainShard, holders: Mapping[str, Memory], own: str = "", turn: int = 0
) -> tuple[Counter[str], int]:
    """Fill a rank's state from what others, and itself, have; returns the bytes that are of each, and its bytes."""
    for tensor in replica.tensors():
        tensor.zero_()
    if replica._rebalance is not None:
        for tensor, first in zip(replica._rebalance.tensors(), places(replica, moved=False), strict=True):
            tensor.copy_(first)
    replica.loaded(0)
    step: Any = SimpleNamespace(shard=replica, sums=SimpleNamespace(state=dict))
    tables = {key: Holder(memory.table) for key, memory in holders.items()}
    given = courier.filled(step, tables, {key: memory.shelf for key, memory in holders.items()}, own, turn)
    known = {name for memory in holders.values() for name in memory.table}
    return given, sum(local.nbytes for piece, local in replica.placed() if piece.name in known)


def differing(replica: PretrainShard, before: Layout) -> Sequence[str]:
    """What of a state that was filled from that of a mesh is not what it should be, to the bit."""
    found = parts(replica, moved=before.moved)
    return [str(tuple(local.shape)) for local, expected in found if not torch.equal(local, expected)]
