"""The demo: a real cluster on this machine, a real corpus, a run that loses two nodes on the way, and its summary."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from shoal import tracking
from shoal.cluster import local
from shoal.cluster.connect import environment
from shoal.config import Job, merge_overrides, parse
from shoal.record import layout, read
from shoal.record.jsonl import read_json
from shoal.record.place import followed, from_root, local_record
from shoal.record.rundir import check_run_id
from shoal_core.errors import UserError
from shoal_core.store import join, local_folder

__all__ = ["CLUSTER", "Killed", "Outcome", "demo"]

CLUSTER, CORPUS = "demo", "demo-corpus"
NODES, SLOTS = 4, 2
VOCABULARY, SEQUENCE, BATCH = 4096, 256, 16
STEPS = 72
CHATTER = (" INFO ", "\tINFO ", "\tSUCC ", "Running entrypoint", "Progress bars disabled")
"""What Ray itself says in a job's output; the job's own lines hold none of it."""
Say = Callable[[str], None]


@dataclass
class Killed:
    """A node the demo killed: when (unix seconds), at which step and generation, and which actors sat there."""

    node: str
    time: float
    step: int
    generation: int
    actors: list[str]


@dataclass
class Outcome:
    """What a demo leaves behind."""

    path: Path
    kills: list[Killed] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def job_settings(storage: str, corpus: str) -> dict[str, Any]:
    """The demo's job, before overrides: 2 cells x 2 workers, a few million parameters."""
    return {
        "run_id": time.strftime("demo-%m%d-%H%M%S"),
        "storage": storage,
        "steps": STEPS,
        "cells": 2,
        "workers_per_cell": 2,
        "checkpoint": {"every": 30},
        "audit": {"samples": True},
        "workload": {
            "path": "shoal_workloads.pretrain:Pretrain",
            "model": {"preset": "demo"},
            "data": {"corpus": join(corpus, "train"), "heldout": join(corpus, "heldout"), "seq_len": SEQUENCE},
            "batch": {"global_batch": BATCH, "micro_batch": BATCH // 4},
            "schedule": {"lr": 3.0e-3, "warmup_steps": 10, "gamma": 0.01},
            "parallel": {"ep": 2},
            "eval": {"samples": 64},
        },
    }


def prepare(storage: str, overrides: list[str]) -> tuple[Job, Path]:
    """The demo's job file with its overrides, checked as far as it can be without a corpus; nothing is started.

    Raises:
        UserError: a bad override, or the run id is in use.
    """
    corpus = join(storage, CORPUS)
    settings = merge_overrides(job_settings(storage, corpus), overrides)
    job = parse(Job, settings, source="shoal demo")
    check_run_id(job.storage, str(job.run_id), resume=False)
    schedule = settings["workload"].get("schedule")
    batch = settings["workload"].get("batch")
    if isinstance(schedule, dict) and isinstance(batch, dict):
        tokens = job.steps * int(batch.get("global_batch", BATCH)) * SEQUENCE
        settings["workload"]["schedule"] = {"budget": tokens} | schedule
    folder = local_folder(storage) or Path(tempfile.mkdtemp(prefix="shoal-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{job.run_id}.yaml"
    file.write_text(yaml.safe_dump(settings, sort_keys=False))
    return job, file


def shoal(*words: str | Path) -> list[str]:
    return [str(Path(sys.executable).with_name("shoal")), *map(str, words)]


def submit(what: str, command: str, say: Say) -> None:
    """`ray job submit -- COMMAND` to the demo's cluster, its output shown as it comes.

    Raises:
        UserError: the job failed; its output, shown already, says why.
    """
    ray = str(Path(sys.executable).with_name("ray"))
    argv = [ray, "job", "submit", "--", "sh", "-c", command]
    env = {**os.environ, **environment(CLUSTER), "PYTHONUNBUFFERED": "1", "COLUMNS": "120"}
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        tail = False
        for line in process.stdout:
            if tail and line.strip() and not any(word in line for word in CHATTER):
                say("  " + line.rstrip())
            tail = tail or "Tailing logs" in line
    if process.returncode:
        raise UserError(f"the job `{what}` failed (exit {process.returncode})", "its output stands above")


@contextmanager
def timed(outcome: dict[str, float], name: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    outcome[name] = time.monotonic() - start


def build_corpus(corpus: str, sampling: subprocess.Popen[bytes], say: Say) -> None:
    """Train the tokenizer and write token shards, as one batch job on the cluster."""
    if sampling.wait():
        raise UserError("`shoal data sample` failed", "its output stands above")
    text, heldout = join(corpus, "raw", "train-*.parquet"), join(corpus, "raw", "heldout.parquet")
    tokenizer = join(corpus, "tokenizer")
    commands = [
        shoal(
            "data",
            "tokenizer-train",
            "--input",
            text,
            "--vocab-size",
            str(VOCABULARY),
            "--out",
            tokenizer,
        ),
        shoal(
            "data",
            "tokenize",
            "--input",
            text,
            "--tokenizer",
            join(tokenizer, "tokenizer.json"),
            "--out",
            join(corpus, "train"),
        ),
        shoal(
            "data",
            "tokenize",
            "--input",
            heldout,
            "--tokenizer",
            join(tokenizer, "tokenizer.json"),
            "--out",
            join(corpus, "heldout"),
        ),
    ]
    submit("tokenize", " && ".join(shlex.join(command) for command in commands), say)


class Killer(threading.Thread):
    """Kills the node of a cell at a third and at two thirds of a run, or a little later if no spares are warm yet."""

    def __init__(self, path: Path, steps: int, kills: list[Killed], say: Say) -> None:
        super().__init__(daemon=True, name="killer")
        self.path, self.kills, self.say = path, kills, say
        self.plan = [(steps // 3, 1), (2 * steps // 3, 0)]
        self.patience = steps // 6

    def run(self) -> None:
        for step, cell in self.plan:
            while True:
                time.sleep(0.1)
                status = read_json(self.path / layout.STATUS) or {}
                if status.get("status") == "done":
                    return
                lines = read.steps(self.path) if (self.path / layout.STEPS).exists() else []
                done = lines[-1]["step"] + 1 if lines else 0
                warm = sum(worker["cell"] is None for worker in status.get("workers", ()))
                if done >= step + self.patience or (done >= step and warm >= SLOTS):
                    break
            self.kill(cell, lines[-1])

    def kill(self, cell: int, last: dict[str, Any]) -> None:
        """SIGKILL everything on the node where `cell` lives."""
        plan = read.plan(self.path)[-1]
        crew = plan["assignment"].get(str(cell)) or next(iter(plan["assignment"].values()))
        node = crew[0].rpartition("@")[2]
        kill = local.kill_node(CLUSTER, node)
        self.kills.append(Killed(node, kill.time, last["step"] + 1, last["generation"], list(crew)))
        self.say(f"*** killed {node}: SIGKILL to its {len(kill.pids)} processes, after step {last['step'] + 1} ***")


def demo(storage: str | Path, overrides: list[str], *, kill: bool, keep: bool, say: Say) -> Outcome:
    """Run the demo, with or without killing nodes; the cluster is taken down at the end unless `keep`. `storage`: the
    address for its run, its corpus and MLflow.

    Raises:
        UserError: something it needs is missing or failed.
    """
    storage = from_root(storage)
    job, file = prepare(storage, overrides)
    corpus, outcome = join(storage, CORPUS), Outcome(local_record(job.place))
    say(f"1. A Ray cluster on this machine: a head and {NODES} nodes of {SLOTS} slots")
    sampling = subprocess.Popen(shoal("data", "sample", "--out", join(corpus, "raw")))
    try:
        with timed(outcome.seconds, "cluster"):
            # nodes in namespaces of their own reach nothing but each other
            mode = "auto" if local_folder(storage) is not None else "process"
            local.up(CLUSTER, nodes=NODES, slots=SLOTS, mode=mode, say=lambda line: say("  " + line))
        say("2. A corpus: this Python's standard library, tokenized by a Ray Data batch job (`ray job submit`)")
        with timed(outcome.seconds, "corpus"):
            build_corpus(corpus, sampling, say)
        say(f"3. Training in {job.cells} cells of {job.workers_per_cell} workers")
        if kill:
            say("4. killing two nodes on the way")
            Killer(outcome.path, job.steps, outcome.kills, say).start()
        with timed(outcome.seconds, "training job"), followed(outcome.path, say, job.place):
            submit("train", f"{' '.join(shoal('train', file))}", say)
    finally:
        sampling.terminate()
        if not keep:
            local.down(CLUSTER, say=lambda line: say("  " + line))
        file.unlink(missing_ok=True)
    local_record(job.place)  # to its very end
    if job.mlflow.enabled and tracking.behind(outcome.path):  # a mirror that still sent went down with its node
        say("MLflow does not have the whole record yet: sending the rest")
        tracking.send(outcome.path)
    return outcome
