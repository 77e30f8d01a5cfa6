"""What is there for a moment while a layer or the head computes on a GPU, in closed form: the largest of a few moments.

Bytes are counted from what was held when the pass of this layer began, so what forward comes to keep, and what backward
had, is in it. Temporaries within an operator of torch are not. Widths: see `params`; what stays: `activations`.
"""

from __future__ import annotations

from dataclasses import dataclass

from shoal_workloads.activations import (
    FP32,
    Manner,
    layer_bytes,
    layer_parts,
    row_bytes,
    waiting_attention,
    waiting_bytes,
)
from shoal_workloads.model.config import ModelConfig
from shoal_workloads.model.loss import ROWS, ROWS_ON_GPU
from shoal_workloads.params import count_parameters

__all__ = ["Layer", "head_forward"]


@dataclass(frozen=True)
class Layer:
    """A layer of `sequences` of `length` tokens. `load`: rows that arrive at the experts here, of the mean; `held`:
    experts here."""

    model: ModelConfig
    sequences: int
    length: int
    dense: bool
    manner: Manner
    load: float
    held: int

    @property
    def tokens(self) -> int:
        return self.sequences * self.length

    @property
    def rows(self) -> int:
        """Of the experts here."""
        return 0 if self.dense else int(self.load * self.tokens * self.model.top_k)

    @property
    def kept(self) -> int:
        return layer_bytes(
            self.model, self.sequences, self.length, dense=self.dense, manner=self.manner, load=self.load
        )

    @property
    def waits(self) -> int:
        return self.tokens * waiting_bytes(self.model, dense=self.dense, manner=self.manner, load=self.load)

    @property
    def query(self) -> int:
        """Numbers of all heads' queries of a token."""
        return self.model.n_heads * (self.model.d_head + self.model.d_rope)

    @property
    def out(self) -> int:
        return self.model.n_heads * self.model.d_v

    @property
    def kv(self) -> int:
        return self.model.n_heads * (self.model.d_head + self.model.d_v)

    @property
    def hidden(self) -> int:
        """Width of what all tokens take: the dense network, or the shared experts together."""
        return self.model.d_ffn if self.dense else self.model.n_shared * self.model.d_expert

    @property
    def copied(self) -> bool:
        """Whether the rows of experts are made again in backward."""
        return not self.manner.elsewhere or self.manner.recompute == "dispatch"

    def forward(self) -> int:
        """Feed-forward networks at their end: what is made again is let go of with the layer."""
        c, manner = self.model, self.manner
        made = 2 * self.query  # rotated queries and keys
        if manner.recompute:
            made += 2 * c.d_model + (c.d_q or 0) + c.d_kv + self.kv
        inner = 0 if manner.keeps_inner else 2  # times the hidden width
        if self.dense:
            return self.kept + manner.width * self.tokens * (made + c.d_model + (1 + inner) * self.hidden)
        # Rows as they came and by expert; what comes of them, beside what it is made of, or sorted and added up.
        rows = self.rows * c.d_model * (manner.elsewhere + self.copied)
        beside = self.tokens * c.d_model  # shared experts come first where rows travel
        middle = self.rows * (c.d_model + (2 + inner) * c.d_expert) + beside * manner.elsewhere
        end = self.rows * 2 * c.d_model + beside
        return self.kept + manner.width * (self.tokens * made + rows + max(middle, end))

    def backward(self) -> int:
        """Of the routed experts, of what all tokens take, and of the attention core, with gradients of weights."""
        return max(self._experts(), self._ffn(), self._core())

    def inputs(self) -> int:
        """The same without gradients of weights, which wait."""
        c, manner = self.model, self.manner
        width = c.d_ffn if self.dense else c.d_expert
        rows = self.tokens if self.dense else self.rows
        again = (bool(manner.recompute) if self.dense else self.copied) * c.d_model
        again += 0 if manner.keeps_inner else 2 * width
        ffn = self.kept + manner.width * (rows * (2 * c.d_model + 3 * width + again) + self.tokens * c.d_model)
        later = self.waits - self.tokens * waiting_attention(c, manner)
        past = self.tokens * c.d_model * manner.width  # it waits as the gradient of attention's output
        return max(ffn, later + self._core() - past)

    def weights(self) -> int:
        """The gradients of weights that waited, of the first and the second product of what waited first: as they are
        made, and as autograd copies them."""
        c, w = self.model, self.manner.width
        hidden, rows, held = (c.d_ffn, self.tokens, 1) if self.dense else (c.d_expert, self.rows, self.held)
        one = held * c.d_model * hidden
        return self.waits + w * max(2 * one, 4 * one - rows * (c.d_model + hidden))

    def _experts(self) -> int:
        if self.dense:
            return 0
        c, manner = self.model, self.manner
        weights = self.held * count_parameters(c).expert
        again = c.d_model * self.copied + (0 if manner.keeps_inner else 2 * c.d_expert)
        last = self.rows * (2 * c.d_model + 2 * c.d_expert + again) + weights
        middle = self.rows * (c.d_model + 4 * c.d_expert + again) + weights // 3
        tokens = self.tokens * c.d_model * (1 + (bool(manner.recompute) and not manner.elsewhere))
        return self.kept + manner.width * (max(last, middle) + tokens)

    def _ffn(self) -> int:
        c, manner = self.model, self.manner
        weights = 3 * c.d_model * self.hidden
        again = (0 if manner.keeps_inner else 2 * self.hidden) + (c.d_model if manner.recompute else 0)
        last = self.tokens * (2 * self.hidden + 2 * c.d_model + again) + weights
        middle = self.tokens * (4 * self.hidden + c.d_model + again) + weights // 3
        return self.kept - self.rows * row_bytes(c, manner) + manner.width * max(last, middle)

    def _core(self) -> int:
        """The core: queries and keys as they were rotated, and the gradients of all it took and gave."""
        c, manner = self.model, self.manner
        parts = layer_parts(c, self.sequences, self.length, dense=self.dense, manner=manner)
        again = 2 * self.query + (self.kv if manner.recompute else 0)
        grads = 2 * self.query + 2 * self.out + c.d_model  # and of what goes past the layer
        return parts["attention"] + manner.width * self.tokens * (again + grads)


def head_forward(c: ModelConfig, tokens: int, width: int, *, fused: bool) -> int:
    """The logits of a block, their gradients, and the head's: summed in float32, what is added, and at last as kept."""
    block, head = min(ROWS_ON_GPU if fused else ROWS, tokens), c.vocab_size * c.d_model
    cast = width if width < FP32 else 0
    kept = tokens * (c.d_model * width + FP32)
    normed = tokens * c.d_model * width
    return kept + normed + tokens * c.d_model * width + block * c.vocab_size * (FP32 + cast) + head * (FP32 + cast)
