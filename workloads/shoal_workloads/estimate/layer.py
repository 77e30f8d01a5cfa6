"""How long a worker computes one layer for a micro-batch: its products by their very shapes, the attention core, what
only moves bytes, and the exchange of rows. Seconds; forward F, gradient of the input I, gradients of the weights W.

Of all numbers two are fitted (`FINE`, and `step.WAITING`), on two figures of DeepSeek-V3's measured step (arXiv
2505.09343, table 4), and tested on its others: see `published`. What else is assumed stands in `hardware.yaml` and
here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

from shoal_core.mesh import Mesh
from shoal_workloads.config import PretrainConfig
from shoal_workloads.estimate.hardware import Hardware
from shoal_workloads.estimate.moved import BF16, FP32, Moved
from shoal_workloads.parallel.traffic import row_bytes

__all__ = ["BF16", "FINE", "FP32", "MOVED", "Layers", "Product", "Seconds", "total"]

Seconds = Mapping[str, float]
"""By what takes them: `products`, `attention`, `element-wise`, `exchange`; where measured, `host`: Python."""
Type = Literal["bf16", "fp8"]

FINE = 0.69
"""Fitted on 1F1B, 13.95 s: the share of FP8's rate that products reach in training, where experts do not get equally
many rows, and clocks give way to heat. Alone and balanced, in DeepSeek's trace, it is 0.88 (`published.traced`)."""
TILE = 128
"""Rows and columns of a product that one processor takes at a time."""
MOVED = 0.69
"""Of the memory's peak, what kernels reach that only move bytes: the 13 that read or write an expert layer's rows in
DeepSeek's trace on H800 (see `moved`) move 6.5 GB in 2.8 ms."""


@dataclass(frozen=True)
class Product:
    """`m` x `k` times `k` x `n`, `times` over. `scales`: those of FP8 that differ inside a tile, of its rows, or of its
    columns as well."""

    m: float
    n: int
    k: int
    type: Type
    times: int = 1
    scales: int = 1

    def input(self) -> Product:
        """That of the gradient of its input."""
        return Product(self.m, self.k, self.n, self.type, self.times)

    def weight(self) -> Product:
        """That of the gradient of its weights."""
        return Product(self.n, self.k, ceil(self.m), self.type, self.times, scales=2)


class Layers:
    """The layers of one job in cells of `mesh` on this hardware, `slots` workers a node."""

    def __init__(self, config: PretrainConfig, mesh: Mesh, hardware: Hardware, slots: int) -> None:
        self._model, self._hardware, self._mesh, self._slots = config.model, hardware, mesh, slots
        self._recompute = config.parallel.recompute
        self._type: Type = "fp8" if config.precision == "fp8" and hardware.tflops.fp8 else "bf16"
        self._kernels = Moved(config.model, self._type == "fp8")
        self._dispatch_fp8 = config.precision == "fp8"
        self._row = config.model.d_model * (FP32 if config.precision == "fp32" else BF16)
        self._hierarchical = config.parallel.dispatch == "hierarchical"
        self._length = config.data.seq_len
        self.tokens = config.batch.micro_batch * self._length
        self._nodes = ceil(mesh.ep / (config.parallel.ep_node or slots))
        busy = hardware.exchange_sms if self._nodes > 1 else 0
        self._sms = hardware.sms - busy

    # ---- the parts

    def forward(self, *, dense: bool) -> Seconds:
        found = self._computed(self.products(dense), self._core(), self._moved(self._kernels.forward(dense=dense)))
        return found if dense else {**found, "exchange": self._exchange()}

    def input(self, *, dense: bool) -> Seconds:
        """The gradient of the input, and what was not kept for it made again."""
        products = self.products(dense)
        again = self._again(products, dense)
        moved = self._moved(self._kernels.input(dense=dense, again=bool(self._recompute)))
        found = self._computed([*(one.input() for one in products), *again], self._core_back(), moved)
        if dense:
            return found
        times = 1.5 if self._recompute == "dispatch" else 1.0
        return {**found, "exchange": times * self._exchange()}

    def weight(self, *, dense: bool) -> Seconds:
        """The gradients of the weights, added up in float32."""
        products = self.products(dense)
        summed = 2.0 * FP32 * sum(one.n * one.k * one.times for one in products) / self._bytes_a_second
        moved = self._moved(self._kernels.weight(dense=dense))
        return self._computed([one.weight() for one in products], 0.0, summed + moved)

    def backward(self, *, dense: bool) -> Seconds:
        """Both gradients at once."""
        parts = self.input(dense=dense), self.weight(dense=dense)
        return {name: sum(part.get(name, 0.0) for part in parts) for name in {**parts[0], **parts[1]}}

    def head(self, kinds: str = "FIW") -> Seconds:
        """The output head with the loss, once for the model and once for each MTP module. kinds: of F, I and W those
        that are made."""
        model, times = self._model, 1 + self._model.mtp_depth
        one = Product(self.tokens, model.vocab_size, model.d_model, "bf16", times)
        each = {"F": one, "I": one.input(), "W": one.weight()}
        moved = times * self.tokens * model.vocab_size * (FP32 + 2 * BF16) / self._bytes_a_second if "F" in kinds else 0
        return {"products": sum(self._product(each[kind]) for kind in kinds), "element-wise": moved}

    def merge(self, kinds: str = "FIW") -> Seconds:
        """What MTP modules do before their layers. kinds: as of the head."""
        one = Product(self.tokens, self._model.d_model, 2 * self._model.d_model, self._type)
        each = {"F": one, "I": one.input(), "W": one.weight()}
        return {"products": self._model.mtp_depth * sum(self._product(each[kind]) for kind in kinds)}

    def beside(self, passes: int) -> float:
        """Of the exchange, what runs behind the shared experts, which need no rows of others."""
        return passes * sum(map(self._product, self._shared()))

    # ---- how long they take

    @property
    def _bytes_a_second(self) -> float:
        return self._hardware.memory_tb_s * 1e12 * MOVED

    def _seconds_a_number(self, one: Product) -> float:
        """Of a product, for one multiplication with its sum. In FP8 partial sums of 128 are scaled and added up on the
        processors' own units for float32, where the matrix units do not do it: an operation for each, and one more
        where two scales differ."""
        rates, best = self._hardware.tflops, self._hardware.reached
        if one.type != "fp8" or not rates.fp8 or not best.fp8:
            return 2.0 / (1e12 * rates.bf16 * best.bf16)
        promoted = 0.0 if rates.fp32 is None else 2.0 * one.scales / TILE / (1e12 * rates.fp32)
        return (2.0 / (1e12 * rates.fp8 * best.fp8) + promoted) / FINE

    def _product(self, one: Product) -> float:
        """A product is cut into tiles that the processors take in waves; the last wave may not be full."""
        tiles = ceil(one.m / TILE) * ceil(one.n / TILE) * one.times
        waves = ceil(tiles / self._sms)
        numbers = waves * self._hardware.sms * float(TILE * TILE) * one.k
        width = 1 if one.type == "fp8" else BF16
        moved = one.times * (width * (one.m * one.k + one.k * one.n) + BF16 * one.m * one.n)
        return max(numbers * self._seconds_a_number(one), moved / self._bytes_a_second)

    def _computed(self, products: Iterable[Product], core: float, moved: float) -> dict[str, float]:
        return {"products": sum(map(self._product, products)), "attention": core, "element-wise": moved}

    # ---- what they are

    def _shared(self) -> list[Product]:
        model, type_ = self._model, self._type
        if not model.n_shared:
            return []
        hidden = model.n_shared * model.d_expert
        d = model.d_model
        return [Product(self.tokens, 2 * hidden, d, type_), Product(self.tokens, d, hidden, type_)]

    def products(self, dense: bool) -> list[Product]:
        """Of a layer's forward pass: attention's, and those of its feed-forward network."""
        model, type_, t = self._model, self._type, self.tokens
        d, heads = model.d_model, model.n_heads
        query = heads * (model.d_head + model.d_rope)
        found = [Product(t, model.d_kv + model.d_rope, d, type_)]
        found += [Product(t, model.d_q, d, type_), Product(t, query, model.d_q, type_)] if model.d_q else []
        found += [] if model.d_q else [Product(t, query, d, type_)]
        found += [Product(t, heads * (model.d_head + model.d_v), model.d_kv, type_)]
        found += [Product(t, d, heads * model.d_v, type_)]
        if dense:
            return [*found, Product(t, 2 * model.d_ffn, d, type_), Product(t, d, model.d_ffn, type_)]
        held = model.n_experts // self._mesh.ep
        rows = t * model.top_k / held
        routed = [
            Product(rows, 2 * model.d_expert, d, type_, held),
            Product(rows, d, model.d_expert, type_, held),
        ]
        return [*found, *self._shared(), *routed]

    def _again(self, products: Sequence[Product], dense: bool) -> list[Product]:
        """Of a forward pass's products those that backward makes again."""
        again = list[Product]()
        if self._recompute:
            again += products[2 if self._model.d_q else 1 : 4 if self._model.d_q else 3]
        if self._recompute in ("ffn", "dispatch"):
            again += products[-4::2] if not dense else products[-2:-1]
        return again

    def _core(self) -> float:
        """Causal attention, forward."""
        model = self._model
        flops = self.tokens * self._length * model.n_heads * (model.d_head + model.d_rope + model.d_v)
        rate = 1e12 * self._hardware.tflops.bf16 * self._hardware.attention.forward
        return flops / rate * self._hardware.sms / self._sms

    def _core_back(self) -> float:
        """Its backward: scores once more, and four gradients."""
        model = self._model
        wide, out = model.d_head + model.d_rope, model.d_v
        shares = self._hardware.attention
        return self._core() * (3 * wide + 2 * out) / (wide + out) * shares.forward / shares.backward

    def _moved(self, each: float) -> float:
        """Seconds in which so many bytes a token are read and written."""
        return self.tokens * each / self._bytes_a_second

    def _exchange(self) -> float:
        """Rows to experts elsewhere and back, of one pass. Across nodes a token goes once to each node of its experts
        (hierarchical; at most `topk_groups` of them) or once to each expert (flat), one of N nodes being its own;
        inside a node on to each expert. Both at once: the slower counts."""
        model, hardware = self._model, self._hardware
        if self._mesh.ep == 1:
            return 0.0
        if hardware.calibration is not None and (lines := hardware.calibration.messages):  # there and back
            return 2 * lines.exchange.seconds(self.tokens * model.top_k * (1 - 1 / self._mesh.ep) * self._row)
        each = row_bytes(model.d_model, fp8=self._dispatch_fp8) + row_bytes(model.d_model, fp8=False)
        copies = model.top_k
        if self._hierarchical:
            copies = min(model.top_k, self._nodes, model.topk_groups if model.n_groups > 1 else self._nodes)
        across = copies * (1 - 1 / self._nodes) * each / (hardware.network_gb_s * 1e9)
        inside = min(self._mesh.ep, self._slots)
        within = model.top_k * (1 - 1 / inside) * each / (hardware.nvlink_gb_s * 1e9)
        return self.tokens * max(across, within)


def total(parts: Seconds, *, but: str = "") -> float:
    """All of it, less what is named."""
    return sum(seconds for name, seconds in parts.items() if name != but)
