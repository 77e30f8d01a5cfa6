"""A worker's process, whoever started it: the training thread, and a way to give it another controller."""

from __future__ import annotations

import os
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.wire import interface_of

__all__ = ["Meeting", "Setup", "Worker"]


@dataclass(frozen=True)
class Meeting:
    """Where to find a controller: `lifeline`, `store`: its (address, port); `secret`: of this controller."""

    lifeline: tuple[str, int]
    store: tuple[str, int]
    secret: str


@dataclass(frozen=True)
class Setup:
    """What a worker is told at birth."""

    name: str
    node: str
    home: tuple[int, int] | None
    job: dict[str, Any]
    rundir: Path
    meeting: Meeting


class Worker:
    """Starts the training thread at once; `address`: the node's own, whose network interface gloo is to use."""

    def __init__(self, setup: Setup, address: str) -> None:
        self._setup, self._address = setup, address
        self._meeting = setup.meeting
        self._lock = threading.Lock()
        self._loop: Any = None
        threading.Thread(target=self._train, daemon=True, name="train").start()

    def rejoin(self, meeting: Meeting) -> None:
        """Go on under a controller that came back."""
        with self._lock:
            self._meeting = meeting
            if self._loop is not None:
                self._loop.meet(meeting)

    def _train(self) -> None:
        """Whatever goes wrong before the first order ends the process, and the log says why."""
        setup = self._setup
        try:
            interface = interface_of(self._address)
            if interface is not None:
                os.environ["GLOO_SOCKET_IFNAME"] = interface
            import torch

            from shoal.config import Job
            from shoal.worker.loop import Loop
            from shoal.workload import make_workload

            job = Job.model_validate(setup.job)
            torch.set_num_threads(job.threads)
            workload = make_workload(job.workload)
            workload.warm_up()
            loop = Loop(setup.name, setup.node, setup.home, job, workload, setup.rundir, self._address)
            with self._lock:
                loop.meet(self._meeting)
                self._loop = loop
            loop.run()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
