"""The parts of `gpu_session.py`: each takes a `Bench` and returns plain figures, or fails with what it found wrong."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

import gpu_check
from gpu_check import Bench, synthetic_text
from shoal_workloads.config import PretrainConfig
from shoal_workloads.model.mla import attend
from shoal_workloads.precision.choose import choose
from shoal_workloads.precision.fp8 import EmulatedFp8
from shoal_workloads.precision.products import Products
from shoal_workloads.pretrain import Pretrain
from shoal_workloads.replica import PretrainShard

__all__ = ["PARTS", "Bench", "OverGloo"]


def versions(bench: Bench) -> dict[str, Any]:
    """What is there."""
    found = {**bench.about(), "python": sys.version.split()[0], "cuda": torch.version.cuda}
    if bench.device != "cuda":
        return found
    smi = subprocess.run(["nvidia-smi", "-q", "-d", "ECC,MEMORY"], capture_output=True, text=True, check=False)
    return found | {
        "nccl": list(torch.cuda.nccl.version()),
        "cudnn": torch.backends.cudnn.version(),
        "capability": list(torch.cuda.get_device_capability()),
        "memory": torch.cuda.get_device_properties(0).total_memory,
        "nvidia_smi": smi.stdout[-3000:],
    }


# ---- training: the platform's own calls


class Text:
    """Samples of synthetic text, in the place of a corpus in a folder."""

    far, waits, waited = False, 0, 0.0

    def __init__(self, vocabulary: int, length: int, device: str) -> None:
        self._vocabulary, self._length, self._device = vocabulary, length, device

    def tokens(self, ids: Sequence[int]) -> torch.Tensor:
        rows = [synthetic_text(self._vocabulary, 1, self._length + 1, place) for place in ids]
        return torch.cat(rows).to(self._device)

    def expect(self, coming: Iterable[Sequence[int]]) -> None:
        """All of it is here."""


class OverGloo(Pretrain):
    """Pre-training on synthetic text whose sums travel over gloo wherever it computes, so that two processes may share
    one GPU, which NCCL refuses. A file that $GPU_SESSION_FLAG names breaks the device of who finds it first."""

    @property
    def runs_on(self) -> str:
        return "cpu"

    def build(self, seed: int) -> PretrainShard:
        return self.prepared(super().build(seed))

    def build_to_fill(self, seed: int) -> PretrainShard:
        return self.prepared(super().build_to_fill(seed))

    def prepared(self, shard: PretrainShard) -> PretrainShard:
        """With text to read, and a look at the flag before each part of a step."""
        config = self.config
        text = Text(config.model.vocab_size, config.data.seq_len, config.device)
        shard._train = text  # type: ignore[assignment]
        flag, accumulate = os.environ.get("GPU_SESSION_FLAG", ""), shard.accumulate

        def break_then_accumulate(micro_batches: Sequence[Sequence[int]]) -> None:
            with contextlib.suppress(FileNotFoundError):
                if flag:
                    os.unlink(flag)
                    torch._assert_async(torch.zeros(1, device=config.device))
            accumulate(micro_batches)

        shard.accumulate = break_then_accumulate  # type: ignore[method-assign]
        return shard


def section(device: str, precision: str, *, tiny: bool) -> dict[str, Any]:
    """A small model, of widths that FP8 takes."""
    widths = {"d_model": 128, "n_layers": 3, "n_heads": 2, "d_head": 64, "d_rope": 32, "d_v": 64, "d_kv": 128}
    widths |= {"d_q": 128, "n_experts": 8, "d_expert": 128, "d_ffn": 256, "top_k": 2, "vocab_size": 256}
    if tiny:
        widths |= {"n_layers": 2, "n_experts": 2, "n_groups": 1, "topk_groups": 1, "top_k": 1, "mtp_depth": 0}
    return {
        "model": {"preset": "demo", **widths},
        "data": {"corpus": "synthetic", "seq_len": 16 if tiny else 64},
        "batch": {"global_batch": 2 if tiny else 4, "micro_batch": 1},
        "schedule": {"budget": 100_000, "lr": 1e-3, "warmup_steps": 0},
        "ema_decay": 0.9,
        "precision": precision,
        "device": device,
    }


def three_commits(device: str, precision: str, *, tiny: bool) -> list[float]:
    """Losses of three steps, through every call that the platform makes."""
    workload = OverGloo(PretrainConfig.model_validate(section(device, precision, tiny=tiny)))
    workload.warm_up(1)
    shard, losses = workload.build(0), []
    for step in range(3):
        first, last = workload.samples(step)
        shard.begin(step)
        shard.accumulate([[place] for place in range(first, last)])
        total = shard.sums()
        losses.append(shard.commit(total, shard.stats(), shard.norm_sq(total))["loss"])
    return losses


def commits(bench: Bench) -> dict[str, Any]:
    """Warm-up and three commits here and on the CPU; the losses must agree to 2%."""
    found: dict[str, Any] = {}
    for precision in ("bf16", "fp8"):
        here, there = (three_commits(device, precision, tiny=bench.tiny) for device in (bench.device, "cpu"))
        found[precision] = {"here": here, "cpu": there}
        apart = max(abs(a / b - 1) for a, b in zip(here, there, strict=True))
        assert apart < 0.02, f"{precision}: losses differ by {apart:.1%}: {found}"
    return found


# ---- products and attention


def products(bench: Bench) -> dict[str, Any]:
    """FP8 products here against the emulation, with groups that are empty, of one row and of odd sizes, in memory
    that holds NaN."""
    torch.manual_seed(0)
    rows, width, hidden = [0, 1, 37, 128, 0, 90], 256, 384
    ends = torch.tensor(rows, device=bench.device).cumsum(0).to(torch.int32)
    total = int(ends[-1])
    x, dy = bench.random(total, width), bench.random(total, hidden)
    w = bench.random(len(rows), hidden, width)
    emulated, here = EmulatedFp8(), choose("fp8", bench.device)[1]
    found: dict[str, Any] = {"here": here.name}
    for name, groups, weight in (("grouped", ends, w), ("dense", None, w[0])):
        poison(bench)
        ours = all_three(here, x, dy, weight, groups)
        reference = all_three(emulated, x, dy, weight, groups)
        for product, (a, b) in zip(("fprop", "dgrad", "wgrad"), zip(ours, reference, strict=True), strict=True):
            apart = float((a.double() - b.double()).norm() / b.double().norm())
            found[f"{name}_{product}"] = apart
            assert apart < 0.01, f"{name} {product}: {apart:.3g} from the emulation"
    return found


def all_three(
    products: Products, x: torch.Tensor, dy: torch.Tensor, w: torch.Tensor, ends: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    kept = products.cache(x)
    return (
        products.fprop(kept, w, ends, torch.float32),
        products.dgrad(dy, w, ends),
        products.wgrad(dy, kept, ends, torch.float32),
    )


def poison(bench: Bench) -> None:
    """What is allocated next and not written to holds NaN."""
    if bench.device == "cuda":
        held = [torch.full((2**20,), float("nan"), device="cuda") for _ in range(16)]
        del held


def attention(bench: Bench) -> dict[str, Any]:
    """Which kernels take MLA's core at widths (192, 128), against padded values; backward twice must agree in bits."""
    length, heads = (64, 2) if bench.tiny else (4096, 16)
    q, k = (bench.random(1, length, heads, 192).requires_grad_() for _ in range(2))
    v = bench.random(1, length, heads, 128).requires_grad_()
    dy = bench.random(1, length, heads, 128)

    def gradients() -> list[torch.Tensor]:
        for tensor in (q, k, v):
            tensor.grad = None
        attend(q, k, v, 192**-0.5).backward(dy)
        return [tensor.grad.clone() for tensor in (q, k, v) if tensor.grad is not None]

    first, again = gradients(), gradients()
    same = all(torch.equal(a, b) for a, b in zip(first, again, strict=True))

    def padded() -> None:
        attend(q, k, F.pad(v, (0, 64)), 192**-0.5)[..., :128].backward(dy)

    return {
        "backward_twice_equal": same,
        "ms": bench.seconds(gradients) * 1e3,
        "padded_ms": bench.seconds(padded) * 1e3,
        "kernels": kernels(bench, gradients),
    }


# ---- NCCL


def nccl(bench: Bench) -> dict[str, Any]:
    """Groups of one made, used and aborted or freed; memory and descriptors must not grow with them."""
    from shoal.testing.fakenccl import transport as imitated
    from shoal.timeouts import Timeouts
    from shoal.worker.nccl import on_cuda

    times, count = Timeouts(20.0), 10 if bench.tiny else 200
    carrier = on_cuda(times) if bench.device == "cuda" else imitated(times)
    store, before, slowest = dist.HashStore(), (0, 0), 0.0
    for number in range(count):
        began = time.monotonic()
        group = carrier.make(dist.PrefixStore(str(number), store), 0, 1)
        until(group.ready)
        tensor = torch.ones(1024, device=bench.device)
        pending = group.sum(tensor)
        if number % 2:
            until(pending.done)
            pending.finish()
            assert float(tensor.sum()) == 1024.0
        group.abandon()
        group.free()
        slowest = max(slowest, time.monotonic() - began)
        if number == count // 2:
            before = used(bench)
    time.sleep(1.0)  # threads that free are done
    memory, descriptors = (now - then for now, then in zip(used(bench), before, strict=True))
    return {"groups": count, "slowest_s": slowest, "memory_grew": memory, "descriptors_grew": descriptors}


def until(done: Callable[[], bool]) -> None:
    while not done():
        time.sleep(0.001)


def used(bench: Bench) -> tuple[int, int]:
    """Bytes of the device in use, by whomever; descriptors of this process."""
    free, total = torch.cuda.mem_get_info() if bench.device == "cuda" else (0, 0)
    return total - free, len(os.listdir("/proc/self/fd"))


# ---- whole runs


def runs(bench: Bench) -> dict[str, Any]:
    """Two processes and a spare on one GPU over gloo: a worker is killed and healed; the run is stopped, and resumed
    with its averages; on a GPU a device assert heals too. Losses are those of one process that trains alone."""
    from shoal.testing import preload

    preload("gpu_parts")
    with tempfile.TemporaryDirectory() as folder, flagged(Path(folder) / "flag") as flag:
        return lived(bench, Path(folder), flag)


def lived(bench: Bench, folder: Path, flag: Path) -> dict[str, Any]:
    from shoal.testing import lab, outcome

    nodes = {"n0": 1, "n1": 1, "n2": 1}
    precision, more = ("fp32", 20) if bench.tiny else ("bf16", 500)
    settings: dict[str, Any] = {"cells": 2, "workers_per_cell": 1, "snapshots": {"every": 5}}
    settings["workload"] = {"path": "gpu_parts:OverGloo", **section(bench.device, precision, tiny=bench.tiny)}
    with lab(folder, nodes, steps=100_000, **settings) as one:
        one.full(5, spares=1)
        one.kill(one.members(1)[0])
        one.full(5)
        one.stop(save=True)
        stopped = one.finished()
    with lab(folder, nodes, resume=True, steps=stopped["steps"] + more, **settings) as one:
        if bench.device == "cuda":
            one.full(2, spares=1)
            flag.touch()
            one.until(lambda: not flag.exists())
        done = one.finished()
        deaths = [event["how"] for event in one.events("death")]
        rungs = [event["rung"] for event in one.events("recovery")]
        losses, state = [line["loss"] for line in one.steps()], outcome(one.path).state
    assert (stopped["status"], done["status"], done["steps_lost"]) == ("stopped", "done", 0), (stopped, done)
    assert "heal" in rungs, rungs
    average, model = (next(t for name, t in state.items() if name.startswith(f"{kind}.")) for kind in ("ema", "model"))
    assert not torch.equal(average, model)
    return {"steps": len(losses), "loss_first": losses[0], "loss": losses[-1], "deaths": deaths, "rungs": rungs}


@contextlib.contextmanager
def flagged(path: Path) -> Iterator[Path]:
    """What `OverGloo` looks for, in the environment of processes that are begun here."""
    os.environ["GPU_SESSION_FLAG"] = str(path)
    here = str(Path(__file__).parent)
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = f"{here}{os.pathsep}{before}"
    try:
        yield path
    finally:
        del os.environ["GPU_SESSION_FLAG"]
        os.environ["PYTHONPATH"] = before


# ---- speed


def gemm_and_layer(bench: Bench) -> dict[str, Any]:
    """`gpu_check`'s."""
    return {"gemm": gpu_check.gemm(bench), "layer": gpu_check.layer(bench)}


def profile(bench: Bench) -> dict[str, Any]:
    """Where the time of a warm-up and three commits in FP8 goes."""
    precision = "bf16" if bench.tiny else "fp8"
    return {"kernels": kernels(bench, lambda: three_commits(bench.device, precision, tiny=bench.tiny))}


def kernels(bench: Bench, work: Callable[[], Any]) -> list[dict[str, Any]]:
    """The ten that take longest."""

    def run() -> None:
        work()

    return gpu_check._kernels(bench, run)


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "versions": versions,
    "commits": commits,
    "products": products,
    "attention": attention,
    "nccl": nccl,
    "runs": runs,
    "gemm_and_layer": gemm_and_layer,
    "profile": profile,
}
