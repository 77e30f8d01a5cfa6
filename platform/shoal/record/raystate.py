"""A run as Ray Train's state tells it, from its journal. Pure: `shoal.on_ray.train_state` takes it to Ray.

An attempt of Ray's is a group of workers from its start to its end: a generation. Between two of them a run is
RESTARTING if a cell is lost and comes back (healed, put together, recalled, restored), RESIZING if the run changes its
size or shape; it is RUNNING again once a generation stands that has what was away, or that is to go on without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from shoal.ladder import Rung
from shoal.record.generations import Membership, membership
from shoal.record.sentences import sentence

__all__ = ["ROOM", "Attempt", "RunState"]

ROOM = 2048
"""Workers that the attempts name, all together, unless the newest alone names more: Ray keeps all of it in memory."""
WHOLE = (Rung.COMBINE, Rung.RECALL, Rung.RESTORE, Rung.RESHAPE)
"""Rungs that concern all cells, those that were not lost too."""
RESIZES = (Rung.SHRINK, Rung.RESHAPE)
ENDED = {"done": "FINISHED", "stopped": "ABORTED"}


@dataclass(frozen=True)
class Attempt:
    """A generation. `status`: a name of Ray's `RunAttemptStatus`; `workers`: its members by their rank; `dead`: those
    of them that are; times in unix seconds."""

    number: int
    began: float
    workers: tuple[str, ...]
    status: str = "RUNNING"
    detail: str | None = None
    ended: float | None = None
    dead: frozenset[str] = frozenset()


@dataclass
class RunState:
    """What the journal has told so far of the run's newest session. `status`: a name of Ray's `RunStatus`; `attempts`:
    the generations, by their numbers; `found`: node and process id of each worker, and its GPU's number if it has one;
    `starting`, `leaving`: seconds that went into bringing groups of workers together, and into ending them."""

    status: str = "INITIALIZING"
    detail: str | None = None
    began: float = 0.0
    ended: float | None = None
    attempts: dict[int, Attempt] = field(default_factory=dict)
    found: dict[str, tuple[str, int, int | None]] = field(default_factory=dict)
    starting: float = 0.0
    leaving: float = 0.0
    _now: Membership | None = None
    _open: dict[str, str] = field(default_factory=dict)
    """Cells that are lost and not back: what the run is meanwhile."""
    _whole: str | None = None
    """What the run is while all cells are formed anew."""
    _without: set[str] = field(default_factory=set)
    """Cells that the run goes on without."""
    _ending: float | None = None

    @property
    def attempt(self) -> Attempt | None:
        """The newest generation."""
        return None if self._now is None else self.attempts.get(self._now.generation)

    def take(self, event: Mapping[str, Any]) -> None:
        """Take a line of `events.jsonl`; kinds that say nothing of the run's state change nothing.

        Raises:
            ArithmeticError, AttributeError, LookupError, TypeError, ValueError: a field is not what docs/record.md
                says.
        """
        match event["kind"]:
            case "run_started":  # another session: another run, to Ray
                vars(self).update(vars(RunState("SCHEDULING", sentence(event), event["time"])))
            case "worker_ready":
                self.found[event["actor"]] = (event["node"], event["pid"], event.get("device"))
            case "generation":
                self._generation(event)
            case "death":
                self._death(event)
            case "drain":
                self._leaves(event)
            case "decision":
                self._decision(event)
            case "recovery":
                self._recovery(event)
            case "reshaped":
                self.detail = sentence(event)
                self.starting += event["phases"]["form"]
                self.leaving += event["phases"]["pause"]
            case "controller_back":  # whoever would have told of a smaller run's first step is gone
                self._goes_without({cell for cell, status in self._open.items() if status == "RESIZING"})
            case "run_ending":
                self._ending = event["time"]
            case "run_ended":
                self._end(event)

    # ---- generations

    def _generation(self, event: Mapping[str, Any]) -> None:
        if not self.attempts:
            self.starting += event["time"] - self.began
        self._close("FINISHED", None, event["time"])
        self._now = now = membership(self._now, event)
        if self._whole is not None:  # who is not among them is missed where the cells are the same as before
            self._without = set(self._open) if self._whole == "RESTARTING" else set()
            self._open, self._whole = {}, None
        self._open = {cell: status for cell, status in self._open.items() if cell not in now.cells}
        self._without -= set(now.cells)
        if self.status == "SCHEDULING":
            self.detail = None
        crews = (crew for _, crew in sorted(now.cells.items(), key=lambda pair: int(pair[0])))
        self.attempts[now.generation] = Attempt(now.generation, event["time"], tuple(w for crew in crews for w in crew))
        self._status()
        self._forget()

    def _death(self, event: Mapping[str, Any]) -> None:
        actor, attempt = event["actor"], self.attempt
        if attempt is None or actor not in attempt.workers:
            return
        self.attempts[attempt.number] = replace(attempt, dead=attempt.dead | {actor})
        if self._ending is None:
            self._open.setdefault(str(event["cell"]), "RESTARTING")
            self.detail = sentence(event)
            self._status()

    def _leaves(self, event: Mapping[str, Any]) -> None:
        """The generation ends. The run is told to be itself again with the next."""
        lost = bool(self._open) and self.attempt is not None and bool(self.attempt.dead)
        self._close("ERRORED" if lost else "FINISHED", event.get("reason"), event["time"])
        if not self._open:
            self.detail = sentence(event)
            self.status = "RESIZING" if self._without else "RESTARTING"

    def _decision(self, event: Mapping[str, Any]) -> None:
        rung = Rung(event["rung"])
        if rung in (Rung.DRAIN, Rung.RETRY):  # told when it is done
            self.detail = sentence(event)
            return
        status = "RESIZING" if rung in RESIZES else "RESTARTING"
        if rung in WHOLE:
            self._whole = status
        self._open |= dict.fromkeys(map(str, event["cells"]), status)
        self.detail = sentence(event)
        self._status()

    def _recovery(self, event: Mapping[str, Any]) -> None:
        phases = event["phases"]
        self.detail = sentence(event)
        if event["rung"] == Rung.SHRINK:
            self._goes_without({str(event["cell"])})
        if event["rung"] != Rung.GROW:
            self.leaving += phases.get("decide") or 0.0
        self.starting += sum(phases.get(name) or 0.0 for name in ("place", "join", "state"))

    def _end(self, event: Mapping[str, Any]) -> None:
        self.ended, self.detail = event["time"], event.get("reason") or ""
        if self._ending is not None:
            self.leaving += self.ended - self._ending
        self.status = ENDED.get(event["status"], "ABORTED" if event.get("by_controller") else "ERRORED")
        self._close(self.status, self.detail, self.ended)

    # ---- what follows from it

    def _goes_without(self, cells: set[str]) -> None:
        self._without |= cells & set(self._open)
        self._open = {cell: status for cell, status in self._open.items() if cell not in cells}
        self._status()

    def _status(self) -> None:
        self.status = self._whole or next(iter(sorted(self._open.values())), "RUNNING")

    def _close(self, status: str, detail: str | None, when: float) -> None:
        """The newest attempt is over, unless it was before."""
        if (attempt := self.attempt) is not None and attempt.ended is None:
            self.attempts[attempt.number] = replace(attempt, status=status, detail=detail, ended=when)

    def _forget(self) -> None:
        """Leave out whom the older attempts had, as far as there is no room for them."""
        room = ROOM
        for number in sorted(self.attempts, reverse=True):
            attempt = self.attempts[number]
            room -= len(attempt.workers)
            if room < 0 and attempt is not self.attempt and attempt.workers:
                told = f"{attempt.detail or ''} (who its {len(attempt.workers)} workers were says events.jsonl)".strip()
                self.attempts[number] = replace(attempt, workers=(), dead=frozenset(), detail=told)
