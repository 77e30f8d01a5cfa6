"""The share of step attempts that commit while something is killed every so many seconds.

    python benchmarks/commit_efficiency.py [--every 15] [--minutes 20] [--seed 1] [--step 0.2] [--json FILE]

3 cells x 2 workers and a warm spare node, real processes and real gloo without Ray (`shoal.testing`).
Every `--every` seconds something is killed, in turn a worker and a whole node (all it holds; a fresh node takes its
place). The quadratic of `shoal_workloads.synthetic` sleeps through its steps, so that two cores carry it.

An **attempt** is a step that a membership (generation) began: it ends in a commit, or is abandoned when the generation
is left. So attempts = commits + generations that were left, and the figure is commits / attempts. Against Shoal it
counts the generations that are left for a healed cell to join, although the micro-batches they had finished are kept.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

from shoal.chaos.plan import Fault
from shoal.chaos.strike import unleash
from shoal.record import read
from shoal.record.audit import committed_ids_audit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.support.lab import lab
from tests.support.target import LabTarget

CELLS = 3
NODES = {f"n{number}": 2 for number in range(CELLS + 1)}


def kills(every: float, seed: int) -> Iterator[Fault]:
    """A worker and a node in turn, `every` seconds apart; whom it hits is the seed's."""
    dice = random.Random(seed)
    number = 0
    while True:
        number += 1
        yield Fault(every * number, "kill-worker" if number % 2 else "kill-node", dice.random())


def efficiency(path: Path) -> dict[str, Any]:
    """Attempts and commits of a run from its first death on, from its record."""
    steps, events = read.steps(path), read.events(path)
    deaths = [event for event in events if event["kind"] == "death"]
    begin = deaths[0]["time"] if deaths else 0.0
    commits = [step for step in steps if step["time"] > begin]
    left = [event for event in events if event["kind"] == "drain" and event["time"] >= begin]
    audit = committed_ids_audit(path)
    recoveries = [event for event in events if event["kind"] == "recovery"]
    seconds = commits[-1]["time"] - begin
    full = [event["full_strength"] for event in recoveries if event["full_strength"] is not None]
    return {
        "seconds": round(seconds, 1),
        "attempts": len(commits) + len(left),
        "commits": len(commits),
        "abandoned": len(left),
        "efficiency": len(commits) / (len(commits) + len(left)),
        "deaths": len(deaths),
        "recoveries": len(recoveries),
        "rungs": {rung: sum(e["rung"] == rung for e in recoveries) for rung in {e["rung"] for e in recoveries}},
        "next_commit_median": median(event["next_commit"] for event in recoveries),
        "full_strength_median": median(full),
        "step_median": median(step["seconds"] for step in commits),
        "steps_lost": sum(event["steps_lost"] for event in recoveries),
        "samples_repeated": audit.repeated,
        "samples_skipped": audit.skipped,
    }


def measure(every: float, minutes: float, seed: int, step: float) -> dict[str, Any]:
    """Kill for so many minutes; `step`: seconds of a step with all cells (each takes two of its micro-batches)."""
    workload = {"seconds": step / 2, "global_batch": 2 * 2 * CELLS}
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name,
        lab(Path(name), NODES, steps=10**7, cells=CELLS, workload=workload, audit={"samples": True}) as one,
    ):
        one.full(10, spares=2)
        done = unleash(LabTarget(one), kills(every, seed), 60 * minutes, lambda line: print(line, flush=True))
        time.sleep(1.0)
        found = efficiency(one.path)
    settings = {"every": every, "minutes": minutes, "seed": seed, "step": step, "date": date.today().isoformat()}
    return settings | {"kills": done} | found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--every", type=float, default=15.0, help="seconds between two kills")
    options.add_argument("--minutes", type=float, default=20.0)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--step", type=float, default=0.2, help="seconds of a step at full strength")
    options.add_argument("--json", type=Path)
    asked = options.parse_args()
    found = measure(asked.every, asked.minutes, asked.seed, asked.step)
    print(json.dumps(found, indent=1))
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
