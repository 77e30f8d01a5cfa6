"""What it takes to go on in cells of another shape when there is no spare, and what that is worth.

    python benchmarks/reshape.py --json FILE [--repeats 10] [--seconds 0.04] [--on-ray 3] [--ray-train 2]
    python benchmarks/reshape.py --json FILE --table

2 cells x 4 workers, each worker on a node of its own, no spare: real processes and real gloo without Ray
(`shoal.testing`). The quadratic of `shoal_workloads.synthetic` sleeps for each micro-batch, one sample for each worker
of the cell that takes it: a step lasts as long as the share of it that a worker has.

**time**, `--repeats` runs with `elastic: {cells: [2, 2]}`, in which 2 x 3 workers follow. A worker is killed (SIGKILL),
and its node with it. Wall times from just before the signal to the line of the record:
- next commit: to the first step that a generation formed after it commits (by the other cell alone);
- reshaped: to the first step in the new shape. Before that come `told` (to pause for it) and the phases of the record:
  `pause` (in it the step above), `form` (of it `fill`: the slowest worker) and `first_step`;
- bytes: what crossed (the record) and what each worker had from itself (each says in its log what its shard was filled
  from), as shares of the new state; together they are 1 where every range is had once. `busiest`: what the source that
  gave most to others gave, over the mean of all members of the former shape.

**loss**: the greatest difference of a step's loss from that of the undisturbed run, of all runs above; and of a small
model of DeepSeek-V3's kind (experts, MTP, averages) that is killed once.

**on one Ray cluster** (`reshape_on_ray.py`): the same two times, `--on-ray` kills, beside `--ray-train` kills of Ray
Train's elastic training, from a node's death to the first step of the workers that are left. 0: leave it out.

**throughput**, workers killed one by one from 8 down to 2: with every shape allowed (`any`); with two cells (`two`);
with `elastic` off (`dropped`, one kill: the other cell goes on alone, until it loses a worker too). Samples a second by
the median of steps that follow. `share`: against (throughput of 8) x survivors / 8; `counted`: what it is by
counting micro-batches; `over_dropping`: against `dropped`.

Every run is stopped and its record audited: steps lost, samples repeated and skipped. `--table` prints FILE as the
tables of docs/reshape.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import reshape_figures
import reshape_runs as runs
from shoal.worker import courier

ANY = {"hold_s": 0.0}
MODEL_STEPS = 24

if __name__ == "__mp_main__":  # so this module is called in the processes of a lab, before their work begins
    courier.put_together = runs.saying(courier.put_together)


def measure(asked: argparse.Namespace) -> None:
    """All of it, the file written after each part."""
    result: dict[str, Any] = {"date": date.today().isoformat(), "seconds": asked.seconds, "load": os.getloadavg()}
    result |= {"time": [], "loss": {}, "throughput": {}, "audits": [], "took": {}}
    since = time.monotonic()

    def done(part: str) -> None:
        nonlocal since
        result["took"][part], since = round(time.monotonic() - since, 1), time.monotonic()
        asked.json.write_text(json.dumps(result | reshape_figures.summary(result), indent=1) + "\n")
        print(f"{part}: {result['took'][part]} s, load {os.getloadavg()[0]:.1f}", flush=True)

    losses = []
    for _ in range(asked.repeats):
        times, curve = runs.timed(result["audits"])
        result["time"].append(times)
        losses.append(curve)
        print(json.dumps(times), flush=True)
    done("time")
    if losses:
        calm = runs.undisturbed(max(map(len, losses)))
        result["loss"]["loss_difference"] = max(runs.furthest(curve, calm) for curve in losses)
    result["loss"]["loss_difference_model"] = runs.model(MODEL_STEPS, result["audits"])
    done("loss")

    down = range(runs.EVERYBODY, 1, -1)
    kinds: dict[str, tuple[Any, dict[int, int]]] = {"any": (ANY, {n: n for n in down})}
    kinds["two"] = runs.TWO, {n: n - n % runs.CELLS for n in down}
    kinds["dropped"] = None, {runs.EVERYBODY: runs.EVERYBODY, runs.EVERYBODY - 1: runs.WORKERS}
    for name, (elastic, seats) in kinds.items():
        result["throughput"][name] = runs.descent(asked.seconds, elastic, seats, result["audits"])
        done(f"throughput, {name}")
    if asked.on_ray or asked.ray_train:
        import reshape_on_ray  # here: the processes of a lab, which import this module, have no use for it

        result["cluster"] = {"shoal": [], "ray_train": []}
        try:
            reshape_on_ray.measure(result["cluster"], asked.on_ray, asked.ray_train, result["audits"], print)
        finally:
            done("on one Ray cluster")
    result["load_after"] = os.getloadavg()
    done("all")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", type=Path, required=True)
    options.add_argument("--repeats", type=int, default=10, help="changes of shape that are timed")
    options.add_argument("--seconds", type=float, default=0.04, help="of a micro-batch, where throughput is measured")
    options.add_argument("--on-ray", type=int, default=3, help="changes of shape that are timed on a Ray cluster")
    options.add_argument("--ray-train", type=int, default=2, help="kills of Ray Train's elastic training on it")
    options.add_argument("--table", action="store_true", help="print FILE's figures as markdown; measure nothing")
    asked = options.parse_args()
    if not asked.table:
        measure(asked)
    print(reshape_figures.tables(json.loads(asked.json.read_text())))


if __name__ == "__main__":
    main()
