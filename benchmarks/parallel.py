"""What layouts cost: idle time of real pipeline runs against the simulator's, and tokens a second of each layout.

    python benchmarks/parallel.py [--what sleep,model,speed] [--unit 0.06] [--rounds 3] [--json FILE]

- sleep: 4 and 8 processes whose stages sleep for the time of an action (`--unit` seconds a forward, two a backward),
  with real messages between them: what the runtime adds, on any number of cores;
- model: 2 processes, one thread each, that train a small DeepSeek-V3 by each schedule;
- speed: each layout on 2 such processes, beside one process on 2 threads, and where its time goes (`layout_speed.py`).

Measured is the share of all ranks' time, from the first start of an action to the last end, in which no action ran;
simulated the same share when the schedule is simulated with the times that the actions took, and none for messages.
The round of `--rounds` with the shortest makespan counts: other work on the machine only adds to it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from layout_speed import speeds
from shoal.testing import World, world
from shoal_workloads.config import PretrainConfig
from shoal_workloads.parallel.pipeline.pipeline import Pipeline
from shoal_workloads.parallel.schedule import LAYOUTS, Span, schedule_of
from tests.support import layouts_world, synthetic
from tests.support.sleeping import Measured, compare, measure

SLEEPERS = ((4, 8), (8, 16))  # ranks, micro-batches
MICRO_BATCHES = 8  # of the model, on two ranks


@dataclass(frozen=True)
class Row:
    """Shares of idle time, and seconds of a step from its first action to its last."""

    what: str
    schedule: str
    pp: int
    micro_batches: int
    measured: float
    simulated: float
    makespan: float


def best(what: str, name: str, pp: int, micro_batches: int, rounds: int, run: Callable[[], Measured]) -> Row:
    found = min((run() for _ in range(rounds)), key=lambda one: one.run.makespan)
    shares = found.run.idle_share, found.simulated.idle_share
    row = Row(what, name, pp, micro_batches, *shares, found.run.makespan)
    print(
        f"{what:6} {name:12} pp {pp}, {micro_batches:2} micro-batches: idle {row.measured:6.2%}, simulated "
        f"{row.simulated:6.2%} (x {row.measured / row.simulated:.3f}), {row.makespan:.2f} s",
        flush=True,
    )
    return row


def sleepers(unit: float, rounds: int) -> list[Row]:
    rows = []
    for pp, micro_batches in SLEEPERS:
        with world(pp) as ranks:
            for name in LAYOUTS:

                def run(ranks: World = ranks, name: str = name, micro_batches: int = micro_batches) -> Measured:
                    return measure(ranks, name, micro_batches, unit)

                rows.append(best("sleep", name, pp, micro_batches, rounds, run))
    return rows


def settings(schedule: str) -> PretrainConfig:
    """A model whose forward takes tens of milliseconds a stage."""
    model = {"d_model": 256, "n_layers": 6, "n_heads": 4, "d_head": 32, "d_rope": 16, "d_v": 32, "d_kv": 64, "d_q": 128}
    model |= {"d_expert": 128, "d_ffn": 512, "vocab_size": 512}
    return synthetic.tiny(
        model=model,
        data={"seq_len": 256},
        batch={"global_batch": MICRO_BATCHES * 2, "micro_batch": 2},
        parallel={"pp": 2, "schedule": schedule, "timed_every": 1},
    )


def train(config: PretrainConfig, steps: int) -> list[Span]:
    """One rank's actions in the last step."""
    replica = synthetic.build(config)
    engine = replica.engine
    assert isinstance(engine, Pipeline)
    place = layouts_world.Place(0, 1, dist.get_rank(), dist.get_world_size(), None)
    for step in range(steps):
        layouts_world.step(replica, place, step)
    return [Span(*record) for record in engine.records]


def models(rounds: int) -> list[Row]:
    rows = []
    with world(2) as ranks:
        for name in LAYOUTS:
            config = settings(name)
            schedule = schedule_of(config.parallel, MICRO_BATCHES)

            def run(config: PretrainConfig = config) -> Measured:
                return compare(schedule_of(config.parallel, MICRO_BATCHES), ranks.run(train, config, 3))

            rows.append(best("model", name, 2, schedule.micro_batches, rounds, run))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", default="sleep,model,speed", help="parts, by comma")
    parser.add_argument("--unit", type=float, default=0.06, help="seconds of a sleeping forward")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each, of which the fastest counts")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts: dict[str, Callable[[], list[Any]]] = {
        "sleep": lambda: sleepers(options.unit, options.rounds),
        "model": lambda: models(options.rounds),
        "speed": lambda: speeds(options.rounds),
    }
    chosen = options.what.split(",")
    if unknown := set(chosen) - set(parts):
        parser.error(f"--what: {', '.join(sorted(unknown))}; known: {', '.join(parts)}")
    rows = [row for part in chosen for row in parts[part]()]
    if options.json:
        figures = {"date": date.today().isoformat(), "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
