"""Ray Train 2.60 on a local Shoal cluster, and what a death costs it: seconds from the kill to new ground, steps lost.

    python benchmarks/ray_train_baseline.py CLUSTER [--kills 5] [--what node|worker] [--workers 6 | --workers 2,8]

A `TorchTrainer` of gloo workers of one slot, on different nodes while there are enough, takes DDP steps of 0.1 s with
a checkpoint to local storage every 5, `max_failures=-1`, and polls its workers every 0.2 s (its default is 2 s). Before
each kill it is past where it last stood. Of a fixed number of workers a killed node is replaced at once, and until then
the nodes left have the slots that a restart needs; of as many as there are slots for (the fewest, the most: Ray Train's
elastic training) it is not, and those that are left go on.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from shoal.cluster import connect, local
from shoal.cluster.state import HEAD, load

WORKERS = (6, 6)
"""The fewest, and the most."""
HERE = Path(__file__).resolve()
CHECKPOINT_EVERY = 5
PHASE = 11
"""By how many steps of a checkpoint interval kills move on from one to the next."""
START_TIMEOUT_S = 5
"""Of elastic training: for up to 20 s after a node's death Ray Train believes it to be there, and tries to start as
many workers as before; at its default that takes 60 s to fail."""


def train(config: dict[str, Any]) -> None:
    """One worker, from its last checkpoint on, until it is killed. Rank 0 logs steps, all ranks their starts."""
    import torch
    from ray.train import Checkpoint, get_checkpoint, get_context, report
    from ray.train.torch import prepare_model

    folder = Path(config["folder"])
    rank, world = get_context().get_world_rank(), get_context().get_world_size()
    torch.manual_seed(0)
    model = prepare_model(torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.GELU(), torch.nn.Linear(256, 256)))
    optimizer = torch.optim.AdamW(model.parameters())
    step = 0
    if (checkpoint := get_checkpoint()) is not None:
        with checkpoint.as_directory() as saved:
            state = torch.load(Path(saved) / "state.pt", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    attempt = [uuid.uuid4().hex]
    torch.distributed.broadcast_object_list(attempt, src=0)
    here = {"pid": os.getpid(), "node": os.environ["SHOAL_NODE_OF"].split("/")[1]}
    append(folder / "workers.jsonl", {"attempt": attempt[0], "rank": rank, "world": world, **here})
    while True:
        began = time.monotonic()
        loss = model(torch.randn(64, 256)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        time.sleep(max(0.0, config["step"] - (time.monotonic() - began)))
        step += 1
        if rank == 0:
            append(folder / "steps.jsonl", {"attempt": attempt[0], "step": step, "time": time.time()})
        if step % CHECKPOINT_EVERY == 0:
            with tempfile.TemporaryDirectory() as target:
                saved_now = None
                if rank == 0:
                    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                    torch.save(state, Path(target) / "state.pt")
                    saved_now = Checkpoint.from_directory(target)
                report({"step": step}, checkpoint=saved_now)


def drive(folder: Path, step: float, workers: tuple[int, int]) -> None:
    """The driver, inside the cluster: runs until it is killed."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    TorchTrainer(
        train,
        train_loop_config={"folder": str(folder), "step": step},
        scaling_config=ScalingConfig(
            num_workers=workers if workers[0] < workers[1] else workers[0],
            resources_per_worker={"CPU": 1, "slot": 1},
            placement_strategy="SPREAD",
        ),
        torch_config=TorchConfig(backend="gloo"),
        run_config=RunConfig(
            name="baseline",
            storage_path=str(folder / "storage"),
            failure_config=FailureConfig(max_failures=-1),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    ).fit()


def measure(
    cluster: str,
    numbers: Iterable[int],
    what: str = "node",
    step: float = 0.1,
    workers: tuple[int, int] = WORKERS,
    driver_file: Path = HERE,
    checkpoint_every: int = CHECKPOINT_EVERY,
) -> Iterator[dict[str, Any]]:
    """For each of `numbers` kill a worker (of that rank, modulo how many there are), or the node it is on. Yields
    `first_step` and `next_step` (seconds from the kill to the first step again, and to the first beyond where the run
    stood), `steps_lost` (steps done a second time), `step` (where it stood), `workers` (that go on).
    `driver_file`: whose `--drive` trains, with a checkpoint every so many steps."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        argv = [sys.executable, str(driver_file), "--drive", str(folder), "--step", str(step)]
        argv += ["--workers", ",".join(map(str, workers))]
        environ = {**os.environ, **connect.environment(cluster), "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
        if workers[0] < workers[1]:
            environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(START_TIMEOUT_S)
        with (folder / "driver.log").open("wb") as log:
            driver = subprocess.Popen(
                connect.command(cluster, argv), env=environ, stdout=log, stderr=log, start_new_session=True
            )
        try:
            for number in numbers:
                replaced = workers[0] == workers[1]
                yield kill_one(cluster, folder, number, what, checkpoint_every, replaced=replaced)
        finally:
            os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()


def kill_one(
    cluster: str, folder: Path, number: int, what: str, checkpoint_every: int, *, replaced: bool
) -> dict[str, Any]:
    """Wait for a dozen steps of all workers (a different phase of the checkpoint interval each time), kill, wait."""
    attempt = wait_for(folder, lambda steps: running(folder, steps, 12 + PHASE * number % checkpoint_every))
    crew = crew_of(folder, attempt)
    victim = crew[number % len(crew)]
    if what == "node":
        killed_at = local.kill_node(cluster, victim["node"]).time
    else:
        killed_at = time.time()
        os.kill(victim["pid"], signal.SIGKILL)
    if what == "node" and replaced:
        local.add_node(cluster)
    # a step that was nearly done may still end after the kill: it counts to where the run stood
    again = wait_for(folder, lambda steps: first(steps, lambda s: s["time"] > killed_at and s["attempt"] != attempt))
    stood = max(s["step"] for s in lines(folder / "steps.jsonl") if s["attempt"] == attempt)
    beyond = wait_for(folder, lambda steps: first(steps, lambda s: s["attempt"] != attempt and s["step"] > stood))
    found = {
        "first_step": round(again["time"] - killed_at, 3),
        "next_step": round(beyond["time"] - killed_at, 3),
        "steps_lost": stood - again["step"] + 1,
        "step": stood,
        "workers": len(crew_of(folder, beyond["attempt"])),
    }
    print(f"ray train: {what} killed, new ground after {found['next_step']:.1f} s, {found['steps_lost']} steps lost")
    return found


def crew_of(folder: Path, attempt: str) -> list[dict[str, Any]]:
    """The workers of an attempt that have started, by rank."""
    started = (worker for worker in lines(folder / "workers.jsonl") if worker["attempt"] == attempt)
    return sorted(started, key=lambda worker: int(worker["rank"]))


def running(folder: Path, steps: list[dict[str, Any]], wanted: int) -> str | None:
    """The present attempt, once all its workers have started and it has done `wanted` steps beyond the earlier ones."""
    attempt = steps[-1]["attempt"] if steps else ""
    before = max((line["step"] for line in steps if line["attempt"] != attempt), default=0)
    crew = crew_of(folder, attempt)
    whole = bool(crew) and len(crew) == crew[0]["world"]
    return attempt if whole and steps[-1]["step"] >= before + wanted else None


def wait_for(folder: Path, condition: Any, timeout_s: float = 240.0) -> Any:
    """What `condition(steps)` returns, once it is true. Raises SystemExit: it does not become true."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if found := condition(lines(folder / "steps.jsonl")):
            return found
        time.sleep(0.05)
    log = (folder / "driver.log").read_text(errors="replace")
    raise SystemExit(f"Ray Train did not go on within {timeout_s:.0f} s; its driver's log ends:\n{log[-3000:]}")


def first(steps: list[dict[str, Any]], condition: Any) -> dict[str, Any] | None:
    return next((line for line in steps if condition(line)), None)


def append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file that others are writing to."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "cluster", nargs="?", help="a cluster of at least 4 nodes of 2 slots, as made by shoal cluster up"
    )
    options.add_argument("--kills", type=int, default=5)
    options.add_argument("--what", choices=["node", "worker"], default="node")
    options.add_argument("--step", type=float, default=0.1, help="seconds a step takes")
    options.add_argument("--workers", default="6", help="how many, or the fewest and the most of elastic training")
    options.add_argument("--drive", type=Path, help=argparse.SUPPRESS)
    asked = options.parse_args()
    numbers = [int(number) for number in asked.workers.split(",")]
    workers = numbers[0], numbers[-1]
    if asked.drive:
        drive(asked.drive, asked.step, workers)
        return
    nodes = [node for node in load(asked.cluster or local.DEFAULT_NAME).nodes if node.name != HEAD]
    kills = list(measure(asked.cluster or local.DEFAULT_NAME, range(asked.kills), asked.what, asked.step, workers))
    medians = {key: statistics.median(kill[key] for kill in kills) for key in ("next_step", "steps_lost")}
    print(json.dumps({"what": asked.what, "nodes": len(nodes), "median": medians, "kills": kills}, indent=1))


if __name__ == "__main__":
    main()
