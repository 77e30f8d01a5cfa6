"""Context extension: training goes on for a thousand steps at a longer context, twice (report, section 4.3).

YaRN on the decoupled part with s = 40 in both phases; first 8 times the context (V3: 32K), then 32 times (128K), with
as many fewer sequences a step, so that a step's tokens stay what they were; the last learning rate, and the router
biases as they are.
"""

from __future__ import annotations

from typing import Any, Literal

from shoal_workloads.config import PretrainConfig
from shoal_workloads.model.config import YarnConfig

__all__ = ["STEPS", "Phase", "extended"]

Phase = Literal["32k", "128k"]
TIMES: dict[str, int] = {"32k": 8, "128k": 32}
STEPS = 1000  # of each phase


def extended(config: PretrainConfig, phase: Phase) -> dict[str, Any]:
    """The `workload` section (less `path`) of phase `phase`, which goes on from a run of `config`: the pre-training, or
    the phase before. Data stay those of `config`; a step's samples are one micro-batch each."""
    yarn, times = config.model.yarn, TIMES[phase]
    original = config.data.seq_len if yarn is None else yarn.original_length
    batch = config.batch.global_batch * config.data.seq_len // original
    last = config.schedule.lr * 7.3 / 220 if yarn is None else config.schedule.lr
    section = config.model_dump(mode="json")
    section["model"]["yarn"] = YarnConfig(original_length=original).model_dump()
    section["data"]["seq_len"] = original * times
    section["batch"] = {"global_batch": max(1, batch // times), "micro_batch": 1}
    mtp = config.schedule.mtp_weight / (3 if yarn is None else 1)
    # Before 10T of the default 14.8T tokens, every schedule is constant.
    section["schedule"] = {"lr": last, "warmup_steps": 0, "gamma": 0.0, "mtp_weight": mtp}
    return section
