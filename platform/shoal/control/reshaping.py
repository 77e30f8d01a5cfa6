"""What a change of shape took, phase by phase: values fed with times, so that it is tested without a clock.

notice      last sign of life of who died -> the run is told to pause; None if nobody did
pause       -> all workers have answered, at a step boundary
form        -> the new cells' worlds stand, and their shards are filled
fill        of that, what the slowest worker took to fill its shard
first_step  -> the first committed step in the new shape
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shoal.decisions.actions import Reshaped
from shoal_core.units import size

__all__ = ["Reshaping"]


@dataclass
class Reshaping:
    """From one shape to another; times in seconds of one clock. `died`: the last sign of life of whose death it is for;
    `paused`: the run was told to pause; `decided`: all had answered; `began`: the generation of the new shape; `lost`:
    steps that were taken back before it, since the last commit."""

    change: Reshaped
    paused: float
    decided: float
    died: float | None = None
    began: float | None = None
    fill: float = 0.0
    bytes: int = 0
    most: int = 0
    lost: int = 0

    def filled(self, seconds: float, size: int) -> None:
        """A worker has filled its shard, so many bytes of it from others."""
        self.fill = max(self.fill, seconds)
        self.bytes += size
        self.most = max(self.most, size)

    def record(self, now: float) -> dict[str, Any]:
        """The journal's `reshaped` event; `now`: time of the step that ends it."""
        began = now if self.began is None else self.began
        phases = {
            "notice": None if self.died is None else max(0.0, self.paused - self.died),
            "pause": self.decided - self.paused,
            "form": began - self.decided,
            "fill": self.fill,
            "first_step": now - began,
        }
        change, seconds = self.change, now - self.paused
        givers = change.before[0] * change.before[1]
        return {
            "before": list(change.before),
            "after": list(change.after),
            "reason": change.why,
            "phases": phases,
            "seconds": seconds,
            "bytes": self.bytes,
            "most": max(self.most, self.bytes // max(1, givers)),
            "expected": dict(zip(("seconds", "steps", "bytes"), change.expected, strict=True)),
            "idle": list(change.idle),
            "steps_lost": self.lost,
            "sentence": self.sentence(phases, seconds),
        }

    def sentence(self, phases: dict[str, float | None], seconds: float) -> str:
        """All of it in words."""
        change = self.change
        (cells, workers), (cells_now, workers_now) = change.before, change.after
        noticed = "" if phases["notice"] is None else f"noticed {phases['notice']:.2f} s, "
        about, _, guess = change.expected
        moved = f"{size(self.bytes)} moved" + ("" if guess is None else f", {size(guess)} expected")
        return (
            f"{cells} x {workers} workers became {cells_now} x {workers_now} ({change.why}): {noticed}paused "
            f"{phases['pause']:.2f} s, formed {phases['form']:.2f} s (of it filled {phases['fill']:.2f} s), first step "
            f"{phases['first_step']:.2f} s: {seconds:.2f} s from the pause on, {about:.2f} s expected; {moved}; "
            f"workers idle: {change.idle[0]} before, {change.idle[1]} after; {self.lost} steps lost"
        )
