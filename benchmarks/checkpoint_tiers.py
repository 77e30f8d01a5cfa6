"""What the tiers of a state cost and give: memory, another process's memory, a node's disk, the storage.

    python benchmarks/checkpoint_tiers.py [--preset laptop-10m] [--tokens 4096] [--repeats 5] [--folder FOLDER]

One worker with the whole state of a preset (parameters and both moments in float32). `step`: forward, backward and
AdamW on so many tokens; `copy to memory`: for how long training stands still for a snapshot; `recall`: the state back
from a keeper in another process, over TCP; `restore`: from a checkpoint whose files are not in the page cache, and
`restore (cached)`: in it. `recall` reads nothing of the storage. Medians; the ways take turns. `processor_seconds` are
of this process alone, as where a keeper has a machine of its own. Of a save by way of a disk the bytes are counted that
either place got.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from shoal.checkpoint import Disk, Group, Saver, load
from shoal.protocol.orders import Keeper
from shoal.worker.copies import CopyServer
from shoal.worker.courier import recall
from shoal.worker.peers import push
from shoal.worker.shelf import Held
from shoal.worker.snapshot import Snapshot
from shoal_core.ckpt.folder import Folder, name_of
from shoal_core.ckpt.retention import Keep
from shoal_core.ckpt.whole import Checkpoint
from shoal_core.lane import Lane
from shoal_core.store import open_store
from shoal_workloads.model.config import ModelConfig
from shoal_workloads.model.deepseek import DeepSeekV3

SECRET, PATIENCE, LENGTH = "benchmark", 60.0, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="laptop-10m")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to be measured; a temporary one")
    args = parser.parse_args()
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    keeper = multiprocessing.get_context("spawn").Process(target=keep, args=(theirs,), daemon=True)
    keeper.start()
    try:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            print(json.dumps(measure(args, Path(folder), Keeper(ours.recv())), indent=2))
    finally:
        keeper.kill()


def keep(line: Connection) -> None:
    """Hold copies until this process is killed."""
    line.send(CopyServer("127.0.0.1", lambda *_: None, PATIENCE, lambda: SECRET).address)
    line.recv()


def measure(args: argparse.Namespace, folder: Path, keeper: Keeper) -> dict[str, Any]:
    step, state = training(args.preset, args.tokens)
    tensors = list(state.values())
    held, snapshot = Held(tensors, {}), Snapshot(Lane())
    failures: list[str] = []
    tell: Any = (lambda *_: None, lambda _, reason, __: failures.append(reason))
    disk = Disk(open_store(folder / "disk"), Group(None))
    saver = Saver(folder / "store", None, Lane(), Keep(1), {}, *tell, None, disk)
    place = Folder.at(folder / "store" / name_of(1))

    def save() -> None:
        saver.save(1, 0, state)
        while saver.busy():
            time.sleep(0.01)

    save()
    assert not failures, failures
    written = {where: size_of(folder / where) for where in ("store", "disk")}
    push(held, 0, 1, keeper, SECRET, PATIENCE)
    ways: dict[str, Callable[[], object]] = {
        "step": step,
        "copy to memory": lambda: snapshot.take(lambda: tensors, 1),
        "copy to another process": lambda: push(held, 0, 1, keeper, SECRET, PATIENCE),
        "recall": lambda: recall(tensors, 0, 1, keeper, SECRET, PATIENCE),
        "restore": lambda: load(place, state, None),
        "restore (cached)": lambda: load(place, state, None),
    }
    times: dict[str, list[float]] = {}
    worked: dict[str, list[float]] = {}
    for _ in range(args.repeats + 1):
        for way, work in ways.items():
            if way == "restore":
                forget(folder / "store")
            start, before = time.perf_counter(), time.process_time()
            work()
            times.setdefault(way, []).append(time.perf_counter() - start)
            worked.setdefault(way, []).append(time.process_time() - before)
    found, busy = ({way: statistics.median(s[1:]) for way, s in one.items()} for one in (times, worked))
    size = sum(block.bytes for _, block in Checkpoint.open(place).index.blocks())
    return {
        "state_bytes": size,
        "seconds": found,
        "processor_seconds": busy,
        "copy_of_a_step": found["copy to memory"] / found["step"],
        "recall_sooner_than_restore": found["restore"] / found["recall"],
        "recall_sooner_than_cached_restore": found["restore (cached)"] / found["recall"],
        "recall_less_work_than_restore": busy["restore"] / busy["recall"],
        "written_of_state": {where: bytes_ / size for where, bytes_ in written.items()},
    }


def training(
    preset: str, tokens: int, before: Callable[[], object] = lambda: None
) -> tuple[Callable[[], object], dict[str, torch.Tensor]]:
    """A step, and the state that it changes; `before` it does."""
    torch.manual_seed(0)
    config = ModelConfig.from_preset(preset)
    model = DeepSeekV3(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0) if parameter.dim() == 1 else parameter.normal_(0.0, config.init_std)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batch = torch.randint(config.vocab_size, (max(1, tokens // LENGTH), LENGTH + 1 + config.mtp_depth))

    def step() -> None:
        model(batch).lm.sum().div(batch.numel()).backward()
        before()
        optimizer.step()
        optimizer.zero_grad()

    step()
    state = {}
    for name, parameter in model.named_parameters():
        moments = optimizer.state[parameter]
        state |= {f"model.{name}": parameter.detach()}
        if moments:  # of what takes part in this loss
            state |= {f"{kind}.{name}": moments[kind] for kind in ("exp_avg", "exp_avg_sq")}
    return step, state


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def forget(folder: Path) -> None:
    """Have the system drop what it keeps of the files."""
    for path in folder.rglob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
