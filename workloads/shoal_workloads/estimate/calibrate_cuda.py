"""Measures one GPU: its best products, fused attention, memory, and what Python takes for a layer. Of a kind that the
shipped table knows, links, price and FP8 stay as they are there.

It has run on no GPU yet: its parts are tested on a CPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from statistics import median
from typing import Any

import torch

from shoal_core.devices import bf16_peak
from shoal_core.errors import UserError
from shoal_workloads.estimate import probes
from shoal_workloads.estimate.hardware import Calibration, Hardware, Price, by_words, device_name, shipped
from shoal_workloads.estimate.layer import BF16, MOVED, Product
from shoal_workloads.estimate.probes import Found, clock_of, probe_config, timed

__all__ = ["attention", "calibrate", "host", "products", "shipped_of"]

LARGE = [(8192, 8192, 8192), (8192, 4096, 7168), (16384, 4096, 4096), (4096, 14336, 4096)]
"""Rows, outputs, inputs."""
TINY: dict[str, Any] = {
    "d_model": 128, "n_heads": 2, "d_head": 16, "d_rope": 8, "d_v": 16, "d_kv": 128, "d_q": 128, "d_ffn": 128,
    "n_experts": 8, "n_shared": 1, "top_k": 2, "d_expert": 128,
}  # fmt: skip
"""Of a layer so small that little but Python is left."""
LINKS = {"nvlink_gb_s": 100.0, "network_gb_s": 25.0}
"""Assumed of a kind that nobody knows."""


def calibrate(tell: Callable[[str], None]) -> Hardware:
    """The entry of the GPU that this process sees first.

    Raises:
        UserError: it sees none.
    """
    if not torch.cuda.is_available():
        raise UserError("--calibrate: torch sees no GPU here", "run it where there is one, or calibrate the CPU")
    device, spreads = device_name("cuda"), list[float]()
    known = shipped_of(device)
    tell("products in bf16")
    best, spread = products(LARGE, "cuda", 10.0)
    spreads.append(spread)
    tell("attention")
    forward, backward, spread = attention(4096, 32, "cuda", 5.0)
    spreads.append(spread)
    tell("memory")
    moved, spread = memory(1 << 28, "cuda", 3.0)
    spreads.append(spread)
    tell("what Python takes for a layer")
    asked = host("cuda", 5.0)
    tell("links and FP8: as in the shipped table" if known else "links: assumed, and no FP8")
    peak = known.tflops.bf16 * 1e12 if known else max(best, bf16_peak(device) or 0.0)
    day = f"{datetime.now(UTC):%Y-%m-%d}"
    properties = torch.cuda.get_device_properties(0)
    values: dict[str, Any] = {
        **LINKS,
        "tflops": {"bf16": peak / 1e12},
        "sms": properties.multi_processor_count,
        "price": Price(dollars=0.0, of=day, source="one's own machine"),
        **({} if known is None else known.model_dump()),
    }
    values |= {
        "device": device,
        "reached": {**values.get("reached", {}), "bf16": min(1.0, best / peak)},
        "attention": {"forward": min(1.0, forward / peak), "backward": min(1.0, backward / peak)},
        "memory_gb": torch.cuda.mem_get_info()[1] / 1e9,
        "memory_tb_s": moved / MOVED / 1e12,
        "calibration": Calibration(
            measured=day, versions={"torch": torch.__version__}, spread=median(spreads), busy=0.0, host=asked
        ),
    }
    return Hardware.model_validate(values)


def shipped_of(device: str) -> Hardware | None:
    """The shipped entry of a GPU by its name, such as "NVIDIA H100 80GB HBM3"; none of the user's, which may have
    learned from runs what an entry that is measured does not."""
    found = by_words(device, shipped())
    return None if found is None else found[1]


def products(shapes: list[tuple[int, int, int]], kind: str, budget: float) -> tuple[float, float]:
    """FLOP/s of the best, forward, and the spread of repeats."""
    found = probes.run([probes.products(Product(m, n, k, "bf16"), "bf16", kind) for m, n, k in shapes], budget)
    rates = [2.0 * m * n * k / one.seconds[0] for (m, n, k), one in zip(shapes, found, strict=True)]
    return max(rates), median(one.spread for one in found)


def attention(length: int, heads: int, kind: str, budget: float, width: int = 128) -> tuple[float, float, float]:
    """FLOP/s of fused causal attention, forward and backward, of which the half above the diagonal is not counted; and
    the spread of repeats."""
    from shoal_workloads.model.mla import attend

    q, k, v = (
        torch.randn(1, length, heads, width, dtype=torch.bfloat16, device=kind, requires_grad=True) for _ in range(3)
    )
    dy, clock = torch.randn_like(q), clock_of(kind)

    def work() -> list[float]:
        made = list[torch.Tensor]()
        found = timed(clock, lambda: made.append(attend(q, k, v, 0.1)), lambda: made[0].backward(dy))
        q.grad = k.grad = v.grad = None
        return found

    (found,) = probes.run([work], budget)
    flops = 2.0 * length**2 * heads * width
    return flops / found.seconds[0], 2.5 * flops / found.seconds[1], found.spread


def memory(numel: int, kind: str, budget: float) -> tuple[float, float]:
    """Bytes a second of a copy, read and written, and the spread of repeats."""
    source = torch.zeros(numel, dtype=torch.bfloat16, device=kind)
    target, clock = torch.empty_like(source), clock_of(kind)
    (found,) = probes.run([lambda: timed(clock, lambda: target.copy_(source))], budget)
    return 2.0 * BF16 * numel / found.seconds[0], found.spread


def host(kind: str, budget: float) -> dict[str, dict[str, float]]:
    """Seconds of Python for a layer by pass: the device has so little to do that nobody waits for it."""
    job = probe_config(TINY, 16, "bf16", kind)
    works = [probes.layer(job, kind, dense=dense, clock=time.perf_counter) for dense in (True, False)]
    found: list[Found] = probes.run(works, budget)
    names = ("forward", "backward", "input", "weight")
    return {name: dict(zip(names, one.seconds, strict=True)) for name, one in zip(("dense", "moe"), found, strict=True)}
