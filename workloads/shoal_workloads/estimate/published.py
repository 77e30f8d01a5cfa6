"""How far the estimate is from what others have published of their own runs, and from steps of our own, figure by
figure.

Sources: `SOURCES`.

Of which rank table 4 tells is not published: ours is of rank 0, which has the loss, and so what is logged. How layers
were spread over stages is not published either: ours are split by FLOPs. The memory is this product's own engine's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from shoal_core.mesh import Mesh
from shoal_workloads.config import PretrainConfig
from shoal_workloads.estimate.cost import bill
from shoal_workloads.estimate.hardware import shipped
from shoal_workloads.estimate.layer import Layers, total
from shoal_workloads.estimate.recorded import recorded
from shoal_workloads.estimate.step import Cluster, Engine, Estimate, by_kind, estimate
from shoal_workloads.flops import token_flops
from shoal_workloads.model.config import ModelConfig
from shoal_workloads.parallel.schedule import build, simulate
from shoal_workloads.params import count_parameters

__all__ = ["DEEPSEEK_V3", "SOURCES", "Figure", "compared", "deepseek_v3"]

DEEPSEEK_V3: dict[str, Any] = {
    "model": {"preset": "deepseek-v3"},
    "data": {"corpus": "none", "seq_len": 4096},
    "batch": {"global_batch": 15_360},
    "optim": {"moments": "bf16"},
    "parallel": {"pp": 16, "ep": 64, "schedule": "dualpipe", "dispatch": "hierarchical", "recompute": True},
    "precision": "fp8",
    "device": "cuda",
}
DEEPSEEK = Engine(micro_batches=15_360 // (2048 // 16), head_in_backward=True)
"""Each of 128 chains has as many samples; here cells would be given 8 and 7 a worker. The loss has a backward pass of
its own in dualpipe.py."""
SOURCES = {
    "R": "DeepSeek-V3's technical report, arXiv 2412.19437",
    "I": "a step on 2,048 H800: Insights into DeepSeek-V3, arXiv 2505.09343, table 4",
    "P": "kernels of a forward and a backward at once, experts balanced, 2025-02: github.com/deepseek-ai/profile-data",
    "N": "DeepSeek-V3 in MXFP8, a GPU: Megatron Bridge, performance summary of 26.04 and 26.04.01",
    "D": "its orders with F 1, B 2, W 1, a pair 3: github.com/deepseek-ai/DualPipe",
    "H": "real processes of this product after a calibration there: benchmarks/plan_time.py",
}
TOKENS, PRICE = 14.8e12, 2.0
PP_BY_M = {(4, 8): 26, (8, 16): 54, (8, 20): 66, (16, 120): 374}
"""Makespans of DualPipe with F 1, B 2, W 1 and a pair of 3."""
OTHERS: tuple[tuple[str, int, dict[str, Any], float], ...] = (
    ("B200", 8, {"pp": 16, "ep": 8, "schedule": "1f1b"}, 2815),
    ("B200", 8, {"pp": 8, "ep": 32, "schedule": "interleaved", "virtual": 2}, 3328),
    ("GB200", 64, {"pp": 4, "ep": 64, "schedule": "interleaved", "virtual": 4}, 4256),
)
"""Of 256 GPUs, with 4,096 samples a step: which, how many are linked as in a node, layout, tokens a second of one."""


@dataclass(frozen=True)
class Figure:
    """`of`: which run or table it is one of; `fitted`: one of the figures that constants are fitted on, no test of
    anything; `least`: what is published is a bound, which ours must reach."""

    of: str
    name: str
    unit: str
    published: float
    ours: float
    source: str
    fitted: bool = False
    least: bool = False

    @property
    def error(self) -> float:
        """Relative."""
        return self.ours / self.published - 1


def deepseek_v3() -> Estimate:
    """Its main run: PP16, EP64 over 8 nodes, 2,048 H800."""
    config = PretrainConfig.model_validate(DEEPSEEK_V3)
    cluster = Cluster(256, 8, "H800", shipped()["H800"])
    return estimate(config, cluster, Mesh(16, 1, 64).workers, engine=DEEPSEEK)


def compared() -> list[Figure]:
    """Every figure that there is."""
    found = deepseek_v3()
    return [*whole_run(found), *its_step(found), *traced(found), *dualpipe(), *others(), *here()]


def whole_run(found: Estimate) -> Iterator[Figure]:
    of, model = "DeepSeek-V3 on 2,048 H800", found.config.model
    whole = bill(found, TOKENS, PRICE)
    main = ModelConfig.model_validate({**model.model_dump(), "mtp_depth": 0})
    peak = found.cluster.workers * found.cluster.hardware.tflops.bf16 * 1e12
    mfu = found.tokens * token_flops(main, 4096) / (found.seconds * peak)
    memory = found.cluster.hardware.memory_gb
    yield Figure(of, "parameters", "", 671_026_404_352, count_parameters(model).total, "R 4.2")
    yield Figure(of, "causal FLOPs a token", "GF", 250.45, token_flops(main, 4096) / 1e9, "R")
    yield Figure(of, "memory, at most", "GB", memory, found.memory.total / 1e9, "R 3.2")
    yield Figure(of, "tokens a day", "10^9", 272.80, found.tokens_per_second * 86400 / 1e9, "I")
    yield Figure(of, "causal MFU", "%", 38.94, 100 * mfu, "I")
    yield Figure(of, "hours a 10^12 tokens", "h", 180_000, whole.gpu_hours_per_trillion_tokens, "R 1")
    yield Figure(of, "hours of pre-training", "h", 2_664_000, whole.gpu_hours, "R 1")
    yield Figure(of, "dollars of it, at 2", "$", 5_328_000, whole.dollars, "R 1")


def its_step(found: Estimate) -> Iterator[Figure]:
    assert found.pipeline is not None
    of, step, own = "DeepSeek-V3, a step of rank 0", found.step, by_kind(found.pipeline.timeline, 0)
    commit = step["optimizer"] + step["sum across cells"] + step["gather and reduce"]
    yield Figure(of, "pairs of F and B", "s", 13.95, own["pair"], "I", fitted=True)
    yield Figure(of, "bubble", "s", 2.06, own["idle"] + step["waiting"], "I", fitted=True)
    yield Figure(of, "forward alone", "s", 1.13, own["F"], "I")
    yield Figure(of, "backward alone", "s", 1.99, own["B"] + own["I"], "I")
    yield Figure(of, "weights' gradients", "s", 0.48, own["W"], "I")
    yield Figure(of, "optimizer", "s", 0.29, commit, "I")
    yield Figure(of, "the step", "s", 19.926, found.seconds, "I")


def traced(found: Estimate) -> Iterator[Figure]:
    """A layer of experts forward and another backward, at once; the exchange is hidden."""
    of = "DeepSeek-V3, a traced layer, F and B"
    layers = Layers(found.config, found.mesh, found.cluster.hardware, found.cluster.slots)
    forward, inward = layers.forward(dense=False), layers.input(dense=False)
    parts = [forward, inward, layers.weight(dense=False)]
    yield Figure(of, "products", "ms", 17.44, 1e3 * sum(one["products"] for one in parts), "P")
    yield Figure(of, "attention, forward", "ms", 1.237, 1e3 * forward["attention"], "P")
    yield Figure(of, "attention, backward", "ms", 4.254, 1e3 * inward["attention"], "P")
    yield Figure(of, "all other kernels", "ms", 8.13, 1e3 * sum(one["element-wise"] for one in parts), "P")
    yield Figure(of, "all of it", "ms", 32.25, 1e3 * sum(total(one, but="exchange") for one in parts), "P")


def dualpipe() -> Iterator[Figure]:
    for (pp, count), makespan in PP_BY_M.items():
        ours = simulate(build("dualpipe", pp, count)).makespan
        yield Figure("DualPipe, a step", f"{pp} ranks, {count} batches", "F", makespan, ours, "D")


def others() -> Iterator[Figure]:
    """Runs of others' engines on other GPUs, which nothing is fitted on."""
    for name, slots, layout, published in OTHERS:
        parallel = DEEPSEEK_V3["parallel"] | layout
        config = PretrainConfig.model_validate(DEEPSEEK_V3 | {"batch": {"global_batch": 4096}, "parallel": parallel})
        found = estimate(config, Cluster(256 // slots, slots, name, shipped()[name]), config.parallel.pp * layout["ep"])
        shape = f"{name}, pp {layout['pp']}, ep {layout['ep']}"
        yield Figure("Others, 256 GPUs", shape, "tok/s", published, found.tokens_per_second / 256, "N")


def here() -> Iterator[Figure]:
    """Steps that were measured on a machine of our own."""
    kept = recorded()
    for model, layout, seconds, ours in kept.compared():
        yield Figure(f"A step of {model}, {kept.of}", layout, "s", seconds, ours, "H")
