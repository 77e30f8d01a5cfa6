"""What Shoal adds to a step when nothing fails: the same training with it, and in a bare loop.

    python benchmarks/overhead.py [--what sleep,pretrain] [--rounds 4] [--steps 40] [--json FILE]

Both are the same replicas in the same number of processes, one thread each, with gloo on this machine: in cells that
share a world, matching workers' sums added over the cells, the figures of the step added over everybody. The bare loop
does only that, and waits in each collective; the sums are added in place. With Shoal (`shoal.testing`:
worker, controller and record, without Ray) a copy is added so that the step can be done again, waiting is polling, the
figures travel in a vote, and each commit is told; `reduce: exact` is measured too. They take turns, `--rounds` times.
The cost is the ratio of the medians of all steps, and beside it that of the lower quartiles, which other work on the
machine disturbs less. `cpu`: seconds of a processor that a worker takes for a step, all its threads together.

- sleep: 3 cells x 2 workers, a million parameters, 0.2 s a step of which most is slept;
- pretrain: 2 cells x 1 worker, a small DeepSeek-V3 on a corpus of three modules of the standard library.

Then the controller is stopped (SIGSTOP) while the sleepers train: a step that called it would wait until it goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from shoal import batching
from shoal.testing.processes import ADDRESS, FORK
from shoal_core.loading import make_workload

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.support.corpora import write_corpus
from tests.support.lab import lab

WARM = 10  # steps that do not count
VOCABULARY = 1024


@dataclass(frozen=True)
class Setting:
    """What is trained, on how many cells and workers of a cell."""

    cells: int
    workers: int
    workload: Mapping[str, Any]


@dataclass(frozen=True)
class Figures:
    """Of some steps: the seconds of each, and what a step took of a processor; and every step's loss, if it is told."""

    seconds: list[float]
    cpu: float
    losses: Sequence[float] = ()


def settings(folder: Path) -> dict[str, Setting]:
    sleep = {"path": "shoal_workloads.synthetic:Synthetic", "seconds": 0.08, "global_batch": 12, "parameters": 10**6}
    corpus = str(write_corpus(folder / "corpus", VOCABULARY))
    pretrain = {
        "path": "shoal_workloads.pretrain:Pretrain",
        "model": {"preset": "demo", "vocab_size": VOCABULARY},
        "data": {"corpus": corpus, "heldout": corpus, "seq_len": 64},
        "batch": {"global_batch": 8, "micro_batch": 2},
        "schedule": {"budget": 10**6, "lr": 1e-3, "warmup_steps": 0},
    }
    return {"sleep": Setting(3, 2, sleep), "pretrain": Setting(2, 1, pretrain)}


def store_at(port: int, *, first: bool) -> Any:
    """Where the processes of a bare loop meet, one thread each; the `first` of them holds it."""
    import torch
    import torch.distributed as dist

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    return dist.TCPStore(ADDRESS, port, is_master=first, wait_for_workers=False)


class Clock:
    """The seconds of each step, and those of a processor after the first WARM + 1."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._since, self._busy = time.monotonic(), 0.0

    def step_done(self) -> None:
        now = time.monotonic()
        self.seconds.append(now - self._since)
        self._since = now
        if len(self.seconds) == WARM + 1:
            self._busy = time.process_time()

    def cpu(self) -> float:
        """Of a processor, for one step."""
        return (time.process_time() - self._busy) / (len(self.seconds) - 1 - WARM)


def bare_worker(setting: Setting, steps: int, cell: int, rank: int, port: int, answer: Any) -> None:
    """One process of the bare loop; sends its `Figures`."""
    import torch
    import torch.distributed as dist

    place, everybody = cell * setting.workers + rank, setting.cells * setting.workers
    store = store_at(port, first=place == 0)
    cell_store = dist.PrefixStore(f"cell/{cell}", store)
    dist.init_process_group("gloo", store=cell_store, rank=rank, world_size=setting.workers)
    minute = timedelta(seconds=60)
    across: Any = dist.ProcessGroupGloo(dist.PrefixStore(f"across/{rank}", store), cell, setting.cells, minute)
    everyone: Any = dist.ProcessGroupGloo(dist.PrefixStore("all", store), place, everybody, minute)
    workload = make_workload(setting.workload)
    replica = workload.build(0)
    clock = Clock()
    for step in range(steps):
        first, last = workload.samples(step)
        micro_batches = batching.count(first, last, setting.workers, workload.micro_batch)
        replica.begin(step)
        mine = batching.share(micro_batches, range(setting.cells))[cell]
        replica.accumulate([batching.cell_ids(first, m, setting.workers, workload.micro_batch) for m in mine])
        total = replica.sums()
        across.allreduce([total]).wait()
        figures = torch.tensor([*replica.stats(), replica.norm_sq(total) / setting.cells], dtype=torch.float64)
        everyone.allreduce([figures]).wait()
        *stats, norm_sq = figures.tolist()
        replica.commit(total, stats, norm_sq)
        clock.step_done()
    answer.send(Figures(clock.seconds[WARM:], clock.cpu()))


def bare(worker: Callable[..., None], setting: Setting, steps: int) -> Figures:
    """The bare loop, in a process of `worker(setting, steps, cell, rank, port, answer)` for each."""
    with socket.create_server((ADDRESS, 0)) as probe:
        port = probe.getsockname()[1]
    here, there = FORK.Pipe()
    crew = [(cell, rank) for cell in range(setting.cells) for rank in range(setting.workers)]
    processes = [FORK.Process(target=worker, args=(setting, steps, *one, port, there), daemon=True) for one in crew]
    for process in processes:
        process.start()
    there.close()  # so that nobody waits for who died
    answers = [here.recv() for _ in processes]
    for process in processes:
        process.join()
    return replace(answers[0], cpu=median(one.cpu for one in answers))


def with_shoal(setting: Setting, steps: int, reduce: str) -> Figures:
    """The same under Shoal, by the workers' clocks. `reduce`: `fast` or `exact`."""
    nodes = {f"n{cell}": setting.workers for cell in range(setting.cells)}
    shape = {"cells": setting.cells, "workers_per_cell": setting.workers}
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name,
        lab(Path(name), nodes, steps=steps, reduce=reduce, workload=dict(setting.workload), **shape) as one,
    ):
        seen = []
        while not (one.path / "run.json").exists():
            time.sleep(0.5)  # looking on costs time too
            if (one.path / "steps.jsonl").exists() and WARM < (done := len(one.steps())) < steps:
                seen.append((done, {worker: cpu_seconds(one.processes[worker].pid) for worker in one.processes}))
        lines = one.steps()
        assert len(lines) == steps, one.story()
        (first, begin), (last, end) = seen[0], seen[-1]
        busy = median(end[worker] - begin[worker] for worker in begin) / (last - first)
        return Figures([line["worker_seconds"] for line in lines[WARM:]], busy, [line["loss"] for line in lines])


def cpu_seconds(pid: int) -> float:
    """Of a processor, that a living process has taken so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def compare(rounds: Mapping[str, Sequence[Figures]]) -> dict[str, float]:
    """Medians and lower quartiles of the steps of each, and the cost by each."""
    seconds = {who: [second for one in those for second in one.seconds] for who, those in rounds.items()}
    found: dict[str, float] = {"steps": len(seconds["bare"])}
    found |= {f"{who}_cpu": median(one.cpu for one in those) for who, those in rounds.items()}
    for name, place in (("quartile", 0), ("median", 1)):
        found |= {f"{who}_{name}": quantiles(those)[place] for who, those in seconds.items()}
        for who in ("fast", "exact"):
            found[f"{who}_cost_by_{name}"] = found[f"{who}_{name}"] / found[f"bare_{name}"] - 1
    return found


def write(path: Path | None, found: Mapping[str, Any]) -> None:
    if path is not None:
        part = path.with_suffix(".part")
        part.write_text(json.dumps(found, indent=1) + "\n")
        os.replace(part, path)


def without_controller(setting: Setting, seconds: float) -> dict[str, Any]:
    """Stop the controller for so long, and see what the workers do meanwhile."""
    nodes = {f"n{cell}": setting.workers for cell in range(setting.cells)}
    shape = {"cells": setting.cells, "workers_per_cell": setting.workers}
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name,
        lab(Path(name), nodes, steps=10**6, workload=dict(setting.workload), **shape) as one,
    ):
        one.full(30)
        before = len(one.steps())
        os.kill(one.controller.pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(one.controller.pid, signal.SIGCONT)
        time.sleep(2.0)
        lines = one.steps()
        usual = median(line["worker_seconds"] for line in lines[WARM:before])
        meanwhile = [line["worker_seconds"] for line in lines[before : before + int(seconds / usual)]]
        return {
            "stopped": seconds,
            "steps_meanwhile": len(meanwhile),
            "seconds_meanwhile": sum(meanwhile),
            "longest": max(meanwhile),
            "median": usual,
            "generations": len(one.events("generation")),
        }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--what", default="sleep,pretrain")
    options.add_argument("--rounds", type=int, default=4)
    options.add_argument("--steps", type=int, default=40)
    options.add_argument("--json", type=Path)
    asked = options.parse_args()
    found: dict[str, Any] = {"date": date.today().isoformat(), "load": [os.getloadavg()[0]]}
    with tempfile.TemporaryDirectory() as folder:
        choices = settings(Path(folder))
        for what in asked.what.split(","):
            rounds: dict[str, list[Figures]] = {"bare": [], "fast": [], "exact": []}
            for _ in range(asked.rounds):
                rounds["bare"].append(bare(bare_worker, choices[what], asked.steps))
                for reduce in ("fast", "exact"):
                    rounds[reduce].append(with_shoal(choices[what], asked.steps, reduce))
                found[what] = compare(rounds)
                print(f"{what}: {json.dumps(found[what])}", flush=True)
                write(asked.json, found)
        found["without_controller"] = without_controller(choices["sleep"], 5.0)
    found["load"].append(os.getloadavg()[0])
    print(json.dumps(found, indent=1))
    write(asked.json, found)


if __name__ == "__main__":
    main()
