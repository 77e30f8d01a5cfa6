"""The model's shape as Hugging Face's `config.json` of `DeepseekV3ForCausalLM`, and back."""

from __future__ import annotations

from typing import Any

from shoal_core.errors import UserError
from shoal_workloads.model.config import ModelConfig, YarnConfig

__all__ = ["BLOCK", "THEIRS", "from_hf_config", "scaled_blocks", "to_hf_config"]

ARCHITECTURE = "DeepseekV3ForCausalLM"

BLOCK = (128, 128)
"""Rows and columns of an FP8 weight that share a scale, where it is not said."""

# theirs -> ours, where both hold the same number
FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layers",
    "first_k_dense_replace": "n_dense",
    "num_attention_heads": "n_heads",
    "qk_nope_head_dim": "d_head",
    "qk_rope_head_dim": "d_rope",
    "v_head_dim": "d_v",
    "kv_lora_rank": "d_kv",
    "q_lora_rank": "d_q",
    "n_routed_experts": "n_experts",
    "n_shared_experts": "n_shared",
    "num_experts_per_tok": "top_k",
    "moe_intermediate_size": "d_expert",
    "intermediate_size": "d_ffn",
    "n_group": "n_groups",
    "topk_group": "topk_groups",
    "routed_scaling_factor": "route_scale",
    "initializer_range": "init_std",
    "rms_norm_eps": "norm_eps",
}

THEIRS = {
    **{ours: theirs for theirs, ours in FIELDS.items()},
    "mtp_depth": "num_nextn_predict_layers",
    "alpha": "beta_slow",
    "beta": "beta_fast",
    "original_length": "original_max_position_embeddings",
}
"""What our fields are called there."""

# What the architecture fixes: written, and refused on import where a checkpoint says otherwise.
FIXED: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "norm_topk_prob": True,
    "tie_word_embeddings": False,
    "rope_interleave": True,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
}


def to_hf_config(c: ModelConfig, *, max_positions: int, dtype: str, mtp: bool, eos: int | None) -> dict[str, Any]:
    """`config.json`. `max_positions`: the longest context; `dtype`: of the weights, torch's name; `mtp`: whether the
    MTP modules are in the checkpoint; `eos`: id of the token that ends a document."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": c.rope_theta}
    if c.yarn is not None:
        rope = {
            "rope_type": "yarn",
            "rope_theta": c.rope_theta,
            "factor": c.yarn.factor,
            "beta_slow": c.yarn.alpha,
            "beta_fast": c.yarn.beta,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": c.yarn.original_length,
        }
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "deepseek_v3",
        **{theirs: getattr(c, ours) for theirs, ours in FIELDS.items()},
        **FIXED,
        "num_key_value_heads": c.n_heads,
        "num_nextn_predict_layers": c.mtp_depth if mtp else 0,
        "max_position_embeddings": max_positions,
        "rope_theta": c.rope_theta,
        "rope_parameters": rope,
        "bos_token_id": None,
        "eos_token_id": eos,
        "torch_dtype": dtype,
    }


def from_hf_config(found: dict[str, Any], where: str) -> ModelConfig:
    """The shape that `config.json` describes; `where`: its path, for messages.

    Raises:
        UserError: another architecture, or a setting that the model does not have.
        ValidationError: a field is out of bounds or of another type: a number in quotes is no number.
    """
    remedy = "give a checkpoint of the DeepSeek-V3 architecture (DeepseekV3ForCausalLM)"
    named = found.get("architectures")
    if not isinstance(named, list) or ARCHITECTURE not in named:
        raise UserError(f"{where}: architectures is {named}, expected [{ARCHITECTURE!r}]", remedy)
    for name, value in FIXED.items():
        if found.get(name, value) != value:
            raise UserError(f"{where}: {name} is {found[name]!r}, expected {value!r}", remedy)
    missing = [name for name in FIELDS if name not in found and name not in ("q_lora_rank", "initializer_range")]
    if missing:
        raise UserError(f"{where}: no field {missing[0]!r}", remedy)
    fields = {ours: found[theirs] for theirs, ours in FIELDS.items() if theirs in found}
    at = "rope_parameters" if found.get("rope_parameters") else "rope_scaling"
    rope = found.get(at) or {}
    if not isinstance(rope, dict):
        raise UserError(f"{where}: {at} is no object but {type(rope).__name__}", remedy)
    fields["rope_theta"] = rope.get("rope_theta", found.get("rope_theta", 1e4))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "yarn":
        if lacking := [name for name in ("factor", "original_max_position_embeddings") if name not in rope]:
            raise UserError(f"{where}: no field {lacking[0]!r} in {at}", remedy)
        yarn = {
            "factor": rope["factor"],
            "alpha": rope.get("beta_slow", 1),
            "beta": rope.get("beta_fast", 32),
            "original_length": rope["original_max_position_embeddings"],
        }
        fields["yarn"] = YarnConfig.model_validate(yarn, strict=True)
        if not rope.get("mscale_all_dim") == rope.get("mscale") == 1.0:
            raise UserError(f"{where}: rope mscale other than 1.0 for both is not read", remedy)
    elif kind != "default":
        raise UserError(f"{where}: rope_type is {kind!r}, expected 'default' or 'yarn'", remedy)
    return ModelConfig.model_validate({**fields, "mtp_depth": found.get("num_nextn_predict_layers", 0)}, strict=True)


def scaled_blocks(found: dict[str, Any], where: str) -> tuple[int, int]:
    """Rows and columns of FP8 weights that share a scale, by `config.json`. where: its path, for messages.

    Raises:
        UserError: the weights are quantised in another form.
    """
    said = found.get("quantization_config")
    if not said:
        return BLOCK
    form = {key: said.get(key) for key in ("quant_method", "fmt")} if isinstance(said, dict) else said
    sizes = said.get("weight_block_size", list(BLOCK)) if isinstance(said, dict) else None
    if form not in ({"quant_method": "fp8", "fmt": "e4m3"}, {"quant_method": "fp8", "fmt": None}):
        raise UserError(
            f"{where}: quantization_config is {form}, expected quant_method 'fp8', fmt 'e4m3'",
            "convert it to bf16 first",
        )
    match sizes:
        case [int(rows), int(columns)] if rows > 0 and columns > 0:
            return rows, columns
    raise UserError(f"{where}: weight_block_size is {sizes!r}, expected [128, 128] or the like", "see its publisher")
