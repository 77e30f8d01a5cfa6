"""Every tensor of the model under Hugging Face's names, one expert at a time, and back.

Ours on the left, in the order of `Part`s that make it up; Hugging Face's on the right. MTP modules are stored as
further layers, with copies of embedding and head, and with the embedding first where the report's equation 21 has the
hidden state first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from shoal_workloads.model.config import ModelConfig

__all__ = ["Part", "parts_of"]


@dataclass(frozen=True)
class Part:
    """`theirs` equals `ours[index]` (all of it where `index` is empty), with `swap`ped halves of its columns."""

    theirs: str
    ours: str
    shape: tuple[int, ...]
    index: tuple[slice | int, ...] = ()
    swap: bool = False
    copy: bool = False  # of a tensor that stands elsewhere: written, and not read


def parts_of(c: ModelConfig, *, mtp: bool) -> Iterator[Part]:
    """All tensors of the checkpoint of a model `c`, with the MTP modules as layers L, L+1, ... if `mtp`.

    Our names are those of `DeepSeekV3.named_parameters()`, and `router_bias.I` for the bias of router I in the order of
    `Losses.loads`."""
    yield Part("model.embed_tokens.weight", "embedding.weight", (c.vocab_size, c.d_model))
    for i in range(c.n_layers):
        router = None if i < c.n_dense else i - c.n_dense
        yield from _block(c, f"model.layers.{i}", f"layers.{i}", router)
    yield Part("model.norm.weight", "norm.weight", (c.d_model,))
    yield Part("lm_head.weight", "head.weight", (c.vocab_size, c.d_model))
    for k in range(c.mtp_depth if mtp else 0):
        theirs, ours = f"model.layers.{c.n_layers + k}", f"mtp.{k}"
        yield Part(f"{theirs}.embed_tokens.weight", "embedding.weight", (c.vocab_size, c.d_model), copy=True)
        yield Part(f"{theirs}.enorm.weight", f"{ours}.embedding_norm.weight", (c.d_model,))
        yield Part(f"{theirs}.hnorm.weight", f"{ours}.hidden_norm.weight", (c.d_model,))
        yield Part(f"{theirs}.eh_proj.weight", f"{ours}.merge.weight", (c.d_model, 2 * c.d_model), swap=True)
        yield from _block(c, theirs, f"{ours}.block", c.n_moe + k)
        yield Part(f"{theirs}.shared_head.norm.weight", f"{ours}.norm.weight", (c.d_model,))
        yield Part(f"{theirs}.shared_head.head.weight", "head.weight", (c.vocab_size, c.d_model), copy=True)


def _block(c: ModelConfig, theirs: str, ours: str, router: int | None) -> Iterator[Part]:
    """A layer; `router`: its router's place in the order of loads, none in a dense layer."""
    d, d_qk = c.d_model, c.d_head + c.d_rope
    yield Part(f"{theirs}.input_layernorm.weight", f"{ours}.attention_norm.weight", (d,))
    attention = {"kv_a_proj_with_mqa": ("wkv_a", (c.d_kv + c.d_rope, d)), "kv_a_layernorm": ("kv_norm", (c.d_kv,))}
    attention["kv_b_proj"] = ("wkv_b", (c.n_heads * (c.d_head + c.d_v), c.d_kv))
    attention["o_proj"] = ("wo", (d, c.n_heads * c.d_v))
    if c.d_q is None:
        attention["q_proj"] = ("wq", (c.n_heads * d_qk, d))
    else:
        attention["q_a_proj"] = ("wq_a", (c.d_q, d))
        attention["q_a_layernorm"] = ("q_norm", (c.d_q,))
        attention["q_b_proj"] = ("wq_b", (c.n_heads * d_qk, c.d_q))
    for name, (mine, shape) in attention.items():
        yield Part(f"{theirs}.self_attn.{name}.weight", f"{ours}.attention.{mine}.weight", shape)
    yield Part(f"{theirs}.post_attention_layernorm.weight", f"{ours}.ffn_norm.weight", (d,))
    if router is None:
        yield from _swiglu(f"{theirs}.mlp", f"{ours}.ffn", d, c.d_ffn)
        return
    yield Part(f"{theirs}.mlp.gate.weight", f"{ours}.ffn.router.weight", (c.n_experts, d))
    yield Part(f"{theirs}.mlp.gate.e_score_correction_bias", f"router_bias.{router}", (c.n_experts,))
    for e in range(c.n_experts):
        yield from _swiglu(f"{theirs}.mlp.experts.{e}", f"{ours}.ffn.experts", d, c.d_expert, expert=e)
    if c.n_shared:
        yield from _swiglu(f"{theirs}.mlp.shared_experts", f"{ours}.ffn.shared", d, c.n_shared * c.d_expert)


def _swiglu(theirs: str, ours: str, d: int, hidden: int, expert: int | None = None) -> Iterator[Part]:
    """Gate, up and down; ours holds gate and up as one matrix, and the experts as one stack."""
    end = ".weight" if expert is None else ""
    first: tuple[int, ...] = () if expert is None else (expert,)
    yield Part(f"{theirs}.gate_proj.weight", f"{ours}.gate_up{end}", (hidden, d), (*first, slice(0, hidden)))
    yield Part(f"{theirs}.up_proj.weight", f"{ours}.gate_up{end}", (hidden, d), (*first, slice(hidden, 2 * hidden)))
    yield Part(f"{theirs}.down_proj.weight", f"{ours}.down{end}", (d, hidden), first)
