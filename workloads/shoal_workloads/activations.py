"""How many bytes a layer keeps between forward and backward, in closed form.

What backward needs and nothing else: inputs of norms and linear layers, what the attention core and SwiGLU take, and
the routing. Weights are not counted. Rows of experts are counted as if every worker got as many as it sends. Widths:
see `params`.
"""

from __future__ import annotations

from dataclasses import dataclass

from shoal_workloads.model.config import ModelConfig
from shoal_workloads.model.recompute import Level
from shoal_workloads.precision.fp8 import TILE

__all__ = ["FP32", "INT64", "Manner", "layer_bytes", "layer_parts", "row_bytes", "waiting_attention", "waiting_bytes"]

FP32, INT32, INT64 = 4, 4, 8


@dataclass(frozen=True)
class Manner:
    """How a layer computes.

    Attributes:
        recompute: what is made again in backward.
        width: bytes of an activation.
        fp8: linear layers keep their inputs in tiles of FP8.
        fused: by a GPU's kernels, which keep a sum of the softmax for every query.
        elsewhere: experts are spread over workers, so that their rows come from others, and are no copies of what is
            kept here anyway.
    """

    recompute: Level = False
    width: int = 2
    fp8: bool = False
    fused: bool = False
    elsewhere: bool = False

    def linear(self, width: int) -> int:
        """Bytes a row of a linear layer's input, if it is kept for that alone."""
        return _tiles(width) if self.fp8 else width * self.width

    @property
    def blocks(self) -> bool:
        """Whether feed-forward networks are computed in blocks of rows."""
        return not self.fused and not self.fp8

    @property
    def copies(self) -> bool:
        """Whether rows of experts that are copies are kept: by FP8 as a CPU emulates it, with nothing made again."""
        return self.fp8 and not self.fused and not self.recompute

    @property
    def keeps_inner(self) -> bool:
        """Whether the input of SwiGLU's activation is kept."""
        return self.recompute not in ("ffn", "dispatch")


def layer_bytes(c: ModelConfig, sequences: int, length: int, *, dense: bool, manner: Manner, load: float = 1.0) -> int:
    """Bytes kept of one layer for a micro-batch of `sequences` of `length` tokens."""
    return sum(layer_parts(c, sequences, length, dense=dense, manner=manner, load=load).values())


def layer_parts(
    c: ModelConfig, sequences: int, length: int, *, dense: bool, manner: Manner, load: float = 1.0
) -> dict[str, int]:
    """The same by what it is of: attention with both norms, feed-forward networks, rows of experts, routing. `load`:
    rows that arrive at the experts here, of the mean."""
    tokens = sequences * length
    if dense:
        return {"attention": tokens * _attention(c, manner), "feed-forward": tokens * _ffn(c, c.d_ffn, manner)}
    rows = int(load * tokens * c.top_k)
    return {
        "attention": tokens * _attention(c, manner),
        "feed-forward": tokens * _beside(c, manner) + rows * _inner(c, manner),
        "rows": rows * _row(c, manner),
        "routing": _routing(c, sequences, tokens, manner, load),
    }


def row_bytes(c: ModelConfig, manner: Manner) -> int:
    """Bytes kept of a row of routed experts."""
    return _inner(c, manner) + _row(c, manner)


def waiting_bytes(c: ModelConfig, *, dense: bool, manner: Manner, load: float = 1.0) -> int:
    """Bytes a token that a layer holds between the gradient of its input and those of its weights: inputs of its linear
    layers, and the gradients of their outputs. `load`: as in `layer_parts`."""
    one = c.d_ffn if dense else c.n_shared * c.d_expert
    experts = 0 if dense else load * c.top_k * _waiting_row(c, manner)
    return int(waiting_attention(c, manner) + _waiting_ffn(c, one, manner) + experts)


def waiting_attention(c: ModelConfig, manner: Manner) -> int:
    """What of that is attention's."""
    query, kv, out = (c.n_heads * width for width in (c.d_head + c.d_rope, c.d_head + c.d_v, c.d_v))
    inputs = [c.d_model, c.d_q or 0, c.d_kv, out]
    outputs = [query, c.d_q or 0, kv, c.d_kv + c.d_rope, c.d_model]
    # In FP8 both products of attention's input have their own, and its output is kept in the bits of a float16.
    more = manner.linear(c.d_model) + out if manner.fp8 else 0
    return sum(map(manner.linear, inputs)) + more + manner.width * sum(outputs)


def _waiting_ffn(c: ModelConfig, hidden: int, manner: Manner) -> int:
    """Bytes a token of a dense network: its input and the gradient of its output; of both products what is between."""
    between = manner.width * 4 * hidden if manner.blocks else manner.linear(hidden) + manner.width * 2 * hidden
    return manner.linear(c.d_model) + manner.width * c.d_model + between


def _waiting_row(c: ModelConfig, manner: Manner) -> int:
    """Bytes a row of routed experts. In blocks copies are made once more, by indices that wait, with the gates."""
    if not manner.blocks:
        return _waiting_ffn(c, c.d_expert, manner)
    rows = 2 * c.d_model if manner.elsewhere else 0
    return manner.width * (4 * c.d_expert + rows) + 3 * INT64 + 2 * FP32


def _attention(c: ModelConfig, manner: Manner) -> int:
    """Bytes a token, from the norm before attention to the one before the feed-forward network."""
    width, heads = manner.width, c.n_heads
    query, kv, out = heads * (c.d_head + c.d_rope), heads * (c.d_head + c.d_v), heads * c.d_v
    norms = 3 if c.d_q is None else 4
    kept = width * (2 * c.d_model + c.d_kv + c.d_rope + out) + norms * FP32  # norms' inputs; attention's output
    kept += width * (query if c.d_q is None else c.d_q)
    if manner.fused:
        kept += heads * FP32
    if manner.fp8 and not manner.fused:  # attention's output in the bits of a float16; a fused kernel keeps its own
        kept += FP32 * -(-out // TILE)
    if not manner.recompute:
        kept += width * (kv + (query if c.d_q else 0))
        kept += (2 if manner.fp8 else 1) * manner.linear(c.d_model)  # in FP8 each linear layer keeps its own copy
        kept += manner.linear(c.d_kv) + (manner.linear(c.d_q) if c.d_q else 0)
    return kept


def _ffn(c: ModelConfig, hidden: int, manner: Manner) -> int:
    """Bytes a token of a dense network; its input is the norm's output."""
    x = 0 if manner.recompute else manner.linear(c.d_model)
    return x + (manner.linear(2 * hidden) if manner.keeps_inner else 0)


def _beside(c: ModelConfig, manner: Manner) -> int:
    """Bytes a token of shared experts and of the router's input."""
    router = 0 if manner.recompute else manner.width * c.d_model
    return router + (manner.linear(2 * c.n_shared * c.d_expert) if manner.keeps_inner else 0)


def _inner(c: ModelConfig, manner: Manner) -> int:
    """Bytes a row of routed experts."""
    return manner.linear(2 * c.d_expert) if manner.keeps_inner else 0


def _row(c: ModelConfig, manner: Manner) -> int:
    """Bytes of a row that experts take."""
    kept = manner.recompute != "dispatch" if manner.elsewhere else manner.copies
    return manner.linear(c.d_model) if kept else 0


def _routing(c: ModelConfig, sequences: int, tokens: int, manner: Manner, load: float) -> int:
    """Scores, two sums of them and the share of each expert in a sequence; chosen scores and gates, and three indices
    a choice: its expert, its row, and whose choice a row is; the load. Where rows travel, the last two of choices that
    leave and of rows that come (a dispatch by nodes keeps some more, far less than a row)."""
    choices = tokens * c.top_k
    floats = tokens * (c.n_experts + 2) + 2 * choices + sequences * c.n_experts
    ends = INT32 * c.n_experts if manner.fused else 0
    arrived = 2 * int(load * choices) if manner.elsewhere else 0
    return FP32 * floats + INT64 * (3 * choices + arrived + c.n_experts) + ends


def _tiles(width: int) -> int:
    """Bytes of a row in FP8 with a scale for each tile of 128."""
    return width + FP32 * -(-width // TILE)
