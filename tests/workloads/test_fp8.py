"""FP8 scaling against loops over tiles, the formats against torch's own types, and the products against float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from shoal_workloads.precision import fp8 as fp8_module
from shoal_workloads.precision.fp8 import (
    EmulatedFp8,
    dequantize_blocks,
    dequantize_tiles,
    quantize_blocks,
    quantize_tiles,
    round_e5m6,
)
from shoal_workloads.precision.linear import linear, swiglu_ffn
from shoal_workloads.precision.products import Products
from tests.support import synthetic


def round_e4m3(x: torch.Tensor) -> torch.Tensor:
    """To 3 mantissa bits, exponents down to 2^-6, subnormals below: from the format's definition."""
    exponent = torch.floor(torch.log2(x.abs().clamp_min(2.0**-30))).clamp_min(-6)
    step = torch.exp2(exponent - 3)
    return torch.round(x / step) * step


@pytest.mark.parametrize("power_of_2", [False, True])
def test_tiles_equal_a_loop(power_of_2: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 300) * torch.logspace(-3, 3, 300)
    x[2, 128:256] = 0
    codes, scale = quantize_tiles(x, power_of_2=power_of_2)
    found = dequantize_tiles(codes, scale)
    assert scale.shape == (5, 3)
    for row in range(5):
        for tile in range(3):
            part = x[row, 128 * tile : 128 * (tile + 1)]
            expected = float(part.abs().max()) / 448 or 1.0
            if power_of_2:
                expected = 2.0 ** torch.tensor(expected).log2().ceil().item()
            assert float(scale[row, tile]) == pytest.approx(expected, rel=1e-6)
            back = round_e4m3(part / scale[row, tile]) * scale[row, tile]
            assert torch.allclose(found[row, 128 * tile : 128 * (tile + 1)], back, rtol=1e-6)


def test_blocks_share_one_scale() -> None:
    w = torch.randn(2, 200, 260)
    found = dequantize_blocks(*quantize_blocks(w))
    for e, i, j in [(0, 0, 0), (1, 1, 2), (0, 1, 1)]:
        rows, columns = slice(128 * i, 128 * (i + 1)), slice(128 * j, 128 * (j + 1))
        part = w[e, rows, columns]
        scale = part.abs().max() / 448
        assert torch.allclose(found[e, rows, columns], round_e4m3(part / scale) * scale, rtol=1e-6)


@pytest.mark.parametrize("ends", [None, torch.tensor([3, 3, 10], dtype=torch.int32)])
def test_settled_weights_are_scaled_once_and_change_no_product(
    ends: torch.Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = torch.randn(*([] if ends is None else [3]), 140, 200)
    x, dy = torch.randn(10, 200), torch.randn(10, 140)
    fp8 = EmulatedFp8()
    y, dx = fp8.fprop(fp8.cache(x), w, ends, torch.float32), fp8.dgrad(dy, w, ends)
    fp8.settle([torch.nn.Parameter(w)])
    calls: list[torch.Size] = []
    monkeypatch.setattr(fp8_module, "quantize_blocks", lambda w: (calls.append(w.shape), quantize_blocks(w))[1])
    assert torch.equal(fp8.fprop(fp8.cache(x), w.detach(), ends, torch.float32), y)
    assert torch.equal(fp8.dgrad(dy, w, ends), dx)
    assert calls == []
    fp8.settle([])
    fp8.dgrad(dy, w, ends)
    assert calls == [w.shape]


def test_e5m6_has_six_mantissa_bits() -> None:
    x = torch.rand(10_000) * 3 + 0.01
    found = round_e5m6(x)
    mantissa = torch.frexp(found).mantissa * 2**7
    assert torch.equal(mantissa, mantissa.round())
    assert float(((found - x) / x).abs().max()) <= 2.0**-7 * 1.01
    assert float(((found - x) / x).abs().max()) > 2.0**-8


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_linear_in_fp8_is_close_in_all_three_products() -> None:
    torch.manual_seed(0)
    x, w, dy = torch.randn(192, 256), torch.randn(384, 256), torch.randn(192, 384)
    found: dict[str, Any] = {}
    for products in (Products(), EmulatedFp8()):
        a, b = x.clone().requires_grad_(), w.clone().requires_grad_()
        y = linear(a, b, products)
        y.backward(dy)
        assert a.grad is not None
        assert b.grad is not None
        found[products.name] = (y.detach(), a.grad, b.grad)
    assert torch.allclose(found["plain"][0], x @ w.T, atol=1e-4)
    for plain, fp8 in zip(found["plain"], found["fp8-emulated"], strict=True):
        assert 0.005 < relative(fp8, plain) < 0.06  # it differs, by about what 3 mantissa bits give


def test_grouped_ffn_equals_autograd_and_fp8_is_close() -> None:
    torch.manual_seed(1)
    counts = torch.tensor([40, 0, 150, 10])
    ends = counts.cumsum(0, dtype=torch.int32)
    x, scale = torch.randn(200, 128), torch.rand(200)
    gate_up, down = torch.randn(4, 256, 128) * 0.1, torch.randn(4, 128, 128) * 0.1
    found: dict[str, Any] = {}
    for name, products in (("plain", Products()), ("fp8", EmulatedFp8()), ("loop", None)):
        leaves = [t.clone().requires_grad_() for t in (x, gate_up, down, scale)]
        if products is not None:
            y = swiglu_ffn(leaves[0], leaves[1], leaves[2], products, scale=leaves[3], ends=ends)
        else:
            parts = []
            for e, (rows, s) in enumerate(
                zip(leaves[0].split(counts.tolist()), leaves[3].split(counts.tolist()), strict=True)
            ):
                gate, up = (rows @ leaves[1][e].T).chunk(2, dim=1)
                parts.append((torch.nn.functional.silu(gate) * up) @ leaves[2][e].T * s[:, None])
            y = torch.cat(parts)
        (y * torch.linspace(-1, 1, 128)).sum().backward()
        found[name] = [y.detach(), *(leaf.grad for leaf in leaves)]
    for loop, plain, fp8 in zip(found["loop"], found["plain"], found["fp8"], strict=True):
        assert relative(plain, loop) < 1e-5
        assert 0.005 < relative(fp8, loop) < 0.12


def test_rows_of_one_expert_do_not_scale_those_of_another() -> None:
    """A huge row of expert 0 in the same 128 rows must not drown expert 1's weight gradient."""
    ends = torch.tensor([64, 128], dtype=torch.int32)
    x, dy = torch.randn(128, 128), torch.randn(128, 128)
    loud = x.clone()
    loud[0] = 1e6
    fp8 = EmulatedFp8()
    quiet = fp8.wgrad(dy, fp8.cache(x), ends, torch.float32)[1]
    assert torch.equal(fp8.wgrad(dy, fp8.cache(loud), ends, torch.float32)[1], quiet)


def test_training_in_fp8_follows_bf16() -> None:
    model = {"d_model": 128, "d_kv": 128, "d_q": 128, "d_expert": 128, "d_ffn": 128, "n_heads": 4, "d_v": 32}
    losses = {}
    for precision in ("bf16", "fp8"):
        config = synthetic.tiny(model=model, precision=precision, optim={"moments": "bf16"}, batch={"micro_batch": 8})
        losses[precision] = [m["lm_loss"] for m in synthetic.train(config, 10)[0]]
    assert losses["fp8"] != losses["bf16"]
    assert losses["fp8"] == pytest.approx(losses["bf16"], rel=0.1)  # single steps of a tiny model scatter
    assert sum(losses["fp8"]) == pytest.approx(sum(losses["bf16"]), rel=0.03)
    assert losses["fp8"][-1] < 0.9 * losses["fp8"][0]


def test_widths_that_tiles_do_not_divide_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"model.d_model: 32 is no multiple of 128"):
        synthetic.tiny(precision="fp8")
