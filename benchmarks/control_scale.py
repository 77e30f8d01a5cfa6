"""What a large run costs its controller: with real sockets and simulated workers that greet, form, commit and regroup.

    python benchmarks/control_scale.py --workers 16384 --json scale.json

The controller is the real one, in a process of its own, with its record on disk. The workers are only their lifelines,
held by a few processes: they answer every order as workers do, say each commit as workers do, and exchange addresses as
gloo does that connects lazily. One cell dies; nobody takes its place. Measured, of the controller's process:

    regroup_cpu_seconds, regroup_bytes    from a cell's death until the first step of the others is committed
    step_cpu_seconds, step_bytes          what is said of a step, until it is committed
    idle_cpu_percent                      between steps: signs of life, and looks for who gives none
    loop_blocked_ms_max                   the longest that the event loop did not return, in all of this; with --calls
                                          in processor time, which a busy machine does not lengthen (all else is slower)
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import multiprocessing
import multiprocessing.connection
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from paper_workers import CELL, SLOTS, host_main
from shoal.config import Job
from shoal.control.controller import Controller
from shoal.plan import Node
from shoal.record.rundir import RunDir
from shoal.timeouts import Timeouts
from shoal.worker.setup import Meeting, Setup

HOSTS = 4
STEPS, SECONDS = 5, 3.0
"""Steps that are measured, and the seconds between two."""
PATIENCE = 60.0
SPAWN = multiprocessing.get_context("spawn")


class PaperFleet:
    """Nodes on paper; the workers come by themselves."""

    address = "127.0.0.1"

    def __init__(self, nodes: int) -> None:
        self._nodes = [Node(f"n{index}", f"n{index}", SLOTS) for index in range(nodes)]

    def nodes(self) -> list[Node]:
        return self._nodes

    def draining(self) -> Mapping[str, float]:
        return {}

    def spawn(self, setup: Setup, node: Node, died: Callable[[str], None]) -> None:
        pass

    def kill(self, name: str) -> None:
        pass

    def workers(self, run_id: str) -> list[str]:
        return []

    def rejoin(self, name: str, meeting: Meeting) -> bool:
        return False


class Blocked:
    """The longest call of the event loop: seconds by this clock, and what it was."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.longest = (0.0, "")
        run = asyncio.Handle._run  # type: ignore[attr-defined]

        def timed(handle: asyncio.Handle) -> None:
            began = clock()
            run(handle)
            took = clock() - began
            if took > self.longest[0]:
                self.longest = (took, str(getattr(handle._callback, "__self__", handle._callback))[:120])

        asyncio.Handle._run = timed  # type: ignore[attr-defined]

    def take(self) -> tuple[float, str]:
        taken, self.longest = self.longest, (0.0, "")
        return taken


def controller_main(
    job: dict[str, Any], folder: Path, pipe: multiprocessing.connection.Connection, calls: bool
) -> None:
    blocked = Blocked(time.thread_time if calls else time.perf_counter)
    checked = Job.model_validate(job)
    workers = checked.cells * checked.workers_per_cell
    seats = {(w // CELL, w % CELL): f"n{w // SLOTS}" for w in range(workers)}
    one = Controller(PaperFleet(workers // SLOTS), checked, folder / "run", seats, 0, {})

    def answer() -> None:
        while one.loop is None or not hasattr(one, "meeting"):
            time.sleep(0.01)
        pipe.send((one.meeting.lifeline, one.meeting.secret))
        profiler, on = cProfile.Profile(), ""
        while True:
            if (wanted := pipe.recv()) != on:
                if on:
                    one.later(profiler.disable)
                    time.sleep(1.0)
                    profiler.dump_stats(on)
                    profiler = cProfile.Profile()
                if wanted:
                    one.later(profiler.enable)
                on = wanted
            state = one.state
            pipe.send(
                {"cpu": time.process_time(), "blocked": blocked.take(), "generation": state.generation}
                | {"committed": state.committed, "lines": len(one.lifelines.lines), "outcome": one.outcome}
            )

    threading.Thread(target=answer, daemon=True).start()
    asyncio.run(one.run())


class Scene:
    """The processes of a run, and what they say."""

    def __init__(self, workers: int, folder: Path, *, calls: bool) -> None:
        cells = workers // CELL
        workload = {"path": "shoal_workloads.synthetic:Synthetic", "global_batch": workers}
        settings = {"run_id": "run", "storage": str(folder), "cells": cells, "workers_per_cell": CELL, "spares": 0}
        off = {"mlflow": {"enabled": False}, "evaluation": {"enabled": False}, "checkpoint": {"every": 0}}
        raw = {**settings, **off, "steps": 10**6, "patience": PATIENCE, "workload": workload}
        job = Job.model_validate(raw).model_dump(mode="json")
        RunDir.create(folder, "run", job, resume=False).close()
        self.blocked = (0.0, "")
        """Seconds, of the longest call of the event loop since this was set."""
        self.profile = ""
        """A file for the profile of what the event loop does now; "" for none."""
        self.pipe, theirs = SPAWN.Pipe()
        self.processes = [SPAWN.Process(target=controller_main, args=(job, folder, theirs, calls), daemon=True)]
        self.processes[0].start()
        meeting = self.pipe.recv()
        beat = Timeouts(PATIENCE, workers).beat
        self.hosts = []
        for host in range(HOSTS):
            pipe, theirs = SPAWN.Pipe()
            mine = range(host * cells // HOSTS, (host + 1) * cells // HOSTS)
            self.processes.append(SPAWN.Process(target=host_main, args=(theirs, meeting, mine, beat), daemon=True))
            self.processes[-1].start()
            self.hosts.append(pipe)
        for pipe in self.hosts:
            assert pipe.recv() == "connected"

    def tell(self, what: str, argument: int = 0) -> tuple[int, int, dict[int, int]]:
        """Of all hosts: (bytes from the controller, bytes to it, workers that have joined each generation)."""
        for pipe in self.hosts:
            pipe.send((what, argument))
        answers = [pipe.recv() for pipe in self.hosts]
        joined: dict[int, int] = {}
        for _, _, some in answers:
            for generation, count in some.items():
                joined[generation] = joined.get(generation, 0) + count
        return sum(a[0] for a in answers), sum(a[1] for a in answers), joined

    def state(self) -> dict[str, Any]:
        """Of the controller."""
        self.pipe.send(self.profile)
        state = dict(self.pipe.recv())
        self.blocked = max(self.blocked, tuple(state["blocked"]))
        return state

    def until(self, done: Callable[[], bool]) -> None:
        end = time.monotonic() + 900
        while not done():
            assert time.monotonic() < end, (self.state(), self.tell("look"))
            time.sleep(0.01)

    def committed(self, steps: int) -> None:
        self.tell("commit", steps)
        self.until(lambda: self.state()["committed"] == steps)

    def close(self) -> None:
        for process in self.processes:
            process.kill()


def measured(workers: int, folder: Path, profiles: Path | None, *, calls: bool = False) -> dict[str, Any]:
    scene = Scene(workers, folder, calls=calls)
    try:
        scene.until(lambda: scene.tell("look")[2].get(0) == workers)
        start = scene.state()
        costs, sizes, idle, scene.blocked = [], [], [], (0.0, "")
        for step in range(1, STEPS + 1):
            if profiles is not None:
                scene.profile = str(profiles / "steps.prof")
            before, (received, sent, _) = scene.state(), scene.tell("look")
            scene.committed(step)
            after, (more, said, _) = scene.state(), scene.tell("look")
            costs.append(after["cpu"] - before["cpu"])
            sizes.append(said - sent + more - received)
            began = time.monotonic()
            time.sleep(SECONDS)
            idle.append((scene.state()["cpu"] - after["cpu"]) / (time.monotonic() - began))
        if profiles is not None:
            scene.profile = str(profiles / "regroup.prof")
        before, (received, sent, _) = scene.state(), scene.tell("look")
        began = time.monotonic()
        scene.tell("kill", 1)
        scene.until(lambda: scene.tell("look")[2].get(1) == workers - CELL)
        scene.committed(STEPS + 1)
        lasted = time.monotonic() - began
        scene.profile = ""
        after, (more, said, _) = scene.state(), scene.tell("look")
        return {
            "workers": workers,
            "cells": workers // CELL,
            "start_cpu_seconds": start["cpu"],
            "regroup_cpu_seconds": after["cpu"] - before["cpu"],
            "regroup_seconds": lasted,
            "regroup_bytes": more - received,
            "regroup_bytes_received": said - sent,
            "step_cpu_seconds": median(costs),
            "step_bytes": median(sizes),
            "idle_cpu_percent": 100 * median(idle),
            "loop_blocked_ms_max": 1000 * scene.blocked[0],
            "loop_blocked_in": scene.blocked[1],
        }
    finally:
        scene.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, default=16384, help="a multiple of 64")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument("--profiles", type=Path, help="a folder for profiles of the event loop: it is slower then")
    parser.add_argument("--calls", action="store_true", help="take the processor time of each call of the event loop")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measured(arguments.workers, Path(folder), arguments.profiles, calls=arguments.calls)
    print(json.dumps(figures, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
