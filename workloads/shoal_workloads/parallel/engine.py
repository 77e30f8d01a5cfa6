"""What an engine is: the way in which the workers of a cell compute a step together.

There are two, `fsdp.Fsdp` and `pipeline.pipeline.Pipeline`, of one shape:

    begin(step)                      forget all gradients
    reads(micro_batches)             whose tokens this worker reads for them
    accumulate(micro_batches, ...)   forward and backward; gradients stay where they are made
    reduce(parts)                    every shard's gradient, summed over the cell
    updated()                        the shards were written to: by the optimizer, a checkpoint, a peer
    nats(part, parts, ...)           forward over a part of the held-out samples

Shapes: n samples, T positions, L_r routers, E experts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from shoal_core.grid import Grid
from shoal_workloads.model.deepseek import DeepSeekV3, Losses
from shoal_workloads.parallel.dispatch import Exchange
from shoal_workloads.parallel.shards import ParamShard

__all__ = ["Engine", "Factors", "Figures", "Read"]

Read: TypeAlias = Callable[[Sequence[int]], torch.Tensor]
"""Positions in the global order -> their tokens, (n, T+1) int64."""


@dataclass(frozen=True)
class Factors:
    """What the parts of the loss of a sample are multiplied by: nats of the main head, of the MTP heads, balance."""

    lm: float
    mtp: float
    balance: float

    def loss(self, losses: Losses) -> torch.Tensor:
        """What is differentiated: ()."""
        return losses.lm * self.lm + losses.mtp * self.mtp + losses.balance * self.balance


class Figures:
    """Sums over the samples that this worker saw the losses of. `loads`: (L_r, E), of the L_r routers it met; `nats`:
    (3,) float64, of the main head, the MTP heads and the balance loss. Both stay on the device: whoever reads them
    waits for it."""

    def __init__(self, loads: torch.Tensor) -> None:
        self.loads, self.samples = loads, 0
        self.nats = torch.zeros(3, dtype=torch.float64, device=loads.device)

    def count(self, losses: Losses) -> None:
        """Add the losses of a micro-batch, or of what of it a stage of a pipeline sees. The loads are the caller's."""
        self.nats += torch.stack((losses.lm, losses.mtp, losses.balance)).detach()

    def add(self, other: Figures) -> None:
        self.loads += other.loads
        self.nats += other.nats
        self.samples += other.samples


class Engine(ABC):
    """`model`: as the whole, with values where this worker holds them; `shards`: the parameters it holds, in a fixed
    order; `exchange`: with the workers that share its experts, none where it has them all."""

    model: DeepSeekV3
    shards: list[ParamShard]
    exchange: Exchange | None
    grid: Grid | None = None
    """What gradients are rounded to by `reduce`, if to anything."""

    def round_to(self, grid: Grid) -> None:
        """From now on `reduce` writes int64, in units of `grid`, for one micro-batch of the cell at a time."""
        self.grid = grid

    @abstractmethod
    def begin(self, step: int) -> None:
        """Forget all gradients, for step `step`."""

    @abstractmethod
    def reads(self, micro_batches: Sequence[Sequence[int]]) -> list[Sequence[int]]:
        """What `accumulate` will `read` of the cell's micro-batches, in that order."""

    @abstractmethod
    def accumulate(
        self, micro_batches: Sequence[Sequence[int]], read: Read, factors: Factors, figures: Figures
    ) -> None:
        """Forward and backward over the cell's micro-batches (as in `ReplicaShard.accumulate`), of which this worker
        takes its part; what it saw is added to `figures`. Collective over the cell.

        Raises:
            RuntimeError: a peer of the cell is gone.
        """

    @abstractmethod
    def reduce(self, parts: Sequence[torch.Tensor]) -> None:
        """Write every shard's gradient, summed over the cell, to its part, of the shape of its `local`: float32, or
        int64 if there is a grid. The engine's own stay and may grow. Collective.

        Raises:
            RuntimeError: a peer of the cell is gone.
        """

    @abstractmethod
    def updated(self) -> None:
        """The shards were written to."""

    @abstractmethod
    def nats(self, part: int, parts: int, each: int, read: Read) -> Iterable[tuple[Sequence[int], list[float]]]:
        """Nats of every held-out sample of part `part` of `parts`, which has `each` of them (`part`, `part + parts`,
        ...): some ids at a time, and theirs, as far as this worker gets to know them; it may get to know those of
        others. Collective over the cell, whose workers ask for different parts.

        Raises:
            RuntimeError: a peer of the cell is gone.
        """

    def notes(self) -> list[dict[str, Any]]:
        """What the journal should know of the micro-batches since the last call."""
        return []
