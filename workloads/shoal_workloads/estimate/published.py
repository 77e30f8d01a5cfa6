"""How far the estimate is from what others have published of their own runs, figure by figure.

Sources: R, DeepSeek-V3's technical report (arXiv 2412.19437); I, "Insights into DeepSeek-V3" (arXiv 2505.09343, table
4): a step of 2,048 H800 in seconds. How the layers were spread over stages, and of which rank the table tells, is not
published: ours are split by FLOPs, and averages.
The memory is this product's own engine's: it keeps more for gradients of weights that wait than theirs must have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shoal_core.mesh import Mesh
from shoal_workloads.config import PretrainConfig
from shoal_workloads.estimate.cost import bill
from shoal_workloads.estimate.hardware import hardware
from shoal_workloads.estimate.step import Cluster, Estimate, estimate
from shoal_workloads.flops import token_flops
from shoal_workloads.model.config import ModelConfig
from shoal_workloads.parallel.schedule import build, simulate
from shoal_workloads.params import count_parameters

__all__ = ["DEEPSEEK_V3", "Figure", "compared", "deepseek_v3"]

DEEPSEEK_V3: dict[str, Any] = {
    "model": {"preset": "deepseek-v3"},
    "data": {"corpus": "none", "seq_len": 4096},
    "batch": {"global_batch": 15_360},
    "optim": {"moments": "bf16"},
    "parallel": {"pp": 16, "ep": 64, "schedule": "dualpipe", "dispatch": "hierarchical", "recompute": True},
    "precision": "fp8",
    "device": "cuda",
}
TOKENS, PRICE = 14.8e12, 2.0
PP_BY_M = {(4, 8): 26, (8, 16): 54, (8, 20): 66, (16, 120): 374}
"""Makespans of DualPipe with F 1, B 2, W 1 and a pair of 3."""


@dataclass(frozen=True)
class Figure:
    """`fitted`: one of the two figures that the two constants are fitted on, no test of anything."""

    name: str
    unit: str
    published: float
    ours: float
    source: str
    fitted: bool = False

    @property
    def error(self) -> float:
        """Relative."""
        return self.ours / self.published - 1


def deepseek_v3() -> Estimate:
    """Its main run: PP16, EP64 over 8 nodes, 2,048 H800."""
    config = PretrainConfig.model_validate(DEEPSEEK_V3)
    return estimate(config, Cluster(256, 8, "H800", hardware("H800")), Mesh(16, 1, 64).workers)


def compared() -> list[Figure]:
    """Every figure that there is."""
    found = deepseek_v3()
    model, phases, step = found.config.model, found.phases, found.step
    whole = bill(found, TOKENS, PRICE)
    main = ModelConfig.model_validate({**model.model_dump(), "mtp_depth": 0})
    peak = found.cluster.workers * found.cluster.hardware.tflops.bf16 * 1e12
    mfu = found.tokens * token_flops(main, 4096) / (found.seconds * peak)
    optimizer = step["optimizer"] + step["sum across cells"] + step["gather and reduce"]
    figures = [
        Figure("parameters", "", 671_026_404_352, count_parameters(model).total, "R 4.2"),
        Figure("FLOPs a token, causal, without MTP", "GF", 250.45, token_flops(main, 4096) / 1e9, "R, derived"),
        Figure("memory of a GPU, at most", "GB", 80, found.memory.total / 1e9, "R 3.2"),
        Figure("step: pairs of forward and backward", "s", 13.95, phases["pair"], "I", fitted=True),
        Figure("step: bubble", "s", 2.06, phases["idle"] + step["waiting"], "I", fitted=True),
        Figure("step: forward alone", "s", 1.13, phases["F"], "I"),
        Figure("step: backward alone", "s", 1.99, phases["B"] + phases["I"], "I"),
        Figure("step: gradients of weights alone", "s", 0.48, phases["W"], "I"),
        Figure("step: optimizer", "s", 0.29, optimizer, "I"),
        Figure("step", "s", 19.926, found.seconds, "I"),
        Figure("tokens a day", "10^9", 272.80, found.tokens_per_second * 86400 / 1e9, "I"),
        Figure("MFU, causal, without MTP", "%", 38.94, 100 * mfu, "I"),
        Figure("GPU-hours for 10^12 tokens", "h", 180_000, whole.gpu_hours_per_trillion_tokens, "R 1"),
        Figure("GPU-hours of pre-training", "h", 2_664_000, whole.gpu_hours, "R 1"),
        Figure("dollars of pre-training, at 2", "$", 5_328_000, whole.dollars, "R 1"),
    ]
    for (pp, count), makespan in PP_BY_M.items():
        name = f"DualPipe, {pp} ranks, {count} micro-batches"
        figures.append(Figure(name, "F", makespan, simulate(build("dualpipe", pp, count)).makespan, "its own code"))
    return figures
