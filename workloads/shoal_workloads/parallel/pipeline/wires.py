"""Tensors between the stages of a chain: how a transfer travels over the cell's world.

gloo knows transfers apart by tags, and they all travel over the world's own group. Every other backend is taken for one
without tags, as NCCL is: there a transfer goes over the group that `schedule.channels` numbers, four or eight of them
over the whole cell, so that nothing else stands in its way. What is issued, and in which order, is the same for both:
see `schedule.turns`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from shoal_workloads.parallel.groups import backend_of
from shoal_workloads.parallel.schedule import Schedule, Transfer, channels

__all__ = ["Wires", "make_channels"]

TAGGED = ("gloo",)


def make_channels(schedule: Schedule, device: str) -> list[dist.ProcessGroup]:
    """The groups that transfers of tensors on `device` take, by the numbers of `schedule.channels`; none where they
    have tags. Collective over the cell."""
    if backend_of(device) in TAGGED:
        return []
    return [dist.new_group() for _ in range(len(set(channels(schedule).values())))]


class Wires:
    """`chain`: the ranks of the workers that take a micro-batch through all stages of `schedule`, by their place.
    `groups`: see `make_channels`."""

    def __init__(self, schedule: Schedule, chain: Sequence[int], groups: Sequence[dist.ProcessGroup] = ()) -> None:
        self._stages, self._chain = schedule.stages, chain
        self._groups = {line: groups[number] for line, number in channels(schedule).items()} if groups else {}

    def send(self, transfer: Transfer, tensor: torch.Tensor) -> dist.Work:
        """Begin to send; the tensor must live until it is done."""
        group, peer = self._groups.get(transfer.line), self._chain[transfer.line.target]
        return _under_way(dist.isend(tensor, peer, group=group, tag=self._tag(transfer)))

    def receive(self, transfer: Transfer, buffer: torch.Tensor) -> dist.Work:
        """Begin to receive into `buffer`."""
        group, peer = self._groups.get(transfer.line), self._chain[transfer.line.source]
        return _under_way(dist.irecv(buffer, peer, group=group, tag=self._tag(transfer)))

    def _tag(self, transfer: Transfer) -> int:
        number = (transfer.micro_batch * self._stages + transfer.stage) * 2 + (transfer.line.kind == "B")
        return 0 if self._groups else number


def _under_way(work: dist.Work | None) -> dist.Work:
    assert work is not None, "this worker is in all groups of its cell"
    return work
