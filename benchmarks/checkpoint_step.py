"""What a checkpoint costs the step that follows it, beside torch's `async_save`.

    python benchmarks/checkpoint_step.py [--preset laptop-10m] [--tokens 512] [--repeats 7] [--folder FOLDER]

One worker with the whole state of a preset and all processors, so that whatever is done beside the step takes from it.
Each way begins a save (or a copy to memory) and takes a step at once; the save's end is waited for afterwards, and not
counted. `lost`: seconds over those of a step alone. `at once`: ours with the copy made before the step goes on;
`beside`: with threads that copy until the optimizer is to change the state, as runs do. The ways take turns; medians.
"""

from __future__ import annotations

import argparse
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

import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from benchmarks.checkpoint_tiers import training
from shoal.checkpoint import Saver
from shoal.worker.snapshot import Snapshot
from shoal_core.ckpt.retention import Keep
from shoal_core.lane import HostLane, Lane


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="laptop-10m")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to be measured; a temporary one")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", 1), rank=0, world_size=1)
        found = measure(args.preset, args.tokens, args.repeats, Path(folder))
        dist.destroy_process_group()
    print(json.dumps(found, indent=2))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


def measure(preset: str, tokens: int, repeats: int, folder: Path) -> dict[str, Any]:
    failures: list[str] = []
    tell: Any = (lambda *_: None, lambda _, reason, __: failures.append(reason))
    here, beside, copying = Lane(), HostLane(), HostLane()
    step, state = training(preset, tokens, lambda: (beside.precede(), copying.precede()))
    savers = {
        name: Saver(folder / name, None, lane, Keep(1), {}, *tell)
        for name, lane in (("at once", here), ("beside", beside))
    }
    snapshot, waiting = Snapshot(copying), list[Any]()

    def ours(name: str, number: int) -> Callable[[], None]:
        savers[name].save(number, 0, state)
        return savers[name].join

    def copied(_: int) -> Callable[[], None]:
        snapshot.take(lambda: list(state.values()), 0)
        return lambda: None

    def async_save(number: int) -> Callable[[], None]:
        waiting.append(dcp.async_save(dict(state), checkpoint_id=folder / f"async{number}"))

        def end() -> None:
            waiting.pop().result()
            shutil.rmtree(folder / f"async{number}")

        return end

    ways: dict[str, Callable[[int], Callable[[], None]]] = {
        "step": lambda _: lambda: None,
        "at once": lambda number: ours("at once", number),
        "beside": lambda number: ours("beside", number),
        "copy to memory": copied,
        "async_save": async_save,
    }
    stalls: dict[str, list[float]] = {way: [] for way in ways}
    steps: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(repeats + 1):
        for way, begin in ways.items():
            start = time.perf_counter()
            end = begin(number)
            stalls[way].append(time.perf_counter() - start)
            step()
            steps[way].append(time.perf_counter() - start)
            end()
    assert not failures, failures
    alone = statistics.median(steps["step"][1:])
    lost = {way: statistics.median(seconds[1:]) - alone for way, seconds in steps.items() if way != "step"}
    return {
        "load": os.getloadavg()[0],
        "step": alone,
        "stall": {way: statistics.median(seconds[1:]) for way, seconds in stalls.items() if way != "step"},
        "lost": lost,
        "copy_to_memory_of_a_step": lost["copy to memory"] / alone,
        "lost_of_async_save": {way: lost[way] / lost["async_save"] for way in ("at once", "beside")},
    }


if __name__ == "__main__":
    main()
