"""A fleet without Ray: nodes are names, workers are real processes with real gloo that really die.

The controller is a process of its own, so that it can be killed too. Starting a worker takes a fork instead of the
seconds that Ray and the imports take.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import resource
import signal
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from shoal import log
from shoal.config import Job
from shoal.names import controller_name
from shoal.plan import Node, first_plan
from shoal.record import read
from shoal.record.jsonl import read_json
from shoal.record.rundir import RunDir
from shoal.worker.main import Worker
from shoal.worker.setup import Meeting, Setup
from shoal_workloads.synthetic import SyntheticConfig, SyntheticShard
from tests.support.exchange import Exchange

ADDRESS = "127.0.0.1"
WORKLOAD = {"path": "shoal_workloads.synthetic:Synthetic", "seconds": 0.02, "global_batch": 12, "parameters": 1024}
SWITCHED_OFF = {"mlflow": {"enabled": False}, "evaluation": {"enabled": False}, "checkpoint": {"every": 0}}
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(
    ["shoal.worker.loop", "shoal.control.controller", "shoal_workloads.synthetic", "shoal_workloads.pretrain"]
)


def meeting_of(raw: Mapping[str, Any]) -> Meeting:
    return Meeting(tuple(raw["lifeline"]), raw["secret"], raw["session"])


def ask(path: Path, question: Mapping[str, Any]) -> Any:
    """One question over a Unix socket; None when nobody is there."""
    with socket.socket(socket.AF_UNIX) as line:
        try:
            line.connect(str(path))
            line.sendall(json.dumps(question).encode() + b"\n")
            return json.loads(line.makefile().readline() or "null")
        except OSError:
            return None


def answer(path: Path, reply: Callable[[dict[str, Any]], Any]) -> None:
    """Answer questions at `path`, in a thread."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(json.dumps(reply(json.loads(self.rfile.readline()))).encode() + b"\n")

    class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
        daemon_threads = True

    threading.Thread(target=Server(str(path), Handler).serve_forever, daemon=True).start()


def log_to(path: Path) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)


def worker_main(raw: dict[str, Any], folder: Path) -> None:
    log_to(folder / "workers.log")
    setup = Setup(**raw | {"rundir": Path(raw["rundir"]), "meeting": meeting_of(raw["meeting"])})
    worker = Worker(setup, ADDRESS)

    def reply(question: dict[str, Any]) -> Any:
        if question.get("what") == "steps":
            return worker.steps()
        return worker.rejoin(meeting_of(question))

    answer(folder / f"{os.getpid()}.sock", reply)
    threading.Event().wait()


class LabFleet:
    """The controller's view: it asks the test process, which outlives it."""

    address = ADDRESS

    def __init__(self, folder: Path) -> None:
        self.warden = folder / "warden.sock"

    def nodes(self) -> list[Node]:
        return [Node(name, name, slots) for name, slots in ask(self.warden, {"what": "nodes"}).items()]

    def draining(self) -> Mapping[str, float]:
        return dict(ask(self.warden, {"what": "draining"}))

    def spawn(self, setup: Setup, node: Node, died: Callable[[str], None]) -> None:
        ask(self.warden, {"what": "spawn", "setup": asdict(setup) | {"rundir": str(setup.rundir)}})

    def kill(self, name: str) -> None:
        ask(self.warden, {"what": "kill", "name": name})

    def workers(self, run_id: str) -> list[str]:
        return list(ask(self.warden, {"what": "workers"}))

    def rejoin(self, name: str, meeting: Meeting) -> bool:
        return bool(ask(self.warden, {"what": "rejoin", "name": name, "meeting": asdict(meeting)}))


def controller_main(folder: Path, job: dict[str, Any], seats: dict[tuple[int, int], str], again: bool) -> None:
    import asyncio

    from shoal.control.controller import Controller

    log_to(folder / "controller.log")
    rundir = folder / job["run_id"]
    one = Controller(LabFleet(folder), Job.model_validate(job), rundir, seats, 0, {}, again=again)
    log.begin(controller_name(job["run_id"]), lambda: one.state.committed)
    signal.signal(signal.SIGTERM, lambda *_: one.stop("stopped by a signal"))
    signal.signal(signal.SIGUSR1, lambda *_: one.stop("stopped by a signal", save=True))
    asyncio.run(one.run())


class Lab:
    """A run on `nodes` (slots of each by name). `exchange`: what lies between its workers and its controller."""

    def __init__(
        self,
        folder: Path,
        nodes: dict[str, int],
        resume: bool = False,
        exchange: Exchange | None = None,
        **settings: Any,
    ) -> None:
        self.folder, self.alive, self.exchange = folder, dict(nodes), exchange
        self.drains: dict[str, float] = {}
        self.processes: dict[str, Any] = {}
        workload = settings.pop("workload", {})
        if "path" not in workload:
            workload = WORKLOAD | workload
        # of 60 s follow deadlines that a machine under load keeps
        merged = {"run_id": "lab", "storage": str(folder), "cells": 3, "patience": 60.0, **SWITCHED_OFF, **settings}
        self.job = Job.model_validate(merged | {"workload": workload}).model_dump(mode="json")
        self.path = folder / "lab"
        RunDir.create(folder, "lab", self.job, resume).close()
        answer(folder / "warden.sock", self.reply)
        plan = first_plan(nodes, self.job["cells"], self.job["workers_per_cell"])
        self.seats = {(seat.cell, seat.rank): node for seat, node in plan.items()}
        self.controller = self.start_controller(again=False)

    def start_controller(self, *, again: bool) -> Any:
        process = FORK.Process(target=controller_main, args=(self.folder, self.job, self.seats, again), daemon=True)
        process.start()
        return process

    def reply(self, question: dict[str, Any]) -> Any:
        meeting = question.get("meeting") or question.get("setup", {}).get("meeting")
        if meeting is not None and self.exchange is not None:
            meeting["lifeline"] = self.exchange.towards(*meeting["lifeline"])
        match question["what"]:
            case "nodes":
                return self.alive
            case "draining":
                return self.drains
            case "workers":
                return [name for name, process in list(self.processes.items()) if process.is_alive()]
            case "rejoin":
                process = self.processes.get(question["name"])
                path = self.folder / f"{process.pid if process else 0}.sock"
                there = process is not None and process.is_alive() and path.exists()
                if there:
                    threading.Thread(target=ask, args=(path, question["meeting"]), daemon=True).start()
                return there
            case "kill":
                self.kill(question["name"])
            case "spawn":
                setup = question["setup"]
                if setup["node"] in self.alive:
                    process = FORK.Process(target=worker_main, args=(setup, self.folder), daemon=True)
                    process.start()
                    self.processes[setup["name"]] = process
        return None

    # ---- faults

    def signal(self, worker: str, number: int) -> None:
        process = self.processes.get(worker)
        if process is not None and process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)

    def kill(self, worker: str) -> None:
        self.signal(worker, signal.SIGKILL)

    def on(self, node: str) -> list[str]:
        return [name for name in list(self.processes) if name.endswith(f"@{node}")]

    def kill_node(self, node: str) -> None:
        del self.alive[node]
        for worker in self.on(node):
            self.kill(worker)

    def kill_controller(self) -> None:
        self.controller.kill()
        self.controller.join()
        self.controller = self.start_controller(again=True)

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
        os.kill(self.controller.pid, signal.SIGUSR1 if save else signal.SIGTERM)

    # ---- looking on

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in read.events(self.path) if event["kind"] == kind]

    def steps(self) -> list[dict[str, Any]]:
        return read.steps(self.path)

    def living(self) -> list[str]:
        """Workers whose processes are there."""
        return sorted(name for name, process in list(self.processes.items()) if process.is_alive())

    def committed(self) -> int:
        """Committed steps by a worker's own word: the record may be behind."""
        answers = [ask(self.folder / f"{self.processes[name].pid}.sock", {"what": "steps"}) for name in self.living()]
        return max((int(answer) for answer in answers if answer is not None), default=-1)

    def members(self, cell: int) -> list[str]:
        """Of the last generation that had the cell."""
        return [g for g in self.events("generation") if str(cell) in g["cells"]][-1]["cells"][str(cell)]

    def until(self, done: Callable[[], Any], seconds: float = 240.0) -> None:
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, self.story()
            assert self.controller.is_alive() or (self.path / "run.json").exists(), self.story()
            time.sleep(0.01)

    def full(self, steps: int, spares: int = 0) -> None:
        """Wait until every cell commits, `steps` more steps are there and spares are warm."""
        base = len(self.steps())

        def whole() -> bool:
            lines = self.steps()
            status = read_json(self.path / "status.json") or {"workers": [], "generation": None}
            warm = sum(worker["cell"] is None for worker in status["workers"])
            current = bool(lines) and status["generation"] == lines[-1]["generation"]
            return current and len(lines) >= base + steps and lines[-1]["cells"] == self.job["cells"] and warm >= spares

        self.until(whole)

    def finished(self) -> dict[str, Any]:
        self.until(lambda: (self.path / "run.json").exists())
        self.controller.join(60)
        return read_json(self.path / "run.json") or {}

    def story(self) -> str:
        tail = "\n".join(json.dumps(event) for event in read.events(self.path)[-25:])
        logs = [
            (self.folder / name).read_text()[-3000:]
            for name in ("controller.log", "workers.log")
            if (self.folder / name).exists()
        ]
        return f"{len(self.steps())} steps\n{tail}\n" + "\n".join(logs)

    def close(self) -> None:
        self.controller.kill()
        for process in list(self.processes.values()):
            process.kill()


def alone(steps: int) -> tuple[torch.Tensor, list[float]]:
    """The same training in this one process: final vector, and the loss of each step."""
    config = SyntheticConfig.model_validate({k: v for k, v in WORKLOAD.items() if k != "path"} | {"seconds": 0.0})
    replica, losses = SyntheticShard(config, seed=0), []
    for step in range(steps):
        replica.begin(step)
        replica.accumulate([range(step * config.global_batch, (step + 1) * config.global_batch)])
        total = replica.sums().clone()
        losses.append(replica.commit(total, replica.stats(), replica.norm_sq(total))["loss"])
    return replica.vector, losses


@contextlib.contextmanager
def lab(folder: Path, nodes: dict[str, int], **settings: Any) -> Iterator[Lab]:
    one = Lab(folder, nodes, **settings)
    try:
        yield one
    finally:
        one.close()
