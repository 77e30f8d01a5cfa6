"""What a change of shape took, phase by phase: values fed with times, so that it is tested without a clock.

pause       told to pause -> all workers have answered, at a step boundary
form        -> the new cells' worlds stand, and their shards are filled
fill        of that, what the slowest worker took to fill its shard
first_step  -> the first committed step in the new shape
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shoal.decisions.actions import Reshaped

__all__ = ["Reshaping"]


@dataclass
class Reshaping:
    """From one shape to another; times in seconds of one clock. `paused`: the run was told to pause; `decided`: all had
    answered; `began`: the generation of the new shape."""

    change: Reshaped
    paused: float
    decided: float
    began: float | None = None
    fill: float = 0.0
    bytes: int = 0

    def filled(self, seconds: float, size: int) -> None:
        """A worker has filled its shard, so many bytes of it from others."""
        self.fill = max(self.fill, seconds)
        self.bytes += size

    def record(self, now: float) -> dict[str, Any]:
        """The journal's `reshaped` event; `now`: time of the step that ends it."""
        began = now if self.began is None else self.began
        phases = {
            "pause": self.decided - self.paused,
            "form": began - self.decided,
            "fill": self.fill,
            "first_step": now - began,
        }
        change, seconds = self.change, now - self.paused
        return {
            "before": list(change.before),
            "after": list(change.after),
            "reason": change.why,
            "phases": phases,
            "seconds": seconds,
            "bytes": self.bytes,
            "idle": list(change.idle),
            "steps_lost": 0,
            "sentence": self.sentence(phases, seconds),
        }

    def sentence(self, phases: dict[str, float], seconds: float) -> str:
        """All of it in words."""
        change = self.change
        (cells, workers), (cells_now, workers_now) = change.before, change.after
        took = ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in phases.items())
        return (
            f"{cells} x {workers} workers became {cells_now} x {workers_now} ({change.why}): first step in the new "
            f"shape after {seconds:.2f} s ({took}), {self.bytes / 1e6:.1f} MB moved; workers idle: {change.idle[0]} "
            f"before, {change.idle[1]} after; 0 steps lost"
        )
