"""What is counted while a run gets nowhere."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

__all__ = ["Tally"]


@dataclass
class Tally:
    """The counts; their limits stand in `bounds`."""

    fruitless: int = 0
    """Generations and failed formations since the last committed step."""
    spent: int = 0
    """Workers that died since the last committed step."""
    failures: int = 0
    """Deaths that ended a generation; two in one count once."""
    furthest: int = 0
    """The most steps that were ever committed."""
    still: int = 0
    """Standstills since then."""
    fatal: tuple[int, int] = (-1, 0)
    """The pending step at which workers last died, and how many generations it ended so."""
    full: tuple[int, dict[str, str]] = (-1, {})
    """The step at which devices' memory was last full, and on which nodes, with what was said of it."""
    strikes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Committed steps at which each node lost a worker."""
    unborn: dict[str, int] = field(default_factory=dict)
    """Workers in a row that died on each node before their first word."""
    not_finite: int = 0
    """Steps in a row, up to the last committed one, whose loss or gradient norm was no number."""
    roll_backs: int = 0
    """Bad steps of this session that were taken back."""
    erred: int = 0
    """Times that the controller's own code failed over a word or a record, since the last step on record."""
    deaths: tuple[int, int] = (0, 0)
    """Of workers with a seat since the last generation began, on nodes that were announced to go, and on others."""
    backs: tuple[int, int] = (0, 0)
    """Times that this session went back to what was saved, after failures and after preemptions."""
    cause: str = ""
    """What went wrong last: the reason of an end that only counts."""

    def copy(self) -> Tally:
        return replace(self, strikes=dict(self.strikes), unborn=dict(self.unborn))
