"""Every timeout, from one number: `patience`, the seconds a worker may be silent before it is taken for dead whatever
it does. What is learned from a run's own step times (`watchdog`) only ever shortens them.

They stand in order: what notices a fault is always shorter than what waits for the notice to be acted on.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Timeouts"]


MANY = 1024
"""Workers up to which each says that it lives as often as `patience` has it; the more beyond, the more seldom."""


@dataclass(frozen=True)
class Timeouts:
    """Seconds, derived from `patience`; `workers`: seats of the run."""

    patience: float
    workers: int = 1

    @property
    def look(self) -> float:
        """Between two looks of the controller for silent workers."""
        return self.beat / 2

    @property
    def beat(self) -> float:
        """Between two signs of life of a worker."""
        return min(self.patience / 10, self.patience / 100 * max(1.0, self.workers / MANY))

    @property
    def silence(self) -> float:
        """The silence, beside three steps, for which a training worker is fenced."""
        return max(self.patience / 50, 3 * self.beat if self.workers > MANY else 0.0)

    @property
    def release(self) -> float:
        """For a worker to come out of a cell whose connections it shut down; then its thread is left behind there."""
        return self.patience / 30

    @property
    def meet(self) -> float:
        """For all workers to find a controller that came back; training goes on meanwhile."""
        return self.patience

    @property
    def build(self) -> float:
        """Of building a process group once its members have met: only a death in between takes longer."""
        return self.patience / 4

    @property
    def abort(self) -> float:
        """For what was aborted on a device to end, or a kept state to leave it: past it the worker's process ends."""
        return self.patience / 2

    @property
    def collective(self) -> float:
        """Of a process group: past the answer to a stop, so that Shoal, not the backend, ends a wait."""
        return 2 * self.patience

    @property
    def start(self) -> float:
        """From asking Ray for a worker to its first word (imports included)."""
        return 6 * self.patience

    @property
    def orphan(self) -> float:
        """A worker without a controller and without a committed step ends itself after this long."""
        return 6 * self.patience

    @property
    def still(self) -> float:
        """Of all workers doing one and the same thing: past it they are formed again, then the run is ended."""
        return 30 * self.patience

    def explained(self) -> list[tuple[str, float, str]]:
        """(name, seconds, what for), shortest first."""
        kind = type(self)
        names = [name for name, value in vars(kind).items() if isinstance(value, property)]
        rows = [(name, float(getattr(self, name)), str(getattr(kind, name).__doc__)) for name in names]
        rows.append(("patience", self.patience, "Of any silence, in any phase: the one setting."))
        return sorted(rows, key=lambda row: row[1])
