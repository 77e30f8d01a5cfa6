"""A run's figures under Ray Train's own names and tags: the Grafana board that Ray generates for Train shows them.

Names and tags are Ray's, and internal to it (`ray/train/v2/_internal/metrics`): a test holds them against the board of
the installed one. They are written out here, since what makes them there belongs to Ray's own controller.
"""

from __future__ import annotations

from typing import Any

from ray.util.metrics import Gauge

from shoal.record.raystate import RunState

__all__ = ["STATE", "TAGS", "TIMES", "Board"]

TAGS = ("ray_train_run_name", "ray_train_run_id")
STATE = ("train_controller_state", "ray_train_controller_state")
"""A gauge, 1 for the state that the run is in, and the tag that names it."""
TIMES = {
    "train_worker_group_start_total_time_s": "Seconds that went into bringing groups of workers together",
    "train_worker_group_shutdown_total_time_s": "Seconds that went into leaving groups of workers",
}


class Board:
    """The figures of one run; `session`: its id in Ray Train's state. Made and used in one process of the cluster."""

    def __init__(self, run_id: str, session: str) -> None:
        tags = dict(zip(TAGS, (run_id, session), strict=True))
        self._times: dict[str, Any] = {
            name: Gauge(name, about, TAGS).set_default_tags(tags) for name, about in TIMES.items()
        }
        name, self._tag = STATE
        self._state: Any = Gauge(name, "What the run is doing", (*TAGS, self._tag)).set_default_tags(tags)
        self._shown: str | None = None

    def show(self, state: RunState) -> None:
        """Show this state."""
        for gauge, seconds in zip(self._times.values(), (state.starting, state.leaving), strict=True):
            gauge.set(seconds)
        if self._shown is not None and self._shown != state.status:
            self._state.set(0, {self._tag: self._shown})
        self._shown = state.status
        self._state.set(1, {self._tag: state.status})

    def check(self) -> None:
        """Nothing: what was shown is this process's."""
