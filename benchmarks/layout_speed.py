"""Tokens a second of each layout on two threads, beside one process on the same two; part of `parallel.py`.

Where a layout's time goes, in seconds of a rank, averaged over the ranks:
    products  what one process on one thread takes for a rank's share of the batch
    python    the same layout on a model so small that little but Python and dispatch is left
    bubble    idle time of the schedule, simulated with the times its actions took here
    rest      of the wall time: waiting for messages and copying them, products smaller than one process's
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from shoal.testing import World, world
from shoal_workloads.config import PretrainConfig
from shoal_workloads.parallel.pipeline.pipeline import Pipeline
from shoal_workloads.parallel.schedule import Span, schedule_of
from shoal_workloads.parallel.schedule.simulate import simulate
from tests.support import layouts_world, synthetic

__all__ = ["Speed", "speeds"]

BATCH, LENGTH, STEPS = 16, 256, 3  # samples, tokens of each, measured steps
SHAPE = {"d_model": 256, "n_layers": 4, "n_heads": 4, "d_head": 32, "d_rope": 16, "d_v": 32, "d_kv": 64, "d_q": 128}
SHAPE |= {"n_experts": 8, "d_expert": 128, "d_ffn": 512, "vocab_size": 2048}
SCHEDULES = ("1f1b", "interleaved", "zb1p", "zbv", "dualpipev", "dualpipe")
LAYOUTS: dict[str, dict[str, Any]] = {
    "fsdp 2": {},
    "ep 2": {"ep": 2},
    **{f"pp 2 {name}": {"pp": 2, "schedule": name, "timed_every": 1} for name in SCHEDULES},
}


@dataclass(frozen=True)
class Speed:
    """Seconds are of a step. `share`: of the tokens a second that one process makes on as many threads."""

    layout: str
    tokens_a_second: float
    share: float
    seconds: float
    products: float
    python: float
    bubble: float
    rest: float


def job(parallel: dict[str, Any], *, tiny: bool = False) -> PretrainConfig:
    return synthetic.tiny(
        model={"n_layers": SHAPE["n_layers"], "d_model": 16, "d_expert": 8, "d_ffn": 16} if tiny else SHAPE,
        data={"seq_len": 8 if tiny else LENGTH},
        batch={"global_batch": BATCH, "micro_batch": 1},
        parallel=parallel,
    )


def steps(config: PretrainConfig, threads: int) -> tuple[float, float, list[Span]]:
    """Median seconds of a step, of its wall time and of this process's processor time, after one that does not count;
    the actions of the last."""
    torch.set_num_threads(threads)
    workers = dist.get_world_size() if dist.is_initialized() else 1
    place = layouts_world.Place(0, 1, dist.get_rank() if workers > 1 else 0, workers, None)
    replica = synthetic.build(config)
    walls, processors = [], []
    for number in range(STEPS + 1):
        if workers > 1:
            dist.barrier()
        wall, processor = time.monotonic(), time.process_time()
        layouts_world.step(replica, place, number)
        walls.append(time.monotonic() - wall)
        processors.append(time.process_time() - processor)
    engine = replica.engine
    spans = [Span(*record) for record in engine.records] if isinstance(engine, Pipeline) else []
    return statistics.median(walls[1:]), statistics.median(processors[1:]), spans


def bubble(config: PretrainConfig, ranks: list[list[Span]]) -> float:
    """Idle seconds of a rank, as the schedule has it."""
    if config.parallel.pp == 1:
        return 0.0
    schedule = schedule_of(config.parallel, BATCH)
    took = {span.step: span.end - span.start for rank in ranks for span in rank}
    return statistics.mean(simulate(schedule, took.__getitem__).idle)


def one(name: str, parallel: dict[str, Any], pair: World, alone: float, reference: float) -> Speed:
    """alone: seconds of one process on one thread; reference: on two."""
    config = job(parallel)
    found = pair.run(steps, config, 1)
    seconds = max(wall for wall, _, _ in found)
    python = statistics.mean(processor for _, processor, _ in pair.run(steps, job(parallel, tiny=True), 1))
    idle = bubble(config, [spans for _, _, spans in found])
    products = alone / pair.size
    rest = seconds - products - python - idle
    row = Speed(name, BATCH * LENGTH / seconds, reference / seconds, seconds, products, python, idle, rest)
    print(
        f"speed  {name:18} {row.tokens_a_second:7.0f} tokens/s, {row.share:4.2f} of one process; {seconds:.2f} s = "
        f"products {products:.2f} + python {python:.2f} + bubble {idle:.2f} + rest {rest:.2f}",
        flush=True,
    )
    return row


def speeds(rounds: int) -> list[Speed]:
    """Every layout on two processes of one thread; the fastest of `rounds`."""
    reference = min(steps(job({}), 2)[0] for _ in range(rounds))
    alone = min(steps(job({}), 1)[1] for _ in range(rounds))
    print(
        f"speed  one process: {BATCH * LENGTH / reference:.0f} tokens/s on 2 threads ({reference:.2f} s a step), "
        f"{alone:.2f} s of processor time on 1",
        flush=True,
    )
    rows = []
    with world(2) as pair:
        for name, parallel in LAYOUTS.items():
            found = [one(name, parallel, pair, alone, reference) for _ in range(rounds)]
            rows.append(min(found, key=lambda row: row.seconds))
    return rows
