"""The last good state, in this worker's own memory: what a step that went wrong is rolled back to.

All workers take it at the same committed steps (every `snapshots.every`, and whenever a generation begins, since a
healed cell has none), so that all go back to the same state. The step counter is not turned back: the steps since then
count as done, their samples as skipped.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["Snapshot", "checksum", "room_for"]


class Snapshot:
    """One copy of a worker's tensors; its memory is used again for the next. From a GPU they are copied into pinned
    memory, queued one behind the other and waited for once."""

    def __init__(self) -> None:
        self.steps = -1
        self._copies: list[torch.Tensor] = []
        self._lent = False

    def take(self, tensors: Sequence[torch.Tensor], steps: int) -> None:
        """Copy the state after `steps` committed steps; a copy that is lent stays with who reads it."""
        if self._lent or len(self._copies) != len(tensors):
            self._copies, self._lent = [room_for(tensor) for tensor in tensors], False
        for mine, tensor in zip(self._copies, tensors, strict=True):
            mine.copy_(tensor.detach(), non_blocking=True)
        if any(tensor.is_cuda for tensor in tensors):
            torch.cuda.current_stream().synchronize()
        self.steps = steps

    def lend(self) -> list[torch.Tensor]:
        """The copy, for another thread to read."""
        self._lent = True
        return self._copies

    def give_back(self, copies: list[torch.Tensor]) -> None:
        """Nobody reads `copies` any more."""
        if copies is self._copies:
            self._lent = False

    def restore(self, tensors: Sequence[torch.Tensor]) -> int:
        """Write the copy back; returns its steps.

        Raises:
            RuntimeError: there is none.
        """
        if self.steps < 0:
            raise RuntimeError("the workload asks to roll back, but there is no snapshot: set snapshots.every")
        for mine, tensor in zip(self._copies, tensors, strict=True):
            tensor.detach().copy_(mine)
        return self.steps


def room_for(tensor: torch.Tensor) -> torch.Tensor:
    """CPU memory for a copy: pinned, of a tensor on a GPU."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)


def checksum(tensors: Sequence[torch.Tensor]) -> float:
    """A sum over all bits of a state that any single flipped bit changes; an integer below 2**52, exact in float64."""
    totals: dict[torch.device, torch.Tensor] = {}  # each read once: to read one waits for its device
    for tensor in tensors:
        octets = tensor.detach().contiguous().view(-1).view(torch.uint8)
        words = octets[: octets.numel() // 4 * 4].view(torch.int32)
        total = totals.setdefault(octets.device, octets.new_zeros((), dtype=torch.int64))
        total += words.sum(dtype=torch.int64) + octets[words.numel() * 4 :].sum(dtype=torch.int64)
    return float(sum(int(total) for total in totals.values()) % (1 << 52))
