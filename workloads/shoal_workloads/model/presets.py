"""Named model shapes: the report's three (facts: sections 4.2 and 4.5), and small ones made from one dial."""

from __future__ import annotations

from typing import Any

__all__ = ["PRESETS", "from_dial"]


def from_dial(d_model: int, n_layers: int, n_experts: int = 16, vocab_size: int = 4096) -> dict[str, Any]:
    """A small V3-shaped model from its width: heads of 32+16, latents of d/2, experts of d/2, four of which and a
    shared one are active, a dense first layer as wide as the active experts, and V3's ratio of init std to width
    (0.006 at 7168 is 0.508 / sqrt(d))."""
    return {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "n_layers": n_layers,
        "n_dense": 1,
        "n_heads": max(2, d_model // 32),
        "d_head": 32,
        "d_rope": 16,
        "d_v": 32,
        "d_kv": d_model // 2,
        "d_q": d_model // 2,
        "n_experts": n_experts,
        "n_shared": 1,
        "top_k": 4,
        "d_expert": d_model // 2,
        "d_ffn": 5 * d_model // 2,
        "n_groups": 4,
        "topk_groups": 2,
        "route_scale": 2.5,
        "mtp_depth": 1,
        "init_std": round(0.508 / d_model**0.5, 4),
    }


_V3 = {
    "vocab_size": 129_280,
    "d_model": 7168,
    "n_layers": 61,
    "n_dense": 3,
    "n_heads": 128,
    "d_head": 128,
    "d_rope": 64,
    "d_v": 128,
    "d_kv": 512,
    "d_q": 1536,
    "n_experts": 256,
    "n_shared": 1,
    "top_k": 8,
    "d_expert": 2048,
    "d_ffn": 18_432,
    "n_groups": 8,
    "topk_groups": 4,
    "route_scale": 2.5,
    "mtp_depth": 1,
    "init_std": 0.006,
}

# The ablation models' route scale is not published: 1.
_SMALL = {
    **_V3,
    "vocab_size": 102_400,
    "d_model": 2048,
    "n_layers": 27,
    "n_dense": 1,
    "n_heads": 16,
    "d_q": None,
    "n_experts": 64,
    "n_shared": 2,
    "top_k": 6,
    "d_expert": 1408,
    "d_ffn": 10_944,
    "n_groups": 1,
    "topk_groups": 1,
    "route_scale": 1.0,
}

_LARGE = {
    **_V3,
    "d_model": 5120,
    "n_layers": 60,
    "n_experts": 160,
    "n_shared": 2,
    "top_k": 6,
    "d_expert": 1536,
    "d_ffn": 12_288,
    "topk_groups": 3,
    "route_scale": 1.0,
}

PRESETS: dict[str, dict[str, Any]] = {
    "deepseek-v3": _V3,
    "v3-small-16b": _SMALL,
    "v3-large-230b": _LARGE,
    "laptop-1m": from_dial(d_model=64, n_layers=4),
    "demo": from_dial(d_model=128, n_layers=4),
    "laptop-10m": from_dial(d_model=256, n_layers=5),
    "laptop-100m": from_dial(d_model=512, n_layers=7, n_experts=32, vocab_size=16_384),
}
