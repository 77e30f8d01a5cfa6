"""What a layer reads and writes of memory for a token beside its products and its attention core: bytes, counted kernel
by kernel, each as reading its inputs once and writing its outputs once.

Which kernels there are is read off DeepSeek's own trace of a forward and a backward of four layers on H800
(github.com/deepseek-ai/profile-data, train.json, 2025-02); casts fall away in BF16. Heads H, width D.
"""

from __future__ import annotations

from dataclasses import dataclass

from shoal_workloads.model.config import ModelConfig

__all__ = ["BF16", "FP32", "Moved"]

BF16, FP32 = 2, 4
CODE = 1
"""Bytes of a number."""


@dataclass(frozen=True)
class Moved:
    """Of one layer of `model`, a token; `fp8`: linear layers multiply in FP8, so that their operands are cast."""

    model: ModelConfig
    fp8: bool

    # ---- kernels

    def cast(self, width: int) -> int:
        """Numbers to codes of FP8, or codes back."""
        return (BF16 + CODE) * width if self.fp8 else 0

    @property
    def code(self) -> int:
        """Bytes of a number as products take it."""
        return CODE if self.fp8 else BF16

    @property
    def latent(self) -> int:
        """Width of both compressed inputs, of queries and of keys and values, that are normed."""
        return (self.model.d_q or 0) + self.model.d_kv

    def assembled(self) -> int:
        """RoPE on what of queries has it, keys put together of both parts, values cut off."""
        model = self.model
        rope = model.n_heads * model.d_rope
        return BF16 * (2 * rope + 2 * model.n_heads * model.d_head + rope + 2 * model.n_heads * model.d_v)

    def inner(self, hidden: int) -> int:
        """SwiGLU of 2 x hidden numbers, forward; in FP8 its input is kept in codes, and its output made as codes."""
        return BF16 * 2 * hidden + self.code * hidden + self.cast(2 * hidden)

    def inner_back(self, hidden: int, *, scaled: bool) -> int:
        """Its gradient from its input and that of its output, which is made again; of `scaled` rows that of the scale,
        too."""
        restored = self.cast(2 * hidden)
        return restored + BF16 * (6 + 2 * scaled) * hidden + self.cast(2 * hidden)

    # ---- passes

    @property
    def query(self) -> int:
        return self.model.n_heads * (self.model.d_head + self.model.d_rope)

    @property
    def key_value(self) -> int:
        return self.model.n_heads * (self.model.d_head + self.model.d_v)

    @property
    def out(self) -> int:
        return self.model.n_heads * self.model.d_v

    def hidden(self, dense: bool) -> tuple[int, int]:
        """Hidden numbers of what meets every token, and of the rows of its experts."""
        model = self.model
        if dense:
            return model.d_ffn, 0
        return model.n_shared * model.d_expert, model.top_k * model.d_expert

    def rows(self, dense: bool) -> int:
        """Numbers of a token's rows for its experts."""
        return 0 if dense else self.model.top_k * self.model.d_model

    def forward(self, *, dense: bool) -> int:
        """Norms, residuals, casts, RoPE, SwiGLU, and rows put in order for experts and summed up."""
        d = self.model.d_model
        whole, routed = self.hidden(dense)
        norms = 2 * BF16 * (2 * d + self.latent)
        residuals = 2 * 3 * BF16 * d
        kept = (BF16 + BF16) * self.out if self.fp8 else 0  # attention's output, in the bits of a float16
        casts = self.cast(2 * d) + self.cast(self.latent) + self.cast(self.out) + kept + self.cast(d)
        casts += 0 if dense else self.cast(d)
        ordered = (2 * self.code + 2 * BF16) * self.rows(dense)
        return norms + residuals + casts + self.assembled() + self.inner(whole) + self.inner(routed) + ordered

    def input(self, *, dense: bool, again: bool) -> int:
        """Of the gradient of the input; `again`: what norms and up-projections made is made once more."""
        d, core = self.model.d_model, self.query + self.key_value
        whole, routed = self.hidden(dense)
        norms = 3 * BF16 * (2 * d + self.latent)
        residuals = 3 * 3 * BF16 * d
        rope = 3 * BF16 * self.model.n_heads * self.model.d_rope
        parts = 2 * BF16 * self.key_value  # gradients of keys and values put together for their projection
        casts = self.cast(d) + self.cast(core) + self.cast(self.latent) + (2 * BF16 * self.out if self.fp8 else 0)
        ordered = (2 * self.code + 2 * BF16) * self.rows(dense)
        made = 0
        if again:
            made = 2 * BF16 * (2 * d + self.latent) + self.cast(2 * d + self.latent) + self.assembled()
        inner = self.inner_back(whole, scaled=False) + self.inner_back(routed, scaled=True)
        return norms + residuals + rope + parts + casts + ordered + made + inner

    def weight(self, *, dense: bool) -> int:
        """Of the gradients of weights: both operands cut into tiles the other way (report, section 3.3.2)."""
        if not self.fp8:
            return 0
        d = self.model.d_model
        whole, routed = self.hidden(dense)
        inputs = 2 * self.cast(d) + self.cast(self.latent) + self.cast(self.out) + self.cast(d) + self.cast(whole)
        outputs = self.cast(self.query + self.key_value + self.latent + d) + self.cast(2 * whole + d)
        rows = 2 * CODE * self.rows(dense) + self.cast(self.rows(dense)) + self.cast(3 * routed)
        return inputs + outputs + rows
