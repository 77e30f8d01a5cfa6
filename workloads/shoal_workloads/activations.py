"""How many bytes a layer keeps between forward and backward, in closed form, on a CPU with plain products.

What backward needs and nothing else: inputs of norms and linear layers, what the attention core and SwiGLU take, and
the routing. Weights are not counted. Widths: see `params`.
"""

from __future__ import annotations

from shoal_workloads.model.config import ModelConfig

__all__ = ["layer_bytes"]

FP32, INT64 = 4, 8


def layer_bytes(
    c: ModelConfig, sequences: int, length: int, *, dense: bool, recompute: bool = False, width: int = 2
) -> int:
    """Bytes kept of one layer for a micro-batch of `sequences` of `length` tokens. width: bytes of an activation, 2 in
    bf16. `recompute`: without the outputs of norms and of MLA's up-projections (report, section 3.2.3)."""
    tokens, heads = sequences * length, c.n_heads
    q, kv = heads * (c.d_head + c.d_rope), heads * (c.d_head + c.d_v)
    kept = 2 * c.d_model + c.d_kv + c.d_rope + heads * c.d_v  # both norms' inputs, the latent, attention's output
    cheap = 2 * c.d_model + c.d_kv + kv  # both norms' outputs, the latent's, keys and values
    norms = 3
    if c.d_q is None:
        kept += q
    else:
        kept, cheap, norms = kept + c.d_q, cheap + c.d_q + q, norms + 1
    kept += 2 * c.d_ffn if dense else 2 * (c.top_k + c.n_shared) * c.d_expert
    statistics = tokens * norms * FP32
    routing = 0 if dense else _routing_bytes(c, sequences, tokens)
    return tokens * width * (kept + (0 if recompute else cheap)) + statistics + routing


def _routing_bytes(c: ModelConfig, sequences: int, tokens: int) -> int:
    """Scores, two sums of them and the share of each expert in a sequence; chosen scores and gates, and three indices
    a choice: its expert, its row, and whose choice a row is; the load."""
    floats = tokens * (c.n_experts + 2 + 2 * c.top_k) + sequences * c.n_experts
    return FP32 * floats + INT64 * (3 * tokens * c.top_k + c.n_experts)
