"""Process groups of a cell by their ranks, each made once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch.distributed as dist

__all__ = ["backend_of", "make_groups"]


def make_groups(members: Iterable[Sequence[int]]) -> dict[tuple[int, ...], dist.ProcessGroup]:
    """A group for each set of ranks that this rank is in, by its ranks, with the backends of the cell's world. Sets of
    one are left out: there is nobody to talk to.

    members: the same list on all ranks of the cell, in the same order. Collective over the cell."""
    found = {}
    for ranks in dict.fromkeys(tuple(sorted(group)) for group in members):
        if len(ranks) > 1:
            group = dist.new_group(list(ranks))
            if dist.get_rank() in ranks:
                found[ranks] = group
    return found


def backend_of(device: str) -> str:
    """What carries tensors of a kind of device (`cuda`, `cuda:0`) in the cell's world: gloo, nccl, ..."""
    kinds = dict(part.split(":") for part in dist.get_backend_config().split(","))
    return kinds[device.partition(":")[0]]
