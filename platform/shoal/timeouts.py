"""Every timeout, from one number: `patience`, the seconds a worker may be silent before it is taken for dead.

They stand in order: what notices a fault is always shorter than what waits for the notice to be acted on.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Timeouts"]


@dataclass(frozen=True)
class Timeouts:
    """Seconds, derived from `patience`."""

    patience: float

    @property
    def beat(self) -> float:
        """Between two signs of life of a worker."""
        return self.patience / 100

    @property
    def acknowledge(self) -> float:
        """From a stop to the last acknowledgement: a worker finishes its backward pass first, so the full patience."""
        return self.patience

    @property
    def collective(self) -> float:
        """Of a process group: past the acknowledgement, so that Shoal, not the backend, ends a wait."""
        return 2 * self.patience

    @property
    def build(self) -> float:
        """Of building a process group once its members have met: only a death in between takes longer."""
        return self.patience / 4

    @property
    def start(self) -> float:
        """From asking Ray for a worker to its first word (imports included)."""
        return 6 * self.patience

    @property
    def orphan(self) -> float:
        """A worker without a controller ends itself after this long."""
        return 6 * self.patience
