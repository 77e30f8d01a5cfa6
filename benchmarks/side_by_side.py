"""One script for Ray Train and its four edits later for Shoal, side by side: what the death of a worker costs each.

    python benchmarks/side_by_side.py [--kills 5] [--step 0.1] [--json FILE]

docs/examples/ray_train_before.py and ray_train_after.py train the same network on the same images with two workers on a
local cluster of three nodes with a slot each; both take as many steps as they are given time for, and each micro-batch
is made to take `--step` seconds more. Ray Train saves a checkpoint each epoch, as its tutorial does, and polls its
workers every 0.2 s (its default is 2 s). A worker process is killed at another phase of the epoch each time.

- seconds: from the kill to the first step beyond where the run stood; of Shoal, to the first that a membership formed
  after the kill commits;
- steps lost: done a second time.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for docs.examples, here and in the workers

import ray_train_baseline as baseline
from docs.examples import ray_train_after, ray_train_before
from recovery_runs import since_kill
from shoal.cluster import connect, local
from shoal.demo.run import Killed
from shoal.record import read
from shoal.record.audit import committed_ids_audit
from shoal.record.jsonl import read_json

HERE = Path(__file__).resolve()
CLUSTER = "side-by-side"
NODES, WORKERS, BATCH = 3, 2, 32
EPOCH = -(-len(ray_train_before.get_dataset()) // (WORKERS * BATCH))
"""Steps."""
ENDLESS = 10**6


# ---- Ray Train


def watched(config: dict[str, Any]) -> None:
    """The script's `train_func`, whose optimizer's steps take longer and are on record as `ray_train_baseline`'s."""
    import torch.distributed as dist
    from ray.train import get_context
    from torch.optim.optimizer import register_optimizer_step_post_hook

    folder, rank = Path(config["folder"]), get_context().get_world_rank()
    attempt = [uuid.uuid4().hex]
    dist.broadcast_object_list(attempt, src=0)
    here = {"pid": os.getpid(), "node": os.environ["SHOAL_NODE_OF"].split("/")[1]}
    world = get_context().get_world_size()
    baseline.append(folder / "workers.jsonl", {"attempt": attempt[0], "rank": rank, "world": world, **here})

    def stepped(optimizer: Any, *_: Any) -> None:
        time.sleep(config["step"])
        if rank == 0:
            step = int(next(iter(optimizer.state.values()))["step"])
            baseline.append(folder / "steps.jsonl", {"attempt": attempt[0], "step": step, "time": time.time()})

    register_optimizer_step_post_hook(stepped)
    ray_train_before.train_func(config)


def drive(folder: Path, step: float) -> None:
    """Ray Train's driver, inside the cluster: runs until it is killed."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    TorchTrainer(
        watched,
        train_loop_config={"folder": str(folder), "step": step, "lr": 1e-3, "batch_size": BATCH, "epochs": ENDLESS},
        scaling_config=ScalingConfig(num_workers=WORKERS),
        torch_config=TorchConfig(backend="gloo"),
        run_config=RunConfig(
            name="before", storage_path=str(folder / "storage"), failure_config=FailureConfig(max_failures=-1)
        ),
    ).fit()


# ---- Shoal


class Slow(ray_train_after.Digits):
    """The workload of the script, each micro-batch of which takes so many seconds longer."""

    class Config(ray_train_after.Digits.Config):
        seconds: float

    def loss(self, model: Any, batch: Any) -> Any:
        time.sleep(self.config.seconds)
        return super().loss(model, batch)


def drive_shoal(folder: Path, step: float) -> None:
    """Shoal's driver, inside the cluster: runs until it is told to end."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    from shoal.train import ShoalTrainer

    ShoalTrainer(
        "benchmarks.side_by_side:Slow",
        workload_config={"lr": 1e-3, "global_batch": WORKERS * BATCH, "micro_batch": BATCH, "seconds": step},
        shoal_config={"steps": ENDLESS, "audit": {"samples": True}, "mlflow": {"enabled": False}},
        scaling_config=ScalingConfig(num_workers=WORKERS),
        run_config=RunConfig(name="after", storage_path=str(folder), failure_config=FailureConfig(max_failures=-1)),
    ).fit()


def measure_shoal(cluster: str, numbers: Iterable[int], step: float) -> Iterator[dict[str, Any]]:
    """As `ray_train_baseline.measure`; at the end the record is audited."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        run = folder / "after"
        argv = connect.command(cluster, [sys.executable, str(HERE), "--drive-shoal", str(folder), "--step", str(step)])
        environ = {**os.environ, **connect.environment(cluster)}
        with (folder / "driver.log").open("wb") as log:
            driver = subprocess.Popen(argv, env=environ, stdout=log, stderr=log, process_group=0)
        try:
            for number in numbers:
                yield kill_one(run, number)
        finally:
            driver.send_signal(signal.SIGTERM)  # in order, with its books closed
            driver.wait(timeout=120)
        audit = committed_ids_audit(run)
        assert (audit.repeated, audit.skipped) == (0, 0), audit


def kill_one(run: Path, number: int) -> dict[str, Any]:
    """Wait for a dozen steps and more of all workers, kill one, wait for full strength."""
    wanted = 12 + baseline.PHASE * number % EPOCH
    first = wait_for(run, lambda steps: full(steps))["step"]
    before = wait_for(run, lambda steps: full(steps) if steps[-1]["step"] >= first + wanted else None)
    workers = [worker for worker in (read_json(run / "status.json") or {})["workers"] if worker["cell"] is not None]
    victim = workers[number % len(workers)]
    killed = Killed(victim["node"], time.time(), -1, before["generation"], [])
    os.kill(victim["pid"], signal.SIGKILL)
    wait_for(run, lambda steps: since_kill(killed, steps, WORKERS)[1])
    after, whole = since_kill(killed, read.steps(run), WORKERS)
    recoveries = [event for event in read.events(run) if event["kind"] == "recovery" and event["time"] >= killed.time]
    assert after is not None
    assert whole is not None
    lost = sum(event["steps_lost"] for event in recoveries)
    print(f"shoal: worker killed, new ground after {after:.2f} s, full strength after {whole:.1f} s, {lost} steps lost")
    return {"next_step": round(after, 3), "full_strength": round(whole, 3), "steps_lost": lost, "step": before["step"]}


def full(steps: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The newest step, if all workers did it."""
    return steps[-1] if steps and steps[-1]["cells"] == WORKERS else None


def wait_for(run: Path, condition: Any, timeout_s: float = 240.0) -> Any:
    """What `condition(steps)` returns, once it is true. Raises SystemExit: it does not become true, or the run ends."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and not (run / "run.json").exists():
        if (run / "steps.jsonl").exists() and (found := condition(read.steps(run))):
            return found
        time.sleep(0.05)
    log = (run.parent / "driver.log").read_text(errors="replace")
    raise SystemExit(f"Shoal ended, or did not go on within {timeout_s:.0f} s; its driver's log ends:\n{log[-3000:]}")


# ---- both


def compare(cluster: str, kills: int, step: float) -> dict[str, Any]:
    """Kill so many workers of each; medians, and how many times sooner Shoal is beyond where it stood."""
    workers, epoch = (WORKERS, WORKERS), EPOCH
    found = {
        "ray_train": list(baseline.measure(cluster, range(kills), "worker", step, workers, HERE, epoch)),
        "shoal": list(measure_shoal(cluster, range(kills), step)),
    }
    medians = {
        who: {key: median(one[key] for one in each) for key in ("next_step", "steps_lost")}
        for who, each in found.items()
    }
    ratio = medians["ray_train"]["next_step"] / medians["shoal"]["next_step"]
    return {"medians": medians, "ratio": round(ratio, 1), "kills": found}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=5)
    options.add_argument("--step", type=float, default=0.1, help="seconds by which a micro-batch takes longer")
    options.add_argument("--json", type=Path)
    options.add_argument("--drive", type=Path, help=argparse.SUPPRESS)
    options.add_argument("--drive-shoal", type=Path, help=argparse.SUPPRESS)
    options.add_argument("--workers", help=argparse.SUPPRESS)
    asked = options.parse_args()
    if asked.drive:
        drive(asked.drive, asked.step)
        return
    if asked.drive_shoal:
        drive_shoal(asked.drive_shoal, asked.step)
        return
    load = os.getloadavg()[0]
    local.up(CLUSTER, nodes=NODES, slots=1, say=print)
    try:
        found = compare(CLUSTER, asked.kills, asked.step)
    finally:
        local.down(CLUSTER)
    found |= {"date": date.today().isoformat(), "load": [load, os.getloadavg()[0]]}
    print(json.dumps(found, indent=1))
    if asked.json:
        part = asked.json.with_suffix(".part")
        part.write_text(json.dumps(found, indent=1) + "\n")
        os.replace(part, asked.json)


if __name__ == "__main__":
    main()
