"""The parts of a running controller, for those who do what it is told: nobody but its actor needs the whole."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

from shoal.config import Job
from shoal.control.asking import Asker
from shoal.control.desk import Desk, Ear
from shoal.control.forecast import Forecast
from shoal.control.lifelines import Lifelines
from shoal.control.mishaps import Mishaps
from shoal.control.notifier import Notifier
from shoal.control.press import Press
from shoal.control.recovery import Recoveries
from shoal.control.rendezvous import Rendezvous
from shoal.control.scribe import Scribe
from shoal.control.spawn import Spawner
from shoal.control.timers import Survey
from shoal.decisions.state import State
from shoal.plan import Mesh
from shoal.record.lease import Lease
from shoal.timeouts import Timeouts
from shoal.worker.setup import Meeting

__all__ = ["Outcome", "Run"]


class Outcome(NamedTuple):
    """How a run ended. `by_controller`: the controller's own code or disk failed, and no worker."""

    status: str
    reason: str
    by_controller: bool = False


class Run(Protocol):
    """See `Controller`, which is one."""

    job: Job
    rundir: Path
    start: int
    since: float
    mesh: Mesh
    timeouts: Timeouts
    meeting: Meeting
    asker: Asker
    desk: Desk
    forecast: Forecast
    ear: Ear
    lease: Lease
    lifelines: Lifelines
    mishaps: Mishaps
    notifier: Notifier
    press: Press | None
    recoveries: Recoveries
    rendezvous: Rendezvous
    scribe: Scribe
    spawner: Spawner
    survey: Survey

    @property
    def state(self) -> State:
        """What is known of the run."""

    def end(self, outcome: Outcome) -> None:
        """Note the outcome."""
