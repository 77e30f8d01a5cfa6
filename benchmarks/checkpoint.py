"""A checkpoint's cost, beside torch's and beside plain reads and writes of the same bytes.

    python benchmarks/checkpoint.py [--preset laptop-10m] [--cells 1] [--repeats 5] [--folder FOLDER] [--json FILE]

Two ranks of a cell hold the state of a preset (parameters and both moments in float32), each tensor cut along its
first dimension; of two cells each holds all of it, and `ours`, `plain` and torch's writers write each byte once. All
ways take turns in one run, so that a noisy machine disturbs them alike; figures are medians of the slowest rank.
`stall`: seconds for which training stands still (what is copied beside the next step, `benchmarks/checkpoint_step.py`
measures); `save`: until all is on the disk (fsync, but for `torch`); `load`: until all is in memory again, from the
page cache for every way alike; `cold`: the same from the disk, after the kernel was told to forget the files. `plain`
writes and reads each rank's bytes as they are; `hash` is SHA-256 of them, on every rank at once: with as many ranks as
cores no reader that verifies is faster than `plain` and `hash` one after the other from the page cache, or than the
slower of the two from the disk (`bound`). Of a restore on other numbers of ranks the bytes that are read are counted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from shoal.checkpoint import Saver, load
from shoal.peers import Cells
from shoal.testing import world
from shoal_core.ckpt.boxes import Box
from shoal_core.ckpt.folder import Folder, name_of
from shoal_core.ckpt.plan import Want, plan
from shoal_core.ckpt.retention import Keep
from shoal_core.ckpt.whole import Checkpoint
from shoal_core.lane import HostLane
from shoal_workloads.model.config import ModelConfig
from shoal_workloads.model.deepseek import DeepSeekV3

RANKS = 2
CHUNK = 1 << 24
State = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="laptop-10m")
    parser.add_argument("--cells", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to be measured; a temporary one")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder, world(RANKS * args.cells) as ranks:
        answers = ranks.run(measure, args.preset, args.cells, args.repeats, folder)
    ways = answers[0][0]
    slower = {way: list(map(max, zip(*(one[0][way] for one in answers), strict=True))) for way in ways}
    times = {way: statistics.median(seconds) for way, seconds in slower.items()}
    found = {"state_bytes": sum(one[1] for one in answers[:RANKS]), "load": os.getloadavg()[0], "seconds": times}
    found |= {**answers[0][2], **ratios(times)}
    print(json.dumps(found, indent=2))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


def ratios(times: dict[str, float]) -> dict[str, float]:
    """What is asked of them: less is better of the first two, more of the others."""
    return {
        "stall_of_async_save": times["stall ours"] / times["stall async_save"],
        "save_seconds_of_dcp_save": times["save ours"] / times["save dcp"],
        "save_speed_of_plain_writes": times["save plain"] / times["save ours"],
        "load_speed_of_plain_reads": times["load plain"] / times["load ours"],
        "load_speed_bound": times["load plain"] / (times["load plain"] + times["hash"]),
        "cold_speed_of_plain_reads": times["cold plain"] / times["cold ours"],
        "cold_speed_bound": times["cold plain"] / max(times["cold plain"], times["hash"]),
    }


def measure(preset: str, cells: int, repeats: int, folder: str) -> tuple[dict[str, list[float]], int, dict[str, Any]]:
    """On each rank: seconds of every way, the rank's bytes, and what was counted."""
    warnings.simplefilter("ignore")
    root, rank = Path(folder), dist.get_rank()
    everybody, (own, asking) = dist.new_group(backend="gloo"), groups(cells, 2)
    state = build(preset, cells)
    mine = b"".join(tensor.to_local().numpy().tobytes() for tensor in state.values())
    share = mine[: len(mine) // cells]
    write(root / f"whole{rank}", mine)
    formed = tuple((cell, 0) for cell in range(cells))
    failures: list[str] = []
    lane = HostLane()
    saver = Saver(
        root / "ours",
        own,
        lane,
        Keep(repeats + 1),
        {},
        lambda *_: None,
        lambda _, reason, __: failures.append(reason),
        asking,
    )
    saver.stand(formed)

    def save(steps: int) -> None:
        together = Cells(formed, rank // RANKS, f"benchmark/{steps}") if cells > 1 else None
        saver.save(steps, 0, state, cells=together)

    times: dict[str, list[float]] = {}
    waiting: list[Any] = []
    for steps in range(repeats + 1):
        ways: dict[str, Callable[[], object]] = {
            "stall ours": lambda steps=steps: save(steps),
            "save ours": lambda: (lane.precede(), saver.join()),
            "stall async_save": lambda: waiting.append(
                dcp.async_save(state, checkpoint_id=root / "async", process_group=everybody)
            ),
            "save async_save": lambda: waiting.pop().result(),
            "save dcp": lambda: dcp.save(state, checkpoint_id=root / "dcp", process_group=everybody),
            "save torch": lambda: torch.save(local(state), root / f"torch{rank}"),
            "save plain": lambda: write(root / f"plain{rank}", share),
            "load ours": lambda steps=steps: load(Folder.at(root / "ours" / name_of(steps)), state, own),
            "load dcp": lambda: dcp.load(state, checkpoint_id=root / "dcp", process_group=everybody),
            "load torch": lambda: torch.load(root / f"torch{rank}"),
            "load plain": lambda: read(root / f"whole{rank}", len(mine)),
            "cold ours": lambda steps=steps: load(Folder.at(root / "ours" / name_of(steps)), state, own),
            "cold plain": lambda: read(root / f"whole{rank}", len(mine)),
            "hash": lambda: hashlib.sha256(mine).digest(),
        }
        for way, work in ways.items():
            if way.startswith("cold"):
                forget(root)
            dist.barrier()
            start = time.perf_counter()
            work()
            times.setdefault(way, []).append(time.perf_counter() - start)
        dist.barrier()
        if rank == 0:
            for name in ("async", "dcp"):
                shutil.rmtree(root / name)
            if steps:
                shutil.rmtree(root / "ours" / name_of(steps - 1))
    assert not failures, failures
    for both in ("ours", "async_save"):
        times[f"save {both}"] = [a + b for a, b in zip(times[f"stall {both}"], times[f"save {both}"], strict=True)]
    warm = {way: seconds[1:] for way, seconds in times.items()}
    return warm, len(mine), counted(Checkpoint.open(Folder.at(root / "ours" / name_of(repeats))))


def groups(cells: int, count: int) -> list[Any]:
    """So many groups of this rank's cell."""
    crews = [list(range(cell * RANKS, (cell + 1) * RANKS)) for cell in range(cells)]
    made = [[dist.new_group(crew, backend="gloo") for crew in crews] for _ in range(count)]
    return [each[dist.get_rank() // RANKS] for each in made]


def build(preset: str, cells: int = 1) -> State:
    """Parameters and moments of a preset, of random values, a shard of each; the same in every cell."""
    mesh = init_device_mesh("cpu", (cells, RANKS), mesh_dim_names=("cell", "rank"))["rank"]
    rank = mesh.get_local_rank()
    torch.manual_seed(rank)
    with torch.device("meta"):
        model = DeepSeekV3(ModelConfig.from_preset(preset))
    state: State = {}
    for kind in ("model", "adam_m", "adam_v"):
        for name, parameter in model.named_parameters():
            shape = tuple(parameter.shape)
            part = torch.empty(shape, device="meta").chunk(RANKS)
            rows = part[rank].shape if rank < len(part) else (0, *shape[1:])
            stride = torch.empty(shape, device="meta").stride()
            state[f"{kind}.{name}"] = DTensor.from_local(
                torch.randn(rows), mesh, [Shard(0)], shape=shape, stride=stride
            )
    return state


def local(state: State) -> dict[str, torch.Tensor]:
    return {name: tensor.to_local() for name, tensor in state.items()}


def forget(root: Path) -> None:
    """Have the kernel drop what it holds of files."""
    for path in root.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def write(path: Path, content: bytes) -> None:
    with path.open("wb", buffering=0) as file:
        for start in range(0, len(content), CHUNK):
            file.write(memoryview(content)[start : start + CHUNK])
        os.fsync(file.fileno())


def read(path: Path, size: int) -> None:
    """Into memory that is there already, as a restored state's is."""
    buffer = memoryview(kept.setdefault(size, bytearray(size)))
    with path.open("rb", buffering=0) as file:
        done = 0
        while done < size:
            done += file.readinto(buffer[done : done + CHUNK])


kept: dict[int, bytearray] = {}


def counted(checkpoint: Checkpoint) -> dict[str, Any]:
    """Bytes written of the state's, and read of its on other meshes."""
    state = sum(block.bytes for _, block in checkpoint.index.blocks())
    found: dict[str, Any] = {"written_of_state": checkpoint.bytes / state}
    files = [size for _, size in sorted(checkpoint.marker["files"].items())]
    found["largest_file_of_mean"] = max(files) * len(files) / sum(files)
    for ranks in (1, 3, 4):
        size = 0
        for rank in range(ranks):
            wanted = {}
            for name, tensor in checkpoint.index.tensors.items():
                each = -(-tensor.shape[0] // ranks)
                first, end = (min(at * each, tensor.shape[0]) for at in (rank, rank + 1))
                box = Box((first, *(0,) * (len(tensor.shape) - 1)), (end - first, *tensor.shape[1:]))
                wanted[name] = Want(tensor.dtype, tensor.shape, (box,))
            size += sum(one.bytes for one in plan(checkpoint.index, wanted, ""))
        found[f"read_of_state_on_{ranks}"] = size / state
    return found


if __name__ == "__main__":
    main()
