"""A Shoal run on a local cluster that things are done to, one after the other, and what each of them cost.

Used by `recovery.py` and `reshape_on_ray.py`. Each case waits until the run is at full strength and a cell's worth of
spares is warm, does its fault, and waits until it is over.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from shoal.cluster import connect, local
from shoal.cluster.api import get
from shoal.cluster.state import load
from shoal.demo.run import Killed
from shoal.record import read
from shoal.record.audit import committed_ids_audit
from shoal.record.jsonl import read_json
from shoal_core.errors import UserError

__all__ = ["CASES", "CELLS", "WORKERS", "Run"]

CELLS, WORKERS = 3, 2
NOTICE = 20  # seconds from a drain's notice to the node's end
SHOAL = str(Path(sys.executable).with_name("shoal"))


def since_kill(kill: Killed, steps: Sequence[dict[str, Any]], cells: int) -> tuple[float | None, float | None]:
    """Seconds from a kill to the next committed step of a new generation, and to the first one with all cells.

    Steps of the generation that was hit do not count: they were complete before anything was noticed.
    """
    after = [line for line in steps if line["time"] > kill.time and line["generation"] > kill.generation]
    full = [line for line in after if line["cells"] == cells]
    return (after[0]["time"] - kill.time if after else None, full[0]["time"] - kill.time if full else None)


class Run:
    """A Shoal run of `CELLS` x `WORKERS` on `cluster` that goes on until it is closed. `step`: seconds of a step;
    `spares`: how many are warm at full strength; `settings`: fields of its job that are to be others.

    A step has two micro-batches a cell, which take half of it each; with a cell gone the others do three.
    """

    def __init__(self, cluster: str, folder: Path, step: float, spares: int = WORKERS, **settings: Any) -> None:
        self.cluster, self.path = cluster, folder / "bench"
        workload = {"path": "shoal_workloads.synthetic:Synthetic", "seconds": step / 2, "global_batch": 4 * CELLS}
        job = {"run_id": "bench", "storage": str(folder), "steps": 10**6, "cells": CELLS, "workers_per_cell": WORKERS}
        off = {"mlflow": {"enabled": False}, "evaluation": {"enabled": False}, "checkpoint": {"every": 0}}
        job |= {**off, "audit": {"samples": True}, "workload": workload} | settings
        self.cells, self.spares = job["cells"], spares
        file = folder / "job.yaml"
        file.write_text(yaml.safe_dump(job))
        env = {**os.environ, **connect.environment(cluster)}
        with (folder / "driver.log").open("wb") as log:
            argv = connect.command(cluster, [SHOAL, "train", str(file)])
            # a group of its own: who stops the benchmark does not stop the run before its books are closed
            self.driver = subprocess.Popen(argv, env=env, stdout=log, stderr=log, process_group=0)
        self.wait_full(20)
        self.actors_before = self.actors()

    def steps(self) -> list[dict[str, Any]]:
        return read.steps(self.path) if (self.path / "steps.jsonl").exists() else []

    def events(self, kind: str, since: float = 0.0) -> list[dict[str, Any]]:
        return [event for event in read.events(self.path) if event["kind"] == kind and event["time"] >= since]

    def status(self) -> dict[str, Any]:
        return read_json(self.path / "status.json") or {"workers": []}

    def actors(self) -> int:
        """Living Ray actors of the cluster."""
        answer = get(
            load(self.cluster), "/api/v0/actors?limit=10000&filter_keys=state&filter_predicates=%3D&filter_values=ALIVE"
        )
        return len(answer["data"]["result"]["result"])

    def wait_for(self, condition: Callable[[], Any], what: str, seconds: float = 240.0) -> None:
        """Raises SystemExit: it does not come true."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end or self.driver.poll() is not None:
                raise SystemExit(f"{what} was waited for in vain: see {self.path} and driver.log beside it")
            time.sleep(0.1)

    def wait_full(self, steps: int, wanted: int | None = None) -> None:
        """Until all cells have committed `steps` more steps in a row and `wanted` spares are warm, or all of them."""
        base: list[int] = []
        wanted = self.spares if wanted is None else wanted

        def full() -> bool:
            lines, status = self.steps(), self.status()
            spares = sum(worker["cell"] is None for worker in status["workers"])
            whole = bool(lines) and lines[-1]["cells"] == self.cells
            if not whole or status.get("generation") != lines[-1]["generation"] or spares < wanted:
                base.clear()
                return False
            base.append(lines[-1]["step"])
            return base[-1] >= base[0] + steps

        self.wait_for(full, f"full strength and {wanted} spares")

    def victim(self, number: int) -> dict[str, Any]:
        """A worker of each cell in turn."""
        found: dict[str, Any] = next(w for w in self.status()["workers"] if w["cell"] == number % CELLS)
        return found

    def since(self, when: float, generation: int, node: str) -> dict[str, Any]:
        """What a fault at `when`, in this generation, cost."""
        killed = Killed(node, when, -1, generation, [])
        self.wait_for(lambda: since_kill(killed, self.steps(), CELLS)[1], "full strength after a fault")
        after, full = since_kill(killed, self.steps(), CELLS)
        self.wait_for(lambda: self.events("recovery", when), "the record of a recovery")
        recovery = self.events("recovery", when)[0]
        noticed = self.events("death", when)[0]["time"] - when
        return {
            "next_commit": after,
            "full_strength": full,
            "noticed": noticed,
            "rung": recovery["rung"],
            "controller_hit": bool(self.events("controller_back", when)),
            "phases": recovery["phases"],
        }

    def pause(self, when: float, until: float, column: str) -> dict[str, Any]:
        """The longest step between two times, beside the median of the 100 steps before. `column`: whose clock."""
        lines = self.steps()
        usual = median(line[column] for line in [line for line in lines if line["time"] < when][-100:])
        longest = max(line[column] for line in lines if when < line["time"] <= until)
        return {"longest": longest, "median": usual, "ratio": longest / usual}

    def end(self) -> None:
        if self.driver.poll() is None:
            self.driver.send_signal(signal.SIGTERM)
            self.driver.wait(timeout=120)

    def close(self) -> dict[str, Any]:
        """End the run; what became of its steps and samples, and of the cluster's actors."""
        self.wait_full(5, wanted=0)
        actors = self.actors()
        self.end()
        audit = committed_ids_audit(self.path)
        return {
            "steps": audit.steps,
            "steps_lost": sum(event["steps_lost"] for event in self.events("recovery")),
            "samples_repeated": audit.repeated,
            "samples_skipped": audit.skipped,
            "actors_before": self.actors_before,
            "actors_after": actors,
        }


def kill_worker(run: Run, number: int) -> dict[str, Any]:
    return signalled(run, number, signal.SIGKILL)


def freeze_worker(run: Run, number: int) -> dict[str, Any]:
    return signalled(run, number, signal.SIGSTOP)


def signalled(run: Run, number: int, what: signal.Signals) -> dict[str, Any]:
    victim, generation, when = run.victim(number), run.steps()[-1]["generation"], time.time()
    os.kill(victim["pid"], what)
    return run.since(when, generation, victim["node"])


def kill_node(run: Run, number: int) -> dict[str, Any]:
    victim, generation = run.victim(number), run.steps()[-1]["generation"]
    when = local.kill_node(run.cluster, victim["node"]).time
    found = run.since(when, generation, victim["node"])
    local.add_node(run.cluster)
    return found


def drain(run: Run, number: int) -> dict[str, Any]:
    """A node's notice: its cell moves to spares. The node goes when nothing is left on it, and is replaced."""
    node, deaths, generation = run.victim(number)["node"], len(run.events("death")), run.steps()[-1]["generation"]
    when = time.time()
    notice = ["--deadline", str(NOTICE), "--name", run.cluster]
    subprocess.run([SHOAL, "cluster", "drain", node, *notice], check=True, stdout=subprocess.DEVNULL)
    run.wait_for(
        lambda: (line := run.steps()[-1])["cells"] == CELLS and line["generation"] > generation, "the cells' move"
    )
    moved = time.time() - when
    time.sleep(2.0)
    found = run.pause(when, time.time(), "seconds") | {"moved": moved}
    seated = [worker for worker in run.status()["workers"] if worker["node"] == node and worker["cell"] is not None]
    found["deaths"] = len(run.events("death")) - deaths + len(seated)
    with contextlib.suppress(UserError):  # Ray has ended it already, as nothing runs there any more
        local.kill_node(run.cluster, node)
    local.add_node(run.cluster)
    return found


def kill_controller(run: Run, number: int) -> dict[str, Any]:
    """Steps are timed by the workers' clocks: nobody else is there."""
    generation, when = run.steps()[-1]["generation"], time.time()
    os.kill(run.status()["controller"]["pid"], signal.SIGKILL)
    run.wait_for(lambda: run.events("controller_back", when), "the controller's return")
    back = run.events("controller_back", when)[0]["time"]
    count = len(run.steps())
    run.wait_for(lambda: len(run.steps()) >= count + 20, "steps after the controller's return")
    found = run.pause(when, time.time(), "worker_seconds")
    return found | {"away": back - when, "generations": run.steps()[-1]["generation"] - generation}


CASES: Mapping[str, Callable[[Run, int], dict[str, Any]]] = {
    "worker": kill_worker,
    "node": kill_node,
    "freeze": freeze_worker,
    "drain": drain,
    "controller": kill_controller,
}
"""What is done to a run `number` times, and what each time gives."""
