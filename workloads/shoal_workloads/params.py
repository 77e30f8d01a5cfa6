"""How many parameters a model has, in closed form, without building it.

The formulas are those of the architecture (report, section 2.1); the router biases are no parameters and are counted
apart. Widths: d model, q and c the latents of query and key-value, R the RoPE part, m an expert's hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass

from shoal_workloads.model.config import ModelConfig

__all__ = ["ParameterCount", "count_parameters"]


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a model and of its parts.

    Attributes:
        total: the main model, embedding and head included, MTP modules and router biases not.
        active: those that take part in one token, embedding and head included.
        embedding: one of the two vocabulary matrices.
        attention, norms: of one layer.
        dense_ffn: of one dense layer.
        expert: one routed expert.
        moe, moe_active: of one MoE layer with its router and shared experts; those of them that one token uses.
        mtp: all MTP modules' own.
        router_biases: of the main model, one an expert and MoE layer.
    """

    total: int
    active: int
    embedding: int
    attention: int
    norms: int
    dense_ffn: int
    expert: int
    moe: int
    moe_active: int
    mtp: int
    router_biases: int


def count_parameters(c: ModelConfig) -> ParameterCount:
    """The count of every part of the model `c`."""
    d, heads, d_qk = c.d_model, c.n_heads, c.d_head + c.d_rope
    query = d * heads * d_qk if c.d_q is None else d * c.d_q + c.d_q * heads * d_qk
    attention = query + d * (c.d_kv + c.d_rope) + c.d_kv * heads * (c.d_head + c.d_v) + heads * c.d_v * d
    norms = 2 * d + (c.d_q or 0) + c.d_kv
    expert = 3 * d * c.d_expert
    router = c.n_experts * d
    moe = (c.n_experts + c.n_shared) * expert + router
    moe_active = (c.top_k + c.n_shared) * expert + router
    dense = 3 * d * c.d_ffn
    embedding = c.vocab_size * d
    shared_by_both = 2 * embedding + d + c.n_layers * (attention + norms) + c.n_dense * dense
    return ParameterCount(
        total=shared_by_both + c.n_moe * moe,
        active=shared_by_both + c.n_moe * moe_active,
        embedding=embedding,
        attention=attention,
        norms=norms,
        dense_ffn=dense,
        expert=expert,
        moe=moe,
        moe_active=moe_active,
        mtp=c.mtp_depth * (2 * d * d + 3 * d + attention + norms + moe),
        router_biases=c.n_moe * c.n_experts,
    )
