"""The `workload` section of a job file: model, data, recipe and how a cell is laid out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shoal_core.store import local_folder
from shoal_workloads.model.config import ModelConfig
from shoal_workloads.model.recompute import Level
from shoal_workloads.precision.fp8 import TILE
from shoal_workloads.recipe.adamw import AdamWConfig
from shoal_workloads.recipe.batch import BatchConfig
from shoal_workloads.recipe.guard import GuardConfig
from shoal_workloads.recipe.schedule import ScheduleConfig
from shoal_workloads.routing import RoutingConfig

DispatchKind = Literal["flat", "hierarchical"]
ScheduleName = Literal["1f1b", "interleaved", "zb1p", "zbv", "dualpipev", "dualpipe"]

__all__ = [
    "BatchConfig",
    "DataConfig",
    "DispatchKind",
    "EvalConfig",
    "ParallelConfig",
    "PretrainConfig",
    "wrong_fields",
]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataConfig(_Section):
    """What is read."""

    corpus: str = Field(description="what `shoal data tokenize` wrote: a folder, or s3://bucket/prefix")
    heldout: str | None = Field(
        default=None, description="the same of text that is not trained on; none: no evaluation"
    )
    seq_len: int = Field(default=4096, gt=1, description="tokens a sample trains on")
    seed: int = Field(default=0, ge=0, description="of the order of samples")
    verify: Literal["size", "full"] | None = Field(
        default=None,
        description="before the run: every checksum, which reads the whole corpus (full), or sizes alone (size); none: "
        "full of a folder, size of a store. Each block is checked when it is first read in any case",
    )

    def reads_all_of(self, corpus: str) -> bool:
        """Whether all of `corpus` is read before the run."""
        return self.verify == "full" or (self.verify is None and local_folder(corpus) is not None)


class ParallelConfig(_Section):
    """How the workers of a cell share a model."""

    pp: int = Field(default=1, gt=0, description="pipeline ranks: with several, FSDP gives way to ZeRO-1")
    schedule: ScheduleName = Field(default="dualpipe", description="of the pipeline")
    virtual: int | None = Field(default=None, gt=1, description="stages a rank of schedule interleaved; none: 2")
    waiting: int | None = Field(
        default=None,
        ge=0,
        description="of a zero-bubble schedule, micro-batches whose gradients of weights may wait: fewer take less "
        "memory; none: as many as the schedule has",
    )
    ep: int = Field(default=1, gt=0, description="workers that share the experts; the rest of the cell is FSDP")
    dispatch: DispatchKind = Field(
        default="flat", description="how tokens get to experts: straight, or one copy a node and on from there"
    )
    ep_node: int | None = Field(default=None, gt=0, description="workers of an expert group on one node; none: all")
    rebalance: int = Field(
        default=0,
        ge=0,
        description="steps whose load experts are placed anew by, once after each change of the crew; 0: never",
    )
    timed_every: int = Field(
        default=50, ge=0, description="steps between two pipeline steps that are timed for the report; 0: none"
    )
    recompute: Level = Field(
        default=False,
        description="made again in backward: norms and MLA up-projections (true), the first product of feed-forward "
        "networks too (ffn), rows from other workers too, which travel again (dispatch)",
    )
    reshard_after_forward: bool = Field(default=False, description="gather parameters again in backward: less memory")
    reduce_once: bool | Literal["auto"] = Field(
        default="auto",
        description="without pipeline stages, add gradients up where they are made and reduce them once a step, not "
        "after each micro-batch: 4 bytes more for every parameter that is gathered; auto: on a GPU that has them",
    )


class EvalConfig(_Section):
    """Evaluation on held-out text."""

    samples: int = Field(default=64, gt=0, description="samples of the held-out corpus, from its start")


class PretrainConfig(_Section):
    """A pre-training run."""

    model: ModelConfig
    data: DataConfig
    batch: BatchConfig
    optim: AdamWConfig = AdamWConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    parallel: ParallelConfig = ParallelConfig()
    eval: EvalConfig = EvalConfig()
    guard: GuardConfig = GuardConfig()
    ema_decay: float | None = Field(default=None, gt=0, lt=1, description="keep an average of the parameters")
    balance_alpha: float = Field(default=1e-4, ge=0, description="factor of the sequence-wise balance loss")
    init: Literal["matrix", "element"] = Field(
        default="matrix",
        description="initial values are drawn each matrix whole by everybody who holds a part of it, or each element "
        "by itself (for large models; other values)",
    )
    precision: Literal["fp32", "bf16", "fp8"] = Field(
        default="fp32", description="of the linear layers; the master copy is float32; fp8: activations in bf16"
    )
    device: Literal["cpu", "cuda"] = "cpu"
    device_gb: float = Field(default=80.0, gt=0, description="memory of a GPU, 10^9 bytes, that a worker must fit in")
    routing: RoutingConfig = RoutingConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.model.mtp_depth >= self.data.seq_len:
            raise ValueError(f"model.mtp_depth: {self.model.mtp_depth} needs a longer data.seq_len")
        if self.precision == "fp8":
            _check_tiles(self.model)
        return self


def wrong_fields(error: ValidationError, named: Mapping[str, str] | None = None) -> str:
    """Which fields are wrong and why, in one line; their values, which may be as long as they like, are not said.
    named: what fields are called where the user wrote them, if otherwise than here."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    said = [(".".join(map(str, item["loc"])), item["msg"].removeprefix("Value error, ")) for item in found[:10]]
    return "; ".join(f"{(named or {}).get(where, where)}: {why}" if where else why for where, why in said)


def _check_tiles(c: ModelConfig) -> None:
    """Refuse widths that FP8's tiles of 128 do not divide.

    Raises:
        ValueError: the field, what was found and what was expected.
    """
    widths = {
        "d_model": c.d_model,
        "d_expert": c.d_expert,
        "d_ffn": c.d_ffn,
        "d_kv": c.d_kv,
        "d_q": c.d_q or TILE,
        "n_heads * d_v": c.n_heads * c.d_v,
    }
    for field, width in widths.items():
        if width % TILE:
            raise ValueError(f"model.{field}: {width} is no multiple of {TILE}, the width of FP8's tiles")
