"""The Ray actor that owns one slot: it starts the training thread and keeps out of its way.

Ray places it and shows it in the dashboard; orders and signs of life travel over the lifeline. It never restarts by
itself (`max_restarts=0`): an actor that comes back empty is of no use, the controller decides what follows a death.
"""

from __future__ import annotations

import os
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

__all__ = ["Setup", "WorkerActor"]


@dataclass(frozen=True)
class Setup:
    """What a worker is told at birth. `lifeline`, `store`: the controller's (address, port); `secret`: of this run."""

    name: str
    node: str
    home: tuple[int, int] | None
    job: dict[str, Any]
    rundir: Path
    lifeline: tuple[str, int]
    store: tuple[str, int]
    secret: str


@ray.remote(max_restarts=0, max_task_retries=0)
class WorkerActor:
    """One worker; its `repr` is its name, so that the dashboard reads like a map."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        threading.Thread(target=main, args=(setup,), daemon=True, name="train").start()

    def __repr__(self) -> str:
        return self._setup.name


def main(setup: Setup) -> None:
    """The training thread. Whatever goes wrong before the first order ends the process, and the log says why."""
    from shoal.wire import interface_of

    try:
        interface = interface_of(ray.util.get_node_ip_address())
        if interface is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = interface
        import torch

        from shoal.config import Job
        from shoal.timeouts import Timeouts
        from shoal.worker.link import Link
        from shoal.worker.loop import Loop
        from shoal.workload import make_workload

        job = Job.model_validate(setup.job)
        torch.set_num_threads(job.threads)
        workload = make_workload(job.workload)
        workload.warm_up()
        hello = {
            "type": "hello",
            "secret": setup.secret,
            "worker": setup.name,
            "node": setup.node,
            "pid": os.getpid(),
            "home": setup.home,
        }
        timeouts = Timeouts(job.patience)
        link = Link(setup.lifeline, hello, timeouts.beat, timeouts.collective)
        loop = Loop(setup.name, job, workload, setup.rundir, link, setup.store)
        link.progress = loop.progress
        loop.run()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
