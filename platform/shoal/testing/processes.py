"""The processes of a lab: its controller, its workers, and how they and the process that began them talk.

All are forked by one server that has imported what they need, so that a worker starts in milliseconds. Questions are
JSON lines over Unix sockets in a folder of their own, whose path is short: `warden` is the lab's, `<pid>` a worker's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import signal
import socket
import socketserver
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shoal import log
from shoal.config import Job
from shoal.control.controller import Controller
from shoal.names import controller_name
from shoal.plan import Node
from shoal.testing import fakenccl
from shoal.worker.main import Worker
from shoal.worker.setup import Meeting, Setup

__all__ = [
    "ADDRESS",
    "CONTROLLER_LOG",
    "FORK",
    "WARDEN",
    "WORKERS_LOG",
    "Folders",
    "LabFleet",
    "answer",
    "ask",
    "begin_controller",
    "begin_worker",
    "end_controller",
    "preload",
    "socket_of",
]

ADDRESS = "127.0.0.1"
WARDEN = "warden"
CONTROLLER_LOG, WORKERS_LOG = "controller.log", "workers.log"
PRELOADED = ["shoal.worker.loop", "shoal.testing.processes"]
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(PRELOADED)

Reply = Callable[[dict[str, Any]], Any]


@dataclass(frozen=True)
class Folders:
    """Where a lab's processes write their logs, and where they answer. `backend`: what carries its tensors;
    `variables`: of the environment, since they are forked by one that began earlier."""

    logs: Path
    sockets: Path
    backend: str = "gloo"
    variables: tuple[tuple[str, str], ...] = ()


def preload(*modules: str) -> None:
    """Have modules imported once, before the first process is forked: a workload's own, if its imports take long."""
    PRELOADED.extend(name for name in modules if name not in PRELOADED)
    FORK.set_forkserver_preload(PRELOADED)


def ask(path: Path, question: Mapping[str, Any]) -> Any:
    """One question over a Unix socket; None when nobody is there."""
    with socket.socket(socket.AF_UNIX) as line:
        try:
            line.connect(str(path))
            line.sendall(json.dumps(question).encode() + b"\n")
            return json.loads(line.makefile().readline() or "null")
        except OSError:
            return None


def answer(path: Path, reply: Reply) -> socketserver.BaseServer:
    """Answer questions at `path`, in threads, until the server that is returned is shut down."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(json.dumps(reply(json.loads(self.rfile.readline()))).encode() + b"\n")

    class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
        daemon_threads = True

    server = Server(str(path), Handler)
    threading.Thread(target=server.serve_forever, daemon=True, name="lab").start()
    return server


class LabFleet:
    """What the controller takes for its cluster: it asks the process that began the lab, which outlives it."""

    address = ADDRESS

    def __init__(self, sockets: Path) -> None:
        self._warden = sockets / WARDEN

    def nodes(self) -> list[Node]:
        return [Node(name, name, slots) for name, slots in self._ask("nodes").items()]

    def draining(self) -> Mapping[str, float]:
        return dict(self._ask("draining"))

    def spawn(self, setup: Setup, node: Node, died: Callable[[str], None]) -> None:
        self._ask("spawn", setup=asdict(setup) | {"rundir": str(setup.rundir)})

    def kill(self, name: str) -> None:
        self._ask("kill", name=name)

    def workers(self, run_id: str) -> list[str]:
        return list(self._ask("workers"))

    def rejoin(self, name: str, meeting: Meeting) -> bool:
        return bool(self._ask("rejoin", name=name, meeting=asdict(meeting)))

    def _ask(self, what: str, **more: Any) -> Any:
        return ask(self._warden, {"what": what, **more})


def begin_controller(
    folders: Folders,
    job: dict[str, Any],
    path: Path,
    seats: dict[tuple[int, int], str],
    start: int = 0,
    *,
    again: bool,
) -> Any:
    """The process of a run's controller, begun. `path`: where it writes the record; `start`: steps of the checkpoint to
    go on from; `again`: it takes over from one that died."""
    return _begin(_control, folders, job, path, seats, start, again)


def end_controller(process: Any) -> None:
    """End a controller and what it has begun itself, such as the run's report."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def begin_worker(folders: Folders, setup: dict[str, Any]) -> Any:
    """The process of a worker, begun; `setup`: the fields of a `Setup` as JSON has them."""
    return _begin(_work, folders, setup)


def socket_of(folders: Folders, pid: int) -> Path:
    """Where a worker answers."""
    return folders.sockets / str(pid)


def _begin(target: Callable[..., None], *args: Any) -> Any:
    process = FORK.Process(target=target, args=args, daemon=True)
    process.start()
    return process


def _control(
    folders: Folders,
    job: dict[str, Any],
    path: Path,
    seats: dict[tuple[int, int], str],
    start: int,
    again: bool,
) -> None:
    os.setpgid(0, 0)
    os.environ.update(folders.variables)
    _log_to(folders.logs / CONTROLLER_LOG)
    controller = Controller(LabFleet(folders.sockets), Job.model_validate(job), path, seats, start, {}, again=again)
    log.begin(controller_name(job["run_id"]), lambda: controller.state.committed)
    signal.signal(signal.SIGTERM, lambda *_: controller.stop("stopped by a signal"))
    signal.signal(signal.SIGUSR1, lambda *_: controller.stop("stopped by a signal", save=True))
    asyncio.run(controller.run())


def _work(folders: Folders, raw: dict[str, Any]) -> None:
    os.environ.update(folders.variables)
    _log_to(folders.logs / WORKERS_LOG)
    if folders.backend == fakenccl.NAME:
        fakenccl.install()
    setup = Setup(**raw | {"rundir": Path(raw["rundir"]), "meeting": _meeting(raw["meeting"])})
    worker = Worker(setup, ADDRESS)

    def reply(question: dict[str, Any]) -> Any:
        if question["what"] == "steps":
            return worker.steps()
        return worker.rejoin(_meeting(question["meeting"]))

    answer(socket_of(folders, os.getpid()), reply)
    threading.Event().wait()


def _meeting(raw: Mapping[str, Any]) -> Meeting:
    return Meeting(tuple(raw["lifeline"]), raw["secret"], raw["session"])


def _log_to(path: Path) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
