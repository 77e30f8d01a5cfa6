"""Initial values that depend on the seed and the parameter's name alone, not on how the cell is laid out."""

from __future__ import annotations

import hashlib

import torch

from shoal_workloads.parallel.layout import Slot

__all__ = ["init_slots"]


def init_slots(slots: list[Slot], seed: int, std: float) -> None:
    """Norm weights one, everything else normal with `std` (report, section 4.2: 0.006).

    Each matrix is drawn whole from its own generator and this worker's part kept; of the stacked experts each is drawn
    by itself, so that nobody draws experts it does not hold."""
    for slot in slots:
        local = slot.local
        if len(slot.shape) == 1:
            local.fill_(1.0)
        elif len(slot.shape) == 2:
            local.copy_(_part(_draw(slot.name, seed, std, slot.shape), local, slot.first))
        else:
            for i in range(len(local)):
                whole = _draw(f"{slot.name}.{slot.first[0] + i}", seed, std, slot.shape[1:])
                local[i].copy_(_part(whole, local[i], slot.first[1:]))


def _draw(name: str, seed: int, std: float, shape: tuple[int, ...]) -> torch.Tensor:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.empty(shape).normal_(0.0, std, generator=generator)


def _part(whole: torch.Tensor, local: torch.Tensor, first: tuple[int, ...]) -> torch.Tensor:
    for dim, start in enumerate(first):
        whole = whole.narrow(dim, start, local.shape[dim])
    return whole
