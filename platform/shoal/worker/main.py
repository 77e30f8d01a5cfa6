"""A worker's process, whoever started it: the training thread, and a way to give it another controller."""

from __future__ import annotations

import gc
import logging
import os
import threading
import traceback
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from shoal import log
from shoal.protocol.greeting import Greeting
from shoal.protocol.said import CannotStart, Phase, Where
from shoal.record.masking import mask_text
from shoal.timeouts import Timeouts
from shoal.worker import environment
from shoal.worker.faults import Fault, meaning
from shoal.worker.link import Link
from shoal.worker.setup import Meeting, Setup
from shoal.worker.sockets import interface_of
from shoal.worker.stacks import lend

if TYPE_CHECKING:
    from shoal.worker.loop import Loop

__all__ = ["Worker"]

logger = logging.getLogger(__name__)
WHERE: dict[Fault, Where] = {Fault.DEVICE: "device", Fault.MEMORY: "memory"}
PATIENCE = 20.0
"""Seconds, of a worker that could not even read its job, for reaching the controller."""
LAST_WORD = 5.0
"""Seconds within which the controller's end takes what ends a worker."""


class Worker:
    """Starts the training thread at once; `address`: the node's own, whose network interface gloo is to use."""

    def __init__(self, setup: Setup, address: str) -> None:
        self._setup, self._address = setup, address
        self._meeting = setup.meeting
        self._lock = threading.Lock()
        self._loop: Loop | None = None
        self.warm = threading.Event()
        """It has said its first word to a controller."""
        log.begin(setup.name, self.steps, least=setup.job.get("log", "info"))
        lend(setup.name)
        threading.Thread(target=self._guarded, args=(self._train,), daemon=True, name="train").start()

    def steps(self) -> int:
        """Committed steps of its state; -1 if it has none."""
        return -1 if self._loop is None else self._loop.beat().steps

    def rejoin(self, meeting: Meeting) -> None:
        """Go on under a controller that came back, whatever became of a call to the former one."""
        with self._lock:
            self._meeting = meeting
            met = None if self._loop is None else self._loop.meet(meeting)
        if met is not None:
            met()

    def _guarded(self, serve: Callable[[], None]) -> None:
        """Whatever goes wrong ends the process; the controller is told why, and so is the log."""
        try:
            serve()
        except BaseException as error:
            logger.exception("this process ends")
            self._tell(error)
            os._exit(1)

    def _train(self) -> None:
        setup = self._setup
        interface = interface_of(self._address)
        if interface is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = interface
        timeouts = Timeouts(float(setup.job.get("patience") or PATIENCE))
        environment.set_up(timeouts, interface, exact=setup.job.get("reduce") == "exact")
        import torch

        from shoal.config import Job
        from shoal.worker.device import take_device
        from shoal.worker.loop import Loop
        from shoal_core.ckpt import state
        from shoal_core.loading import make_workload

        job = Job.model_validate(setup.job)
        torch.set_num_threads(job.threads)
        workload = make_workload(job.workload)
        take_device(workload.runs_on)
        workload.warm_up(job.workers_per_cell)
        if job.elastic is not None:
            state.warm_up()  # else everybody would wait for it in the first change of shape
        loop = Loop(setup, job, workload, self._address)
        with self._lock:
            met = loop.meet(self._meeting)
            self._loop = loop
        met()
        self.warm.set()
        gc.collect()
        gc.freeze()  # what was imported stays: who leaves a world does not look through it (`groups.leave_world`)
        loop.kit.thread.serve = partial(self._guarded, loop.run)
        loop.kit.thread.begin()

    def _tell(self, error: BaseException) -> None:
        """Say what ends this process: its device, or the training code; if it never got so far, as its only word."""
        try:
            if self._loop is not None and self.warm.is_set():
                self._loop.voice.failed(WHERE.get(meaning(error), "code"), error)
                self._loop.link.flush(LAST_WORD)
                return
            setup, meeting = self._setup, self._meeting
            link = Link(Timeouts(float(setup.job.get("patience") or PATIENCE)))
            greeting = Greeting(setup.name, setup.node, os.getpid(), setup.home, phase=Phase.UNBORN)
            link.connect(meeting.lifeline, meeting.secret, lambda: greeting)
            trace = "".join(traceback.format_exception(error))
            message = f"{type(error).__name__}: {error}"
            link.send(CannotStart(setup.name, mask_text(message), mask_text(trace)))
            link.flush(LAST_WORD)
        except BaseException:  # nobody listens: the end of the process says it
            logger.exception("the controller could not be told")
