"""Carries this worker's snapshots to their keeper in the background, and one back when the run goes back to it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

from shoal.protocol.orders import Keeper, Recall
from shoal.saving.deadline import Speed
from shoal.timeouts import Timeouts
from shoal.worker.copies import LostCopy, fetch, push
from shoal.worker.snapshot import Kept, Snapshot
from shoal.worker.step import Step

__all__ = ["Courier"]


class Courier:
    """`keeper`: who keeps copies of this worker's snapshots, if it was told to make any. `secret`: the run's."""

    def __init__(self, timeouts: Timeouts, secret: Callable[[], str]) -> None:
        self._timeouts, self._secret = timeouts, secret
        self._sending: threading.Thread | None = None
        self.keeper: Keeper | None = None
        self._speed = Speed()

    @property
    def speed(self) -> float:
        """Bytes a second at which copies go to the keeper; 0 if there is none."""
        return 0.0 if self.keeper is None else self._speed.bytes

    def keep(self, step: Step) -> None:
        """Copy the state for a later roll back and, in the background, to the keeper. All ranks' copies are of the
        same steps: so one that is still on its way is waited for, unless its keeper does not answer."""
        if self._sending is not None:
            self._sending.join(self._timeouts.silence)
            if self._sending.is_alive():
                self.keeper = None
        step.snapshot.take(step.tensors_by_commit(), step.steps)
        if self.keeper is not None:
            sent = (step.snapshot, step.snapshot.lend(), step.member.rank, step.steps, self.keeper)
            self._sending = threading.Thread(target=self._send, args=sent, daemon=True, name="copy")
            self._sending.start()

    def _send(self, snapshot: Snapshot, kept: Kept, rank: int, steps: int, keeper: Keeper) -> None:
        # without the keeper's word to the controller it is no copy
        with contextlib.suppress(OSError, ValueError):
            tensors, start = kept.read(), time.monotonic()
            size = push(tensors, rank, steps, keeper, self._secret(), self._timeouts.build)
            self._speed.took(size, time.monotonic() - start)
        snapshot.give_back(kept)

    def fetch(self, step: Step, order: Recall) -> None:
        """Go on from the copy of a snapshot that another worker holds.

        Raises:
            LostCopy: it is not to be had any more.
        """
        if order.keeper is None:
            raise LostCopy("its keeper is gone")
        fetch(step.tensors(), step.member.rank, order.steps, order.keeper, self._secret(), self._timeouts.build)
        step.healed(order.steps)
