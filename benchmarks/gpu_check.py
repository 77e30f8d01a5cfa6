"""What the workload does on one GPU, as one JSON: FP8 products, MLA attention, a V3 MoE layer at true width, a slice.

    python benchmarks/gpu_check.py [--tiny] [--parts gemm,attention,layer,slice] [--json FILE]

Needs the repository on PYTHONPATH (workloads, data_pipeline), torch, Triton, NumPy and pydantic, nothing else. `--tiny`
runs the same code with small shapes, on the CPU if there is no GPU, and proves nothing about speed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from shoal_core.devices import bf16_peak
from shoal_workloads.flops import token_flops
from shoal_workloads.model.config import ModelConfig
from shoal_workloads.model.deepseek import DeepSeekV3
from shoal_workloads.model.mla import attend
from shoal_workloads.model.moe import MoE
from shoal_workloads.params import count_parameters
from shoal_workloads.precision.choose import choose
from shoal_workloads.precision.products import Products


class Bench:
    """The device, and how a part measures on it; `tiny`: with small shapes, once."""

    def __init__(self, *, tiny: bool) -> None:
        self.tiny = tiny
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.fp8: Products = choose("fp8", self.device)[1]
        torch.manual_seed(0)

    def about(self) -> dict[str, Any]:
        """Where and when."""
        gpu = torch.cuda.get_device_name() if self.device == "cuda" else platform.processor() or "cpu"
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        return {
            "device": gpu,
            "date": today,
            "torch": torch.__version__,
            "tiny": self.tiny,
            "fp8": self.fp8.name,
            "dense_fp8_through_torch": getattr(self.fp8, "scaled_mm", False),
        }

    def seconds(self, run: Callable[[], Any]) -> float:
        """Median time of `run` after a warm-up."""
        repeats = 1 if self.tiny else 10
        for _ in range(1 if self.tiny else 3):
            run()
        times = []
        for _ in range(repeats):
            self.sync()
            start = time.perf_counter()
            run()
            self.sync()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    def sync(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def rate(self, flops: float, seconds: float) -> float | None:
        """TFLOP/s."""
        return None if self.tiny else flops / seconds / 1e12

    def share(self, flops: float, seconds: float) -> float | None:
        """Of the device's BF16 peak; None if that is not known."""
        peak = bf16_peak(torch.cuda.get_device_name()) if self.device == "cuda" and not self.tiny else None
        return None if peak is None else flops / seconds / peak

    def random(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.randn(*shape, device=self.device, dtype=dtype)


def gemm(bench: Bench) -> dict[str, Any]:
    """FP8 products against float64 and against BF16 of the same shapes; the ceiling is a large square product."""
    side = 256 if bench.tiny else 8192
    a, b = bench.random(side, side), bench.random(side, side)
    ceiling = bench.rate(2 * side**3, bench.seconds(lambda: a @ b))
    # V3's up-projection of a dense layer, and of 8 experts of 1024 rows
    rows, width, hidden, experts = (256, 256, 256, 2) if bench.tiny else (8192, 7168, 4096, 8)
    ends = torch.arange(1, experts + 1, device=bench.device, dtype=torch.int32) * (rows // experts)
    out: dict[str, Any] = {"bf16_ceiling_tflops": ceiling}
    for name, groups, shape in (("dense", None, (hidden, width)), ("grouped", ends, (experts, hidden, width))):
        x, w, dy = bench.random(rows, width), bench.random(*shape), bench.random(rows, hidden)
        out[name] = {product: _compare(bench, product, x, w, dy, groups) for product in ("fprop", "dgrad", "wgrad")}
    return out


def _compare(
    bench: Bench, product: str, x: torch.Tensor, w: torch.Tensor, dy: torch.Tensor, ends: torch.Tensor | None
) -> dict[str, Any]:
    flops = 2.0 * x.shape[0] * x.shape[1] * dy.shape[1]

    def run(products: Products, kept: tuple[torch.Tensor, ...]) -> torch.Tensor:
        if product == "fprop":
            return products.fprop(kept, w, ends, torch.bfloat16)
        if product == "dgrad":
            return products.dgrad(dy, w, ends)
        return products.wgrad(dy, kept, ends, torch.bfloat16)

    exact = _exact(bench, product, x, w, dy, ends)
    figures: dict[str, Any] = {}
    for name, products in (("bf16", Products()), ("fp8", bench.fp8)):
        kept = products.cache(x)
        found = run(products, kept).double()
        figures[f"{name}_error"] = float((found.flatten()[: exact.numel()] - exact.flatten()).norm() / exact.norm())
        seconds = bench.seconds(lambda products=products, kept=kept: run(products, kept))  # type: ignore[misc]
        figures[f"{name}_tflops"] = bench.rate(flops, seconds)
        figures[f"{name}_ms"] = seconds * 1e3
    figures["fp8_over_bf16"] = figures["bf16_ms"] / figures["fp8_ms"]
    if bench.device == "cuda" and product != "wgrad":
        figures["fp8_product_alone_ms"] = _alone(bench, x if product == "fprop" else dy, w, ends, product) * 1e3
        figures["fp8_product_alone_over_bf16"] = figures["bf16_ms"] / figures["fp8_product_alone_ms"]
    return figures


def _alone(bench: Bench, x: torch.Tensor, w: torch.Tensor, ends: torch.Tensor | None, product: str) -> float:
    """The product on operands that are already scaled, as a fused producer would leave them."""
    from shoal_workloads.precision.blockwise import times_blocks
    from shoal_workloads.precision.fp8 import quantize_blocks
    from shoal_workloads.precision.kernels import grouped_product, quantize_tiles

    codes, blocks = quantize_blocks((w if product == "fprop" else w.transpose(-2, -1)).contiguous())
    tiles = quantize_tiles(x)
    if ends is not None:
        return bench.seconds(lambda: grouped_product(tiles, (codes, blocks), ends, torch.bfloat16))
    if getattr(bench.fp8, "scaled_mm", False):
        arguments = times_blocks(tiles, (codes, blocks))
        return bench.seconds(lambda: arguments.multiply(torch.bfloat16))
    one = torch.tensor([len(x)], dtype=torch.int32, device=x.device)
    weight = (codes.unsqueeze(0), blocks.unsqueeze(0))
    return bench.seconds(lambda: grouped_product(tiles, weight, one, torch.bfloat16))


def _exact(
    bench: Bench, product: str, x: torch.Tensor, w: torch.Tensor, dy: torch.Tensor, ends: torch.Tensor | None
) -> torch.Tensor:
    """The product of the first group in float64."""
    last = len(x) if ends is None else int(ends[0])
    weight = (w if ends is None else w[0]).double()
    x64, dy64 = x[:last].double(), dy[:last].double()
    return {"fprop": lambda: x64 @ weight.T, "dgrad": lambda: dy64 @ weight, "wgrad": lambda: dy64.T @ x64}[product]()


def attention(bench: Bench) -> dict[str, Any]:
    """MLA's core, causal, forward and backward, at V3's head widths; causal FLOPs are counted."""
    length, heads = (64, 2) if bench.tiny else (4096, 128)
    q, k = (bench.random(1, length, heads, 192).requires_grad_() for _ in range(2))
    v = bench.random(1, length, heads, 128).requires_grad_()
    scale = 192**-0.5
    dy = bench.random(1, length, heads, 128)
    forward = 2.0 * heads * length**2 / 2 * (192 + 128)

    def both() -> None:
        attend(q, k, v, scale).backward(dy)

    with torch.no_grad():
        alone = bench.seconds(lambda: attend(q, k, v, scale))
    together = bench.seconds(both)
    return {
        "tokens": length,
        "forward_ms": alone * 1e3,
        "forward_backward_ms": together * 1e3,
        "forward_tflops": bench.rate(forward, alone),
        "forward_backward_tflops": bench.rate(3.5 * forward, together),
    }


def layer(bench: Bench) -> dict[str, Any]:
    """One V3 MoE layer, d 7168, as many of the 256 experts as fit, 4096 tokens, forward and backward."""
    if bench.tiny:
        changes: dict[str, Any] = {"d_model": 256, "d_expert": 128, "n_experts": 8, "n_groups": 4, "topk_groups": 2}
        changes |= {"top_k": 4, "d_q": 128, "d_kv": 128, "d_ffn": 256, "n_heads": 2}
        tokens = 128
    else:
        free, _ = torch.cuda.mem_get_info()
        expert = 3 * 7168 * 2048
        fit = int((free - 16e9) / (expert * 6))  # bf16 weights and gradients, and room for FP8 copies
        count = max(32, min(256, fit // 32 * 32))
        changes = {"n_experts": count}
        tokens = 4096
    config = ModelConfig.from_preset("deepseek-v3", **changes)
    figures: dict[str, Any] = {"experts": config.n_experts, "tokens": tokens}
    for precision in ("bf16", "fp8"):
        _, products = choose(precision, bench.device)
        with torch.device(bench.device):
            moe = MoE(config, None).to(torch.bfloat16)
        for p in moe.parameters():
            torch.nn.init.normal_(p, std=0.006)
        for module in moe.modules():
            if hasattr(module, "products"):
                module.products = products
        moe.router.bias.zero_()
        x = bench.random(1, tokens, config.d_model).requires_grad_()
        dy = torch.ones_like(x)

        def run(moe: MoE = moe, x: torch.Tensor = x, dy: torch.Tensor = dy) -> None:
            moe(x)[0].backward(dy)

        seconds = bench.seconds(run)
        flops = 6.0 * tokens * count_parameters(config).moe_active
        figures[precision] = {
            "ms": seconds * 1e3,
            "tokens_per_second": tokens / seconds,
            "mfu": bench.share(flops, seconds),
            "kernels": _kernels(bench, run),
        }
        del moe, x, dy, run
        if bench.device == "cuda":
            torch.cuda.empty_cache()
    return figures


def _kernels(bench: Bench, run: Callable[[], None]) -> list[dict[str, Any]]:
    """The ten kernels that take longest."""
    on_gpu = bench.device == "cuda"
    activity = torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profile:
        run()
        bench.sync()

    def spent(event: Any) -> float:
        return float(event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e3

    rows = sorted(profile.key_averages(), key=spent, reverse=True)[:10]
    return [{"name": row.key[:80], "ms": spent(row), "calls": row.count} for row in rows]


def train_slice(bench: Bench) -> dict[str, Any]:
    """A slice of V3 of 2-4B parameters trained in BF16 and in FP8 on the same synthetic text."""
    steps = 3 if bench.tiny else 30
    if bench.tiny:
        changes: dict[str, Any] = {"vocab_size": 256, "d_model": 128, "n_layers": 2, "n_heads": 4, "d_head": 16}
        changes |= {"d_rope": 8, "d_v": 32, "d_kv": 128, "d_q": 128, "d_expert": 128, "d_ffn": 128, "n_experts": 8}
        changes |= {"top_k": 2, "n_groups": 4, "topk_groups": 2, "n_dense": 1, "mtp_depth": 0}
        batch, length = 2, 32
    else:
        changes = {"vocab_size": 32_768, "d_model": 2048, "n_layers": 10, "n_heads": 16, "d_expert": 1408}
        changes |= {"d_ffn": 10_240, "n_experts": 32, "top_k": 4, "n_dense": 1, "mtp_depth": 0}
        batch, length = 4, 4096
    config = ModelConfig.from_preset("deepseek-v3", **changes)
    count = count_parameters(config)
    out: dict[str, Any] = {"parameters": count.total, "active": count.active, "tokens_per_step": batch * length}
    for precision in ("bf16", "fp8"):
        out[precision] = _train(bench, config, precision, steps, batch, length)
    final = {name: statistics.mean(out[name]["losses"][-5:]) for name in ("bf16", "fp8")}
    out["fp8_loss_over_bf16"] = final["fp8"] / final["bf16"] - 1
    return out


def _train(bench: Bench, config: ModelConfig, precision: str, steps: int, batch: int, length: int) -> dict[str, Any]:
    dtype, products = choose(precision, bench.device)
    torch.manual_seed(0)
    with torch.device(bench.device):
        model = DeepSeekV3(config, None, dtype, products)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0) if p.dim() == 1 else p.normal_(0.0, 0.508 / math.sqrt(config.d_model))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    if bench.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    losses, times = [], []
    for step in range(steps):
        tokens = synthetic_text(config.vocab_size, batch, length + 1, step).to(bench.device)
        bench.sync()
        start = time.perf_counter()
        loss = model(tokens).lm / (batch * length)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times[len(times) // 3 :])
    return {
        "losses": losses,
        "tokens_per_second": batch * length / seconds,
        "mfu": bench.share(token_flops(config, length) * batch * length, seconds),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if bench.device == "cuda" else None,
    }


def synthetic_text(vocabulary: int, batch: int, length: int, seed: int) -> torch.Tensor:
    """Tokens that can be learnt: each follows from the one before by a fixed map, one in ten at random."""
    generator = torch.Generator().manual_seed(seed)
    follows = torch.randperm(vocabulary, generator=torch.Generator().manual_seed(12345))
    rows = [torch.randint(vocabulary, (batch,), generator=generator)]
    noise = torch.rand(length, batch, generator=generator) < 0.1
    anything = torch.randint(vocabulary, (length, batch), generator=generator)
    for i in range(1, length):
        rows.append(torch.where(noise[i], anything[i], follows[rows[-1]]))
    return torch.stack(rows, dim=1)


PARTS = {"gemm": gemm, "attention": attention, "layer": layer, "slice": train_slice}
"""Each returns plain figures. TFLOP/s and MFU are null in tiny mode, where they mean nothing."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small shapes; runs without a GPU")
    parser.add_argument("--parts", default=",".join(PARTS), help="which parts, separated by commas")
    parser.add_argument("--json", help="write the figures here as well")
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        parser.error("no GPU here: --tiny checks the code with small shapes")
    wanted = options.parts.split(",")
    if unknown := [name for name in wanted if name not in PARTS]:
        parser.error(f"no part {unknown[0]!r}: one of {', '.join(PARTS)}")
    bench = Bench(tiny=options.tiny)
    result: dict[str, Any] = {"about": bench.about()}
    for name in wanted:
        result[name] = PARTS[name](bench)
        if bench.device == "cuda":
            torch.cuda.empty_cache()
    text = json.dumps(result, indent=2)
    print(text)
    if options.json:
        with open(options.json, "w") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
