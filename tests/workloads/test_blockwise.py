"""What is handed to torch's blockwise `scaled_mm`: accepted by the checks in torch itself (on the meta device, where no
GPU is needed), and, read as its documentation says, the product that the emulation makes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from shoal_workloads.precision.blockwise import Arguments, available, fits, times_blocks, times_tiles
from shoal_workloads.precision.fp8 import EmulatedFp8, quantize_blocks, quantize_tiles

SHAPES = [(16, 128, 128), (64, 640, 384), (256, 512, 256), (20, 256, 128)]


def on_meta(given: Arguments) -> Arguments:
    """The same sizes and strides without the numbers."""
    made: list[Any] = [
        torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta") if isinstance(t, torch.Tensor) else t
        for t in given
    ]
    return Arguments(*made)


def as_documented(given: Arguments) -> torch.Tensor:
    """A element of A or B times the scale that its tile or block has, multiplied as float32."""
    a, b = given.a.float().clone(), given.b.float().clone()
    for tile in range(a.shape[1] // 128):
        part = slice(128 * tile, 128 * (tile + 1))
        a[:, part] *= given.scale_a[:, tile, None]
        if given.recipe_b == "BlockWise1x128":
            b[part] *= given.scale_b[:, tile]
        else:
            b[part] *= given.scale_b[tile].repeat_interleave(128)
    return a @ b


def rows_scaled(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What `kernels.quantize_rows` makes of one group: tiles of 128 rows, the last filled up with zeros, codes (K, R)
    and scales (R/128, K)."""
    codes, scale = quantize_tiles(torch.nn.functional.pad(x.T, (0, -len(x) % 128)).contiguous())
    return codes, scale.T.contiguous()


@pytest.mark.parametrize(("rows", "k", "n"), SHAPES)
def test_tiles_times_blocks_is_fprop(rows: int, k: int, n: int) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(rows, k) * torch.logspace(-2, 2, k), torch.randn(n, k) * torch.logspace(-1, 1, n)[:, None]
    assert fits(rows, k, n)
    given = times_blocks(quantize_tiles(x), quantize_blocks(w))
    fp8 = EmulatedFp8()
    expected = fp8.fprop(fp8.cache(x), w, None, torch.float32)
    assert torch.allclose(as_documented(given), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    made = on_meta(given).multiply(torch.bfloat16)
    assert (made.shape, made.dtype) == ((rows, n), torch.bfloat16)


@pytest.mark.parametrize(("outputs", "rows", "inputs"), SHAPES)
def test_tiles_times_tiles_is_wgrad(outputs: int, rows: int, inputs: int) -> None:
    torch.manual_seed(0)
    x, dy = torch.randn(rows, inputs) * torch.logspace(-2, 2, rows)[:, None], torch.randn(rows, outputs)
    fp8 = EmulatedFp8()
    kept = fp8.cache(x)
    given = times_tiles(rows_scaled(dy), rows_scaled(fp8.restore(kept, torch.float32)))
    expected = fp8.wgrad(dy, kept, None, torch.float32)
    assert torch.allclose(as_documented(given), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert on_meta(given).multiply(torch.float32).shape == (outputs, inputs)


def test_torch_refuses_other_layouts() -> None:
    given = times_blocks(quantize_tiles(torch.randn(64, 640)), quantize_blocks(torch.randn(384, 640)))
    for wrong in (
        given._replace(scale_a=given.scale_a.contiguous()),
        given._replace(scale_b=given.scale_b[:5]),
        given._replace(b=given.b.contiguous()),
    ):
        with pytest.raises((RuntimeError, ValueError)):
            on_meta(wrong).multiply(torch.bfloat16)


def test_shapes_and_machines_it_is_used_for() -> None:
    assert not fits(30, 128, 128)
    assert not fits(32, 100, 128)
    assert not fits(32, 128, 64)
    assert available((9, 0), "12.9")
    assert available((9, 0), "13.0")
    assert not available((9, 0), "12.8")
    assert not available((10, 0), "13.0")
    assert not available((8, 9), "13.0")
    assert not available((9, 0), None)
