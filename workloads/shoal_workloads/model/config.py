"""The shape of a DeepSeek-V3 model, named as in the report (arXiv 2412.19437, section 2)."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from shoal_core.errors import UserError
from shoal_workloads.model.presets import PRESETS

__all__ = ["ModelConfig", "YarnConfig"]

Width = Annotated[int, Field(gt=0, le=1 << 40)]
"""Beyond it is a slip, or a file of somebody who means harm."""


class YarnConfig(BaseModel):
    """YaRN context extension of the decoupled RoPE part (report, section 4.3; arXiv 2309.00071)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    factor: float = Field(default=40.0, ge=1, description="s: the longest context over the original one")
    alpha: float = Field(default=1.0, gt=0, description="turns below which a dimension is wholly interpolated")
    beta: float = Field(default=32.0, gt=0, description="turns above which a dimension is left alone")
    original_length: int = Field(default=4096, gt=0, description="context the model was trained with")


class ModelConfig(BaseModel):
    """Every dimension of the model. `preset` fills what is not given; what is given wins."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    preset: str | None = None
    vocab_size: Width = Field(description="rows of the embedding and of the head")
    d_model: Width
    n_layers: int = Field(gt=0, le=1_000, description="L, dense layers included, MTP modules not")
    n_dense: int = Field(ge=0, description="first layers with a dense FFN")
    n_heads: Width
    d_head: Width = Field(description="d_h: a head's width of q and k without RoPE")
    d_rope: Width = Field(description="d_h^R: width of the decoupled RoPE part, one key head shared by all")
    d_v: Width = Field(description="a head's width of v")
    d_kv: Width = Field(description="d_c: rank of the joint key-value latent")
    d_q: Width | None = Field(default=None, description="d_c': rank of the query latent; none: a full-rank query")
    n_experts: int = Field(gt=0, le=65_536)
    n_shared: int = Field(
        ge=0, le=65_536, description="shared experts, computed as one FFN of n_shared times the width"
    )
    top_k: Width
    d_expert: Width = Field(description="an expert's hidden width")
    d_ffn: Width = Field(description="a dense layer's hidden width")
    n_groups: int = Field(default=1, gt=0, description="expert groups of node-limited routing")
    topk_groups: int = Field(default=1, gt=0, description="groups a token may use (M)")
    route_scale: float = 1.0
    mtp_depth: int = Field(default=1, ge=0, le=64, description="multi-token prediction modules (D)")
    init_std: float = Field(default=0.006, gt=0)
    norm_eps: float = Field(default=1e-6, gt=0)
    rope_theta: float = Field(default=1e4, gt=0)
    yarn: YarnConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("preset") is not None:
            name = data["preset"]
            if name not in PRESETS:
                raise ValueError(f"model.preset: no preset {name!r}; known: {', '.join(sorted(PRESETS))}")
            return {**PRESETS[name], **data}
        return data

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.n_dense > self.n_layers:
            raise ValueError(f"model.n_dense: {self.n_dense} exceeds n_layers {self.n_layers}")
        if self.d_rope % 2:
            raise ValueError(f"model.d_rope: {self.d_rope} is odd, RoPE turns pairs")
        if self.n_experts % self.n_groups:
            raise ValueError(f"model.n_groups: {self.n_experts} experts do not divide into {self.n_groups} groups")
        if self.topk_groups > self.n_groups:
            raise ValueError(f"model.topk_groups: {self.topk_groups} exceeds n_groups {self.n_groups}")
        kept = self.n_experts // self.n_groups * self.topk_groups
        if self.top_k > kept:
            raise ValueError(
                f"model.top_k: {self.top_k} exceeds the {kept} experts in the {self.topk_groups} kept of "
                f"{self.n_groups} groups"
            )
        return self

    @property
    def n_moe(self) -> int:
        """MoE layers of the main model."""
        return self.n_layers - self.n_dense

    @property
    def n_routers(self) -> int:
        """Routers of the main model and the MTP modules (each holds one MoE block)."""
        return self.n_moe + self.mtp_depth

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> ModelConfig:
        """The preset `name` with some fields replaced.

        Raises:
            UserError: no such preset.
        """
        if name not in PRESETS:
            raise UserError(f"model.preset: no preset {name!r}", f"one of {', '.join(sorted(PRESETS))}")
        return cls.model_validate({"preset": name, **overrides})
