"""What a worker is told at birth, and where it finds a controller."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Meeting", "Setup"]


@dataclass(frozen=True)
class Meeting:
    """Where to find a controller: `lifeline`: its (address, port); `secret`: of this controller, never sent over it;
    `session`: whose the run is (`record.lease`)."""

    lifeline: tuple[str, int]
    secret: str
    session: str


@dataclass(frozen=True)
class Setup:
    """What a worker is told at birth. `name`: its own, as the record shows it; `home`: the seat it is started for;
    `rundir`: where the controller writes the record, and this worker what is beside it (stacks, profiles)."""

    name: str
    node: str
    home: tuple[int, int] | None
    job: dict[str, Any]
    rundir: Path
    meeting: Meeting
