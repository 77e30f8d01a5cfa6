"""Workloads with one fault each."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import torch

from shoal_workloads.synthetic import Synthetic, SyntheticConfig, SyntheticShard


class NoAccelerator(Synthetic):
    def warm_up(self, workers: int) -> None:
        raise RuntimeError("no accelerator here")


class Dreaming(Synthetic):
    """It never starts, and raises nothing."""

    def warm_up(self, workers: int) -> None:
        threading.Event().wait()


class Crashing(Synthetic):
    """Its process ends before anything can be said."""

    def build(self, seed: int) -> SyntheticShard:
        sys.exit("out of everything")


class Bare(SyntheticShard):
    """Hands out `GIVES`, and nothing else."""

    GIVES: tuple[str, ...] = ("loss", "tokens")

    def commit(self, total: torch.Tensor, stats: Sequence[float], norm_sq: float) -> dict[str, float]:
        figures = super().commit(total, stats, norm_sq)
        return {key: figures[key] for key in self.GIVES}


class FewFigures(Synthetic):
    def build(self, seed: int) -> SyntheticShard:
        return Bare(self.config, seed)


class Uncounted(Bare):
    GIVES = ("loss",)


class NoTokens(Synthetic):
    def build(self, seed: int) -> SyntheticShard:
        return Uncounted(self.config, seed)


class Remarking(SyntheticShard):
    """A note a step."""

    def notes(self) -> list[dict[str, Any]]:
        return [{"kind": "remark", "text": "a step"}] if self.rank == 0 else []


class Remarks(Synthetic):
    def build(self, seed: int) -> SyntheticShard:
        return Remarking(self.config, seed)


class Counting(SyntheticShard):
    """Knows which `step` it is in."""

    def __init__(self, config: SyntheticConfig, seed: int) -> None:
        self.step = 0
        super().__init__(config, seed)

    def begin(self, step: int) -> None:
        self.step = step
        super().begin(step)


class Stuck(Counting):
    """In its 20th step nobody comes back, however often it is tried."""

    def norm_sq(self, total: torch.Tensor) -> float:
        while self.step == 20:
            time.sleep(0.1)
        return super().norm_sq(total)


class Hanging(Synthetic):
    def build(self, seed: int) -> SyntheticShard:
        return Stuck(self.config, seed)


class Overheated(Counting):
    """In the 20th step a device fails the first worker that comes there."""

    ERROR: Exception = torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")

    def accumulate(self, micro_batches: Sequence[Sequence[int]]) -> None:
        if self.step == 20 and self.chosen():
            raise self.ERROR
        super().accumulate(micro_batches)

    def chosen(self) -> bool:
        try:
            os.close(os.open(f"{self.config.hurry}-failed", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


class Overheating(Synthetic):
    def build(self, seed: int) -> SyntheticShard:
        return Overheated(self.config, seed)


class Full(Overheated):
    """The 20th step fits nowhere."""

    ERROR = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79 GiB"
    )

    def chosen(self) -> bool:
        return True


class TooLarge(Synthetic):
    def build(self, seed: int) -> SyntheticShard:
        return Full(self.config, seed)
