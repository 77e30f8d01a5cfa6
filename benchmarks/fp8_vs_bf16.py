"""Does FP8 training end where BF16 ends? The 10M model, the same initial values, the same samples in the same order.

    python benchmarks/fp8_vs_bf16.py --corpus ../shared/corpus [--seeds 0,1] [--lr 2.2e-4] [--json FILE]

FP8 is emulated on a CPU: the numerics of the report's section 3.3, not its speed. Two runs that differ by anything
drift apart, so a third arm says how far: BF16 again, its initial values moved by a random 2^-9 of themselves, the
rounding of one BF16 value. A seed is one of initial values and of the order of samples. Compared: mean training loss of
the last tenth of the steps, and the loss on held-out text after the last, where the weights that FP8 trained are read
in BF16 as well. The arms take turns of 20 steps; interrupted, it goes on where it was.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch

from shoal_workloads.replica import PretrainShard
from small_runs import evaluate, model_section, prepare, train

ARMS = ("bf16", "fp8", "bf16-moved")
BATCH, TURN, HELD_OUT_SAMPLES = 4, 20, 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder of Parquet files with path and text")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/fp8"), help="state of the runs; the corpus goes beside it"
    )
    parser.add_argument("--seeds", default="0", help="one comparison each, separated by commas")
    parser.add_argument("--steps", type=int, default=320)
    parser.add_argument("--lr", type=float, default=2.2e-4, help="peak; the report's")
    parser.add_argument("--seq-len", type=int, default=256, help="tokens of a sample; a step takes 4")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="write the figures here as well")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = options.folder.parent / "small"
    prepare(options.corpus, data)
    found = {seed: run(options, data, int(seed)) for seed in options.seeds.split(",")}
    figures = {
        "steps": options.steps,
        "lr": options.lr,
        "tokens_a_step": BATCH * options.seq_len,
        "torch": torch.__version__,
    }
    text = json.dumps({**figures, "seeds": found, "mean": mean_difference(list(found.values()))}, indent=2)
    print(text)
    if options.json:
        Path(options.json).write_text(text + "\n")


def run(options: argparse.Namespace, data: Path, seed: int) -> dict[str, Any]:
    """The three arms from one seed, compared."""
    folder = options.folder / f"{options.seq_len}-tokens-lr-{options.lr:g}-seed-{seed}"
    folders = {arm: folder / arm for arm in ARMS}
    sections = {arm: recipe(options, data, arm, seed) for arm in ARMS}
    metrics: dict[str, list[dict[str, float]]] = {}
    for last in [*range(TURN, options.steps, TURN), options.steps]:
        done = partial(_reached, last)
        for arm in ARMS:
            begin = partial(_move, seed) if arm == "bf16-moved" else None
            metrics[arm] = train(sections[arm], folders[arm], done, evaluate_every=10**9, seed=seed, begin=begin)[1]
            mean = statistics.fmean(m["lm_loss"] for m in metrics[arm][last - TURN : last])
            print(f"seed {seed}, {arm}, mean of {TURN} steps to {last}: {mean:.4f}", flush=True)
    held = {}
    read_as = {arm: (arm, arm) for arm in ARMS} | {"fp8 read in bf16": ("bf16", "fp8")}
    for name, (arm, weights) in read_as.items():
        replica, _ = train(sections[arm], folders[weights], done, evaluate_every=10**9, seed=seed)
        held[name] = evaluate(replica, data, HELD_OUT_SAMPLES)["loss"]
        print(f"seed {seed}, {name}, held out: {held[name]:.4f}", flush=True)
    return compare(metrics, held)


@torch.no_grad()
def _move(seed: int, replica: PretrainShard) -> None:
    noise = torch.Generator().manual_seed(seed)
    for parameter in replica.model.parameters():
        parameter.mul_(1 + 2.0**-9 * torch.randn(parameter.shape, generator=noise))


def _reached(last: int, step: int, _cpu: float) -> bool:
    return step >= last


def recipe(options: argparse.Namespace, data: Path, arm: str, seed: int) -> dict[str, Any]:
    """The report's schedule over the whole run; moments in BF16 in all arms, as in the report."""
    budget = options.steps * BATCH * options.seq_len
    section = model_section(
        data,
        options.seq_len,
        batch={"global_batch": BATCH, "micro_batch": BATCH},
        schedule={"budget": budget, "lr": options.lr, "warmup_steps": 60, "gamma": 0.003},
        optim={"moments": "bf16"},
        precision=arm.removesuffix("-moved"),
    )
    section["data"]["seed"] = seed
    return section


def compare(metrics: dict[str, list[dict[str, float]]], held: dict[str, float]) -> dict[str, Any]:
    """Losses in nats a token, and the others' over BF16's, less one."""
    steps = len(metrics["bf16"])
    tail = -(steps // 10)
    final = {arm: statistics.fmean(m["lm_loss"] for m in metrics[arm][tail:]) for arm in ARMS}
    tenths = [round(i * steps / 10) for i in range(11)]
    curve = {
        arm: [statistics.fmean(m["lm_loss"] for m in metrics[arm][a:b]) for a, b in itertools.pairwise(tenths)]
        for arm in ARMS
    }
    return {
        "final_loss": final,
        "final_loss_difference": _over_bf16(final),
        "heldout_loss": held,
        "heldout_loss_difference": _over_bf16(held),
        "loss_by_tenth": curve,
        "cpu_seconds": {arm: metrics[arm][-1]["cpu"] for arm in ARMS},
    }


def mean_difference(found: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The means over the seeds of the differences from BF16."""
    kinds = ("final_loss_difference", "heldout_loss_difference")
    return {kind: {arm: statistics.fmean(one[kind][arm] for one in found) for arm in found[0][kind]} for kind in kinds}


def _over_bf16(loss: dict[str, float]) -> dict[str, float]:
    return {name: value / loss["bf16"] - 1 for name, value in loss.items() if name != "bf16"}


if __name__ == "__main__":
    main()
