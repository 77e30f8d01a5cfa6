"""What `TorchWorkload` costs when nothing fails: a GPT on it, and in a bare FSDP2 loop of plain PyTorch.

    python benchmarks/torch_workload.py [--rounds 5] [--steps 60] [--width 256] [--json FILE]

Both train the model of docs/examples/gpt.py on the same samples, with AdamW and the same clip, in two processes of one
thread each, which share the model (FSDP2, gathered block by block) over gloo. A step has `--micro-batches` for each of
them, whose gradients are reduced with the last, or `--each` by itself. The bare loop is what one would write:
`fully_shard`, torch's fused AdamW, `clip_grad_norm_`, the loss added over the two. With Shoal (`shoal.testing`:
worker, controller and record, without Ray) a step is a transaction besides. They take turns, `--rounds` times; of each
round the ratio of the medians of a step, and of the processor time that a worker takes for one, which other work on the
machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for docs.examples and tests.support, in workers too

from overhead import WARM, Clock, Figures, Setting, bare, store_at, with_shoal, write
from shoal.testing.processes import preload
from shoal_core.loading import own_settings

WORKERS, MICRO_BATCH = 2, 4
PATH = "docs.examples.gpt:GPT"
preload("docs.examples.gpt")


def bare_worker(setting: Setting, steps: int, cell: int, rank: int, port: int, answer: Any) -> None:
    """One process of the bare loop; sends its `Figures`."""
    import numpy as np
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.utils.data import default_collate

    from docs.examples.gpt import GPT
    from shoal_data.reading.order import SampleOrder

    dist.init_process_group("gloo", store=store_at(port, first=rank == 0), rank=rank, world_size=WORKERS)
    config = GPT.Config.model_validate(own_settings(setting.workload))
    made = GPT(config)
    torch.manual_seed(0)
    model, dataset = made.build_model(config), made.dataset(config)
    order = SampleOrder([len(dataset)], None, config.seed)
    mesh = init_device_mesh("cpu", (WORKERS,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    micro_batches = config.global_batch // config.micro_batch // WORKERS
    losses, clock = [], Clock()
    for step in range(steps):
        total = torch.zeros(())
        for number in range(micro_batches):
            model.set_requires_gradient_sync(not config.reduce_once or number == micro_batches - 1)
            first = step * config.global_batch + (number * WORKERS + rank) * config.micro_batch
            indices = order(np.arange(first, first + config.micro_batch))[1]
            summed, count = made.loss(model, default_collate([dataset[int(index)] for index in indices]))
            loss = summed / (count * micro_batches)
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad()
        dist.all_reduce(total)
        losses.append(total.item() / WORKERS)
        clock.step_done()
    answer.send(Figures(clock.seconds[WARM:], clock.cpu(), losses))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--steps", type=int, default=60)
    options.add_argument("--width", type=int, default=256)
    options.add_argument("--micro-batches", type=int, default=2, help="of each worker, in a step")
    options.add_argument("--each", action="store_true", help="reduce gradients after each micro-batch")
    options.add_argument("--json", type=Path)
    asked = options.parse_args()
    batch = {"global_batch": WORKERS * MICRO_BATCH * asked.micro_batches, "micro_batch": MICRO_BATCH}
    setting = Setting(
        1, WORKERS, {"path": PATH, "width": asked.width, "lr": 1e-3, "reduce_once": not asked.each, **batch}
    )
    found: dict[str, Any] = {"date": date.today().isoformat(), "load": [os.getloadavg()[0]], "rounds": []}
    for number in range(asked.rounds):
        if number % 2 == 0:
            plain, ours = bare(bare_worker, setting, asked.steps), with_shoal(setting, asked.steps, "fast")
        else:
            ours, plain = with_shoal(setting, asked.steps, "fast"), bare(bare_worker, setting, asked.steps)
        apart = max(abs(a - b) for a, b in zip(plain.losses, ours.losses, strict=True))
        assert apart < 1e-3, f"the two do not train the same: losses differ by {apart}"
        walls = median(plain.seconds), median(ours.seconds)
        one = {"bare": walls[0], "shoal": walls[1], "wall": walls[1] / walls[0] - 1}
        one |= {"bare_cpu": plain.cpu, "shoal_cpu": ours.cpu, "cpu": ours.cpu / plain.cpu - 1, "losses_apart": apart}
        print(json.dumps({key: round(value, 5) for key, value in one.items()}), flush=True)
        found["rounds"].append(one)
        found["load"].append(os.getloadavg()[0])
        found |= {name: median(one[name] for one in found["rounds"]) for name in ("wall", "cpu")}
        write(asked.json, found)
    print(json.dumps({name: found[name] for name in ("date", "load", "wall", "cpu")}))


if __name__ == "__main__":
    main()
