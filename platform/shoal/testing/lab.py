"""A run on this machine without Ray: nodes are names, workers real processes with real gloo that really die.

The controller is a process of its own, so that it can be killed too.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from shoal import hooks
from shoal.config import Job
from shoal.plan import first_plan
from shoal.record import layout, read
from shoal.record.hold import hold
from shoal.record.jsonl import read_json
from shoal.record.place import local_record
from shoal.record.rundir import RunDir
from shoal.resume import find
from shoal.testing import processes
from shoal.testing.cable import Cable
from shoal.testing.cluster import Cluster

__all__ = ["Lab", "lab"]

SWITCHED_OFF = {
    **{"mlflow": {"enabled": False}, "evaluation": {"enabled": False}, "checkpoint": {"every": 0}},
    "predict": False,
}
PATIENCE = 150.0
"""Seconds; of them follow deadlines that a machine under load keeps: a worker may be silent for three."""
AFTERMATH = 20.0
"""Seconds from a run's end in which all of its processes are gone, even on a machine under load."""
RUN_ID = "lab"


class Lab:
    """A run in `folder` on `nodes` (slots of each by name); `settings`: a job's fields, of which `steps` and `workload`
    must be there. `cable`: what lies between its workers and its controller. `resume`: it goes on from the run that
    lies there. `backend`: what carries its tensors, "gloo" or "fakenccl". `storage`: the address of a store, if the run
    is to lie there; its controller then writes into `folder`.

    Attributes:
        path: the run's directory, that of its newest controller. alive: living nodes. drains: deadlines (unix, s) of
        nodes that are announced to go.
        processes: every worker's process by name, dead ones too. controller: its process. job: all settings.

    Raises:
        AssertionError: what is waited for does not come, with the run's story.
    """

    def __init__(
        self,
        folder: Path,
        nodes: Mapping[str, int],
        *,
        resume: bool = False,
        cable: Cable | None = None,
        backend: str = "gloo",
        storage: str | None = None,
        **settings: Any,
    ) -> None:
        self.cable = cable
        merged = {"run_id": RUN_ID, "storage": storage or str(folder), "patience": PATIENCE, **SWITCHED_OFF, **settings}
        self.job = Job.model_validate(merged).model_dump(mode="json")
        self.path = folder / RUN_ID
        if storage is None:
            RunDir.create(folder, RUN_ID, self.job, resume).close()
            self._start = find(self.path).steps if resume else 0
        else:
            self._begin_record(resume)
        wanted = hooks.variables(Job.model_validate(self.job).notify)
        passed = (pair for pair in os.environ.items() if pair[0].startswith("AWS_") or pair[0] in wanted)
        self._folders = processes.Folders(folder, Path(tempfile.mkdtemp(prefix="lab-")), backend, tuple(passed))
        self._cluster = Cluster(self._folders, nodes, cable)
        self.alive, self.drains, self.processes = self._cluster.alive, self._cluster.drains, self._cluster.processes
        self._warden = processes.answer(self._folders.sockets / processes.WARDEN, self._cluster.reply)
        plan = first_plan(dict(nodes), self.job["cells"], self.job["workers_per_cell"])
        self._seats = {(seat.cell, seat.rank): node for seat, node in plan.items()}
        self.controller = self._begin_controller(again=False)

    # ---- faults

    def kill(self, worker: str) -> None:
        self.signal(worker, signal.SIGKILL)

    def freeze(self, worker: str) -> None:
        """It keeps its connections and says nothing any more."""
        self.signal(worker, signal.SIGSTOP)

    def signal(self, worker: str, number: int) -> None:
        self._cluster.signal(worker, number)

    def kill_node(self, node: str) -> None:
        """The node is gone, and all that ran on it."""
        del self.alive[node]
        for worker in self.on(node):
            self.kill(worker)

    def drain(self, node: str, seconds: float | None = None) -> None:
        """Announce that a node will be taken away, in so many seconds if that is to be known; nothing takes it away."""
        self.drains[node] = 0.0 if seconds is None else time.time() + seconds

    def add_node(self, name: str, slots: int) -> None:
        self.alive[name] = slots

    def kill_controller(self) -> None:
        """Another takes over, as Ray's restart of the actor would have it."""
        self.controller.kill()
        self.controller.join()
        self.controller = self._begin_controller(again=True)

    def another_controller(self, folder: Path) -> Any:
        """One begins elsewhere, writing into `folder`, as if the controller were dead, which it may be or not. Returns
        the former one's process."""
        former, self.path = self.controller, folder / RUN_ID
        self.controller = self._begin_controller(again=True)
        return former

    def disk_full(self, full: bool) -> None:
        """Whether no file of the controller's may grow."""
        pid, hard = self.controller.pid, resource.RLIM_INFINITY
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0 if full else hard, hard))

    @contextlib.contextmanager
    def no_descriptors(self) -> Iterator[None]:
        """The controller can open nothing."""
        limits = resource.prlimit(self.controller.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(self.controller.pid, resource.RLIMIT_NOFILE, (0, limits[1]))
        try:
            yield
        finally:
            resource.prlimit(self.controller.pid, resource.RLIMIT_NOFILE, limits)

    def stop(self, *, save: bool = False) -> None:
        """Ask the run to end; `save`: with its state saved."""
        os.kill(self.controller.pid, signal.SIGUSR1 if save else signal.SIGTERM)

    def close(self) -> None:
        """End every process."""
        processes.end_controller(self.controller)
        for process in list(self.processes.values()):
            process.kill()
        self._warden.shutdown()
        self._warden.server_close()
        shutil.rmtree(self._folders.sockets, ignore_errors=True)

    # ---- looking on

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Of the run's journal."""
        return [event for event in read.events(self.path) if event["kind"] == kind]

    def steps(self) -> list[dict[str, Any]]:
        """Committed steps, as the record has them."""
        return read.steps(self.path)

    def committed(self) -> int:
        """Committed steps by a worker's own word: the record may be behind."""
        asked = [self._cluster.ask(name, {"what": "steps"}) for name in self.living()]
        return max((int(steps) for steps in asked if steps is not None), default=-1)

    def members(self, cell: int) -> list[str]:
        """Workers by rank, of the last generation that had the cell."""
        cells = [event["cells"] for event in self.events("generation")]
        return [found[str(cell)] for found in cells if str(cell) in found][-1]

    def on(self, node: str) -> list[str]:
        """Workers that were started on a node."""
        return [name for name in list(self.processes) if name.endswith(f"@{node}")]

    def living(self) -> list[str]:
        """Workers whose processes are there."""
        return self._cluster.living()

    def until(self, done: Callable[[], Any], seconds: float = 240.0) -> None:
        """Wait until it is so, and not for long once the run has ended."""
        end = time.monotonic() + seconds
        while not done():
            if (self.path / layout.RUN).exists():
                end = min(end, time.monotonic() + AFTERMATH)
            else:
                assert self.controller.is_alive(), self.story()
            assert time.monotonic() < end, self.story()
            time.sleep(0.01)

    def full(self, steps: int, spares: int = 0) -> None:
        """Wait until every cell commits, `steps` more steps are there and `spares` are warm."""
        base = len(self.steps())

        def whole() -> bool:
            lines = self.steps()
            status = read_json(self.path / layout.STATUS) or {"workers": [], "generation": None}
            warm = sum(worker["cell"] is None for worker in status["workers"])
            current = bool(lines) and status.get("generation") == lines[-1]["generation"]
            return current and len(lines) >= base + steps and lines[-1]["cells"] == self.job["cells"] and warm >= spares

        self.until(whole)

    def finished(self) -> dict[str, Any]:
        """Wait for the run's end, for as long as it commits; returns its summary (`run.json`). Its report is still
        written then."""
        end, steps = self.path / layout.RUN, self.path / layout.STEPS

        def goes_on(size: int = -1) -> bool:
            return end.exists() or (steps.exists() and steps.stat().st_size != size)

        self.until(goes_on)
        while not end.exists():
            self.until(partial(goes_on, steps.stat().st_size))
        return read_json(self.path / layout.RUN) or {}

    def story(self) -> str:
        """The newest of the journal and of the logs, for the message of a test that fails."""
        tail = "\n".join(json.dumps(event) for event in read.events(self.path)[-25:])
        files = [self._folders.logs / name for name in (processes.CONTROLLER_LOG, processes.WORKERS_LOG)]
        logs = [file.read_text()[-3000:] for file in files if file.exists()]
        return "\n".join([f"{len(self.steps())} steps", tail, *logs])

    def _begin_controller(self, *, again: bool) -> Any:
        return processes.begin_controller(self._folders, self.job, self.path, self._seats, self._start, again=again)

    def _begin_record(self, resume: bool) -> None:
        """Put the job into the record on its store, and find what to go on from, as `shoal train` does."""
        place = Job.model_validate(self.job).place
        self._start = find(local_record(place)).steps if resume else 0
        publisher = hold(place, "", self.path, fresh=not resume)
        RunDir.create(self.path.parent, RUN_ID, self.job, resume=True).close()
        publisher.round()
        publisher.close()


@contextlib.contextmanager
def lab(folder: Path, nodes: Mapping[str, int], **settings: Any) -> Iterator[Lab]:
    """A `Lab` that is closed at the end."""
    one = Lab(folder, nodes, **settings)
    try:
        yield one
    finally:
        one.close()
