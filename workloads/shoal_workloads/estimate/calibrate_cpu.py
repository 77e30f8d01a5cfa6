"""Measures one thread of this machine's CPU, as a worker of `shoal train` computes with it by default.

Products by themselves, then attention; then whole layers, of whose time both are taken off; then whole models of one
layer, of whose time that is taken off. What is left each time is fitted to what it is counted by (`amounts`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from statistics import median
from typing import Any

import torch

from shoal_core.mesh import Mesh
from shoal_workloads.config import PretrainConfig
from shoal_workloads.estimate import amounts, crowd, probes
from shoal_workloads.estimate.amounts import Batch
from shoal_workloads.estimate.calibrate_messages import messages, update
from shoal_workloads.estimate.fitting import fitted
from shoal_workloads.estimate.hardware import Calibration, Computing, Core, Hardware, Passes, Price, device_name
from shoal_workloads.estimate.layer import BF16, FP32, Product
from shoal_workloads.estimate.measured import CpuLayers
from shoal_workloads.estimate.probes import Found, probe_config

__all__ = ["LAYERS", "PRECISIONS", "calibrate", "computing", "cores"]

PRECISIONS = ("fp32", "bf16", "fp8")
"""Measured on a CPU; FP8 is emulated there."""
SHAPES = [(m, n, k) for m in (32, 128, 512) for n, k in ((64, 128), (128, 320), (640, 320), (320, 1280))]
"""Of products: rows, outputs, inputs."""
SMALL: dict[str, Any] = {"d_head": 16, "d_rope": 8, "d_v": 16}
MIDDLE: dict[str, Any] = {"d_head": 32, "d_rope": 16, "d_v": 32}
WIDE: dict[str, Any] = {"d_head": 56, "d_rope": 16, "d_v": 56}
CORES: list[tuple[dict[str, Any], int, int]] = [
    (SMALL | {"n_heads": 2}, 32, 1),
    (MIDDLE | {"n_heads": 4}, 128, 1),
    (MIDDLE | {"n_heads": 8}, 128, 1),
    (MIDDLE | {"n_heads": 4}, 288, 1),
    (MIDDLE | {"n_heads": 5}, 640, 1),
    (WIDE | {"n_heads": 8}, 288, 1),
    (WIDE | {"n_heads": 4}, 448, 1),
    (WIDE | {"n_heads": 10}, 448, 1),
    (MIDDLE | {"n_heads": 3}, 96, 4),
    (SMALL | {"n_heads": 8}, 1024, 1),
]
"""Attention: heads, length, samples."""


def shape(d: int, heads: int, kv: int, q: int | None, ffn: int, experts: tuple[int, int, int, int]) -> dict[str, Any]:
    """experts: how many, shared, of a token, and as wide."""
    count, shared, top, width = experts
    return {
        "d_model": d, "n_heads": heads, "d_kv": kv, "d_q": q, "d_ffn": ffn,
        "n_experts": count, "n_shared": shared, "top_k": top, "d_expert": width,
    }  # fmt: skip


LAYERS: list[tuple[dict[str, Any], int, int]] = [
    (SMALL | shape(128, 8, 128, None, 128, (4, 1, 2, 128)), 16, 1),
    (SMALL | shape(128, 8, 128, 128, 128, (16, 1, 4, 128)), 64, 1),
    (MIDDLE | shape(128, 4, 128, None, 512, (8, 1, 2, 128)), 128, 1),
    (WIDE | shape(384, 16, 128, None, 640, (4, 0, 2, 256)), 64, 2),
    (MIDDLE | shape(128, 4, 128, 128, 256, (16, 2, 4, 128)), 384, 1),
    (MIDDLE | shape(256, 8, 128, None, 640, (8, 1, 4, 128)), 448, 1),
    (MIDDLE | shape(384, 4, 128, 128, 896, (4, 1, 1, 384)), 256, 1),
    (MIDDLE | shape(256, 4, 128, None, 1152, (16, 0, 2, 256)), 64, 1),
]
"""Of widths that FP8's tiles divide."""
ENDS = [(64, 128, 16), (2048, 128, 64), (512, 384, 256), (3072, 256, 256)]
"""Vocabulary, width, length."""


def calibrate(workers: int, budget: float, precisions: Sequence[str], tell: Callable[[str], None]) -> Hardware:
    """See `calibrate.calibrate`; `budget`: seconds, about, for what computes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measured(workers, budget, precisions, tell)
    finally:
        torch.set_num_threads(threads)


def _measured(workers: int, budget: float, precisions: Sequence[str], tell: Callable[[str], None]) -> Hardware:
    found, spreads = dict[str, Computing](), list[float]()
    began, ran = time.monotonic(), time.process_time()
    for precision in precisions:
        tell(f"products, attention, layers and a whole model in {precision}")
        found[precision], spread = computing(precision, budget / (len(precisions) + 1))
        spreads += spread
    busy = max(0.0, 1 - (time.process_time() - ran) / (time.monotonic() - began))
    tell(f"the same beside {workers - 1} others" if workers > 1 else "one worker: nobody beside it")
    crowded = crowd.factor(min(workers, cores()), budget / (len(precisions) + 1) / 2)
    tell("parameters brought up to date, and memory")
    updated, memory = update(), copied()
    tell(f"messages between {workers} processes" if workers > 1 else "no messages")
    between = messages(workers)
    calibration = Calibration(
        measured=f"{datetime.now(UTC):%Y-%m-%d}",
        versions={"torch": torch.__version__},
        spread=median(spreads),
        busy=busy,
        computing=found,
        update=updated,
        messages=between,
        crowded=crowded,
        cores=cores(),
    )
    warn(calibration, tell)
    return entry_of_cpu(calibration, memory)


def warn(calibration: Calibration, tell: Callable[[str], None]) -> None:
    """Say what speaks against the figures."""
    if calibration.busy > 0.1:
        tell(
            f"the machine was busy: others ran in {calibration.busy:.0%} of the time, which is left out, but what they "
            "did to caches and memory is not; measure again when they are done"
        )
    if calibration.spread > 0.05:
        tell(f"repeats differ by {calibration.spread:.0%}: do not trust these figures to better than that")


def entry_of_cpu(calibration: Calibration, memory: float) -> Hardware:
    """memory: bytes a second. Peaks of products and attention are those that the fits tend to; what the links between
    machines do nobody measured: it is that of messages inside."""
    known = calibration.computing
    best = 1.0 / max((known.get("bf16") or next(iter(known.values()))).product["flop"], 1e-15)
    core = next(iter(known.values())).core
    shares = {
        name: min(1.0, 1.0 / max(costs["flop"] * best, 1.0))
        for name, costs in (("forward", core.forward), ("backward", core.backward))
    }
    byte = calibration.messages.exchange.byte if calibration.messages else 0.0
    link = 1e-9 / byte if byte else memory / 1e9
    return Hardware.model_validate(
        {
            "device": device_name("cpu"),
            "tflops": {"bf16": best / 1e12},
            "reached": {"bf16": 1.0},
            "attention": shares,
            "memory_gb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9 / calibration.cores,
            "memory_tb_s": memory / 1e12,
            "nvlink_gb_s": link,
            "network_gb_s": link,
            "sms": 1,
            "price": Price(dollars=0.0, of=calibration.measured, source="one's own machine"),
            "calibration": calibration,
        }
    )


def cores() -> int:
    """Of this machine, that this process may use."""
    return len(os.sched_getaffinity(0))


def copied(numel: int = 1 << 24) -> float:
    """Bytes a second that memory takes and gives."""
    source, target = torch.zeros(numel), torch.empty(numel)
    work = lambda: probes.timed(time.process_time, lambda: target.copy_(source))  # noqa: E731
    return 2.0 * FP32 * numel / probes.run([work], 0.3)[0].seconds[0]


# ---- what it computes


NO_DEVICE = Hardware.model_validate(
    {
        "tflops": {"bf16": 1}, "reached": {"bf16": 1}, "attention": {"forward": 1, "backward": 1}, "memory_gb": 1,
        "memory_tb_s": 1, "nvlink_gb_s": 1, "network_gb_s": 1, "sms": 1,
        "price": {"dollars": 0, "of": "never", "source": "none"},
    }
)  # fmt: skip
"""`CpuLayers` asks it for nothing."""


def computing(precision: str, budget: float, kind: str = "cpu") -> tuple[Computing, list[float]]:
    """What a CPU takes in one precision, and the spread of repeats, in about `budget` seconds."""
    width = FP32 if precision == "fp32" else BF16
    # Products and attention by themselves.
    shapes = [Product(m, n, k, "bf16") for m, n, k in SHAPES]
    found = probes.run([probes.products(one, precision, kind) for one in shapes], 0.1 * budget)
    each = [product for one in shapes for product in (one, one.input(), one.weight())]
    product = fitted([amounts.product(one, width) for one in each], [s for one in found for s in one.seconds])
    activations = "fp32" if precision == "fp32" else "bf16"
    cores = [
        probe_config(shape(128, 1, 128, None, 128, (4, 1, 2, 128)) | heads, length, activations, kind, samples)
        for heads, length, samples in CORES
    ]
    found_core = probes.run([probes.attention(one, kind) for one in cores], 0.2 * budget)
    counted = [amounts.core(one.model, batch_of(one)) for one in cores]
    core = Core.model_validate(
        {
            name: fitted(counted, [one.seconds[i] for one in found_core])
            for i, name in enumerate(("forward", "backward"))
        }
    )
    # Layers, less both; then what stands before and behind all layers, less a layer.
    jobs = [probe_config(model, length, precision, kind, samples) for model, length, samples in LAYERS]
    nothing = Passes(forward={}, input={}, weight={}, backward={})
    known = Computing(product=product, core=core, dense=nothing, moe=nothing, ends={})
    passes = dict[bool, Passes]()
    works = [(dense, job) for job in jobs for dense in (True, False)]
    found_layers = probes.run([probes.layer(job, kind, dense=dense) for dense, job in works], 0.5 * budget)
    for dense in (True, False):
        mine = [(job, one) for (of, job), one in zip(works, found_layers, strict=True) if of is dense]
        passes[dense] = passes_of(mine, known, dense)
    known = known.model_copy(update={"dense": passes[True], "moe": passes[False]})
    whole = [
        probe_config(LAYERS[2][0] | {"vocab_size": v, "d_model": d}, length, precision, kind) for v, d, length in ENDS
    ]
    found_ends = probes.run([probes.step(one) for one in whole], 0.2 * budget)
    layers = [CpuLayers(one, Mesh(), NO_DEVICE, 1, known) for one in whole]
    rest = [
        sum(sum(part.values()) for part in (one.forward(dense=True), one.backward(dense=True), one.head()))
        for one in layers
    ]
    ends = fitted(
        [amounts.ends(one.model, batch_of(one)) for one in whole], [one.seconds[0] for one in found_ends], rest
    )
    spread = [one.spread for one in (*found, *found_core, *found_layers, *found_ends)]
    return known.model_copy(update={"ends": ends}), spread


def passes_of(measured: Sequence[tuple[PretrainConfig, Found]], known: Computing, dense: bool) -> Passes:
    """What layers take beside products and attention."""
    counted = [amounts.layer(job.model, batch_of(job), job.model.n_experts, dense=dense) for job, _ in measured]
    layers = [CpuLayers(job, Mesh(), NO_DEVICE, 1, known) for job, _ in measured]
    found = {}
    for i, name in enumerate(("forward", "backward", "input", "weight")):
        accounted = [sum(getattr(one, name)(dense=dense).values()) for one in layers]
        found[name] = fitted(counted, [one.seconds[i] for _, one in measured], accounted)
    return Passes.model_validate(found)


def batch_of(config: PretrainConfig) -> Batch:
    return Batch(config.batch.micro_batch, config.data.seq_len, FP32 if config.precision == "fp32" else BF16)
