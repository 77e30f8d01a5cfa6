"""Seconds from a fault to the next committed step and to full strength, Shoal beside Ray Train, on one cluster.

    python benchmarks/recovery.py --json FILE [--cases worker,node,freeze,drain,controller,ray-worker,ray-node]
                                  [--repeats 10] [--kills 5] [--step 0.1] [--keep]

A cluster of this machine with 4 nodes of 2 slots. Shoal trains 3 cells x 2 workers, each cell on a node of its own,
with a warm spare node; Ray Train 6 workers with DDP, its best settings, a checkpoint every 5 steps and two slots free.
Both train with gloo on CPU in steps of `--step` seconds. Before each fault the run is at full strength again with
warm spares, and a lost node is replaced by a fresh one.

- next commit: from the fault to the first step that is committed by a membership formed after it (Shoal), or to the
  first step beyond where it stood (Ray Train);
- full strength: to the first step with all cells;
- pause (drain, controller): the longest step from the fault until it is over, beside the median of 100 steps before.

FILE is written after each fault: the same command goes on where it was stopped, and `--keep` leaves the cluster up for
the next one. `--table` prints FILE as rows of docs/recovery.md, and measures nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from statistics import median
from typing import Any

import ray_train_baseline
from recovery_runs import CASES, Run
from shoal.cluster import local
from shoal.cluster.processes import pids_of
from shoal.cluster.state import load
from shoal_core.errors import UserError

CLUSTER = "bench-recovery"
NODES, SLOTS = 4, 2
RAY = {"ray-worker": "worker", "ray-node": "node"}


def ensure_cluster() -> None:
    """A cluster with all its nodes: the one that was kept, or a fresh one."""
    try:
        state = load(CLUSTER)
        living = sum(bool(pids_of(state, node)) for node in state.nodes if not node.is_head)
        if pids_of(state, state.head) and living >= NODES:
            return
        local.down(CLUSTER)
    except UserError:
        pass  # there is none
    local.up(CLUSTER, nodes=NODES, slots=SLOTS, say=print)


def faults(
    case: str, done: int, wanted: int, step: float, about: dict[str, Any]
) -> Generator[dict[str, Any], None, None]:
    """The figures of one fault after another; `about` receives those of each run as it ends."""
    if case in RAY:
        yield from ray_train_baseline.measure(CLUSTER, range(done, wanted), RAY[case], step)
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        run = Run(CLUSTER, Path(folder), step)
        try:
            for number in range(done, wanted):
                run.wait_full(10)
                yield CASES[case](run, number)
        finally:
            try:
                about.setdefault("runs", []).append(run.close())
            finally:
                run.end()


def medians(each: list[dict[str, Any]]) -> dict[str, float]:
    """Of every figure, and the worst."""
    names = [name for name, value in each[0].items() if isinstance(value, int | float)]
    return {
        f"{name}_{how}": round(of(fault[name] for fault in each), 3)
        for name in names
        for how, of in (("median", median), ("max", max))
    }


def summary(cases: dict[str, Any]) -> dict[str, Any]:
    """Medians by case, and how many times sooner Shoal is back."""
    found: dict[str, Any] = {case: medians(one["each"]) for case, one in cases.items() if one["each"]}
    for theirs, what in RAY.items():
        if theirs in found and what in found:
            found[f"ratio-{what}"] = round(found[theirs]["next_step_median"] / found[what]["next_commit_median"], 1)
    return found


def rows(cases: dict[str, Any]) -> Generator[str, None, None]:
    """Of every case: medians, the worst and the loads; then its phases, if it has any."""

    def spread(one: dict[str, float], name: str) -> str:
        return f"{one[f'{name}_median']:.2f}, worst {one[f'{name}_max']:.2f}"

    for case, about in cases.items():
        if not (each := about["each"]):
            continue
        loads = [fault["load"] for fault in each]
        names = [name for name, value in each[0].items() if type(value) in (int, float) and name != "load"]
        told = " | ".join(f"{name} {spread(medians(each), name)}" for name in names)
        lost = sum(run["steps_lost"] for run in about.get("runs", []))
        yield f"| {case} ({len(each)}) | {told} | {lost} | load {min(loads):.0f} to {max(loads):.0f} |"
        phases = [fault["phases"] for fault in each if fault.get("phases")]
        if phases:
            spent = (f"{name} {median(one[name] or 0.0 for one in phases):.2f}" for name in phases[0])
            yield f"| its phases, medians | {' | '.join(spent)} |"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", type=Path, required=True)
    options.add_argument("--cases", default=",".join([*CASES, *RAY]))
    options.add_argument("--repeats", type=int, default=10, help="faults of each kind, of Shoal")
    options.add_argument("--kills", type=int, default=5, help="of Ray Train, each kind")
    options.add_argument("--step", type=float, default=0.1, help="seconds of a step at full strength")
    options.add_argument("--keep", action="store_true", help="leave the cluster up")
    options.add_argument("--table", action="store_true", help="print what FILE has as rows of markdown")
    asked = options.parse_args()
    if asked.table:
        print("\n".join(rows(json.loads(asked.json.read_text())["cases"])))
        return
    wanted = asked.cases.split(",")
    if unknown := set(wanted) - {*CASES, *RAY}:
        options.error(f"--cases: {', '.join(sorted(unknown))} unknown: choose from {', '.join([*CASES, *RAY])}")
    result: dict[str, Any] = json.loads(asked.json.read_text()) if asked.json.exists() else {"cases": {}}
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # in order: the run is ended too
    ensure_cluster()
    try:
        for case in wanted:
            about = result["cases"].setdefault(case, {"each": []})
            repeats = asked.kills if case in RAY else asked.repeats
            if len(about["each"]) >= repeats:
                continue
            with contextlib.closing(faults(case, len(about["each"]), repeats, asked.step, about)) as each:
                for figures in each:
                    now = {"time": time.strftime("%Y-%m-%d %H:%M:%S"), "load": round(os.getloadavg()[0], 1)}
                    about["each"].append(figures | now)
                    print(f"{case}: {json.dumps(figures | now)}", flush=True)
                    result["summary"] = summary(result["cases"])
                    write(asked.json, result)
            write(asked.json, result)
    finally:
        write(asked.json, result)
        if not asked.keep:
            local.down(CLUSTER)
    print(json.dumps(result.get("summary"), indent=1))


def write(path: Path, result: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(part, path)


if __name__ == "__main__":
    main()
