"""Copying a replica from a living peer: all its tensors, as bytes, in buckets of bounded size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from shoal.worker.groups import Groups

__all__ = ["BUCKET", "buckets", "copy_state"]

BUCKET = 64 * 1024 * 1024
"""Bytes sent at once: large enough for full speed, small beside the state."""


def copy_state(groups: Groups, group: Any, tensors: Sequence[torch.Tensor], *, source: bool) -> int:
    """Rank 0 of the two-rank `group` (`source`) sends `tensors`; the other receives them in place.

    Both sides pass tensors of the same shapes and dtypes in the same order. Returns the bytes copied.

    Raises:
        Stopped: the generation ended meanwhile; the receiver's state is then undefined. RuntimeError: the peer is gone.
    """
    copied = 0
    for bucket in buckets(tensors):
        size = sum(part.numel() for part in bucket)
        buffer = torch.cat(bucket) if source else torch.empty(size, dtype=torch.uint8, device=bucket[0].device)
        groups.copy(group, buffer)
        if not source:
            offset = 0
            for part in bucket:
                part.copy_(buffer[offset : offset + part.numel()])
                offset += part.numel()
        copied += size
    return copied


def buckets(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Byte views of `tensors` (which must be contiguous), cut and gathered into runs of at most `BUCKET` bytes, all of
    a run on one device. The order of the bytes is that of the tensors, wherever they lie."""
    run: list[torch.Tensor] = []
    room = BUCKET
    for tensor in tensors:
        rest = tensor.detach().view(-1).view(torch.uint8)
        if run and rest.device != run[0].device:
            yield run
            run, room = [], BUCKET
        while rest.numel():
            part, rest = rest[:room], rest[room:]
            run.append(part)
            room -= part.numel()
            if not room:
                yield run
                run, room = [], BUCKET
    if run:
        yield run
