"""FP8 training as DeepSeek-V3 does it (report, section 3.3): fine-grained scales, computed online, E4M3 everywhere.

Activations and their gradients are scaled in tiles of 1 x 128 along the contraction (fprop, dgrad), regrouped to
128 x 1 for wgrad, whose contraction runs over rows; weights in blocks of 128 x 128. A scale is amax / 448. Here it is
emulated: values are rounded to E4M3 and multiplied as float32, which is what promotion of partial sums every 128
elements approximates on the tensor cores.

Shapes: as in `products`; of a matrix that is scaled, R rows and K columns, cut into tiles of 128.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from shoal_workloads.precision.products import Cached, Products, Role, multiply

__all__ = [
    "E4M3_MAX",
    "TILE",
    "EmulatedFp8",
    "dequantize_blocks",
    "dequantize_tiles",
    "quantize_blocks",
    "quantize_tiles",
    "round_e5m6",
]

TILE = 128
E4M3_MAX = 448.0
FP8 = torch.float8_e4m3fn


def _scale(amax: torch.Tensor, power_of_2: bool) -> torch.Tensor:
    """amax / 448, rounded up to a power of two if asked; 1 for tiles of zeros."""
    scale = torch.where(amax > 0, amax.float() / E4M3_MAX, 1.0)
    return torch.exp2(torch.ceil(torch.log2(scale))) if power_of_2 else scale


def quantize_tiles(x: torch.Tensor, *, power_of_2: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Tiles of 1 x 128 along the last dimension; the last tile may be short. x: (R, K) -> codes (R, K) E4M3, scales
    (R, ceil(K/128)) float32, with x about codes * scale."""
    rows, width = x.shape
    tiles = -(-width // TILE)
    padded = x if width == tiles * TILE else torch.nn.functional.pad(x, (0, tiles * TILE - width))
    tiled = padded.view(rows, tiles, TILE)
    scale = _scale(tiled.abs().amax(dim=2), power_of_2)
    codes = (tiled / scale.unsqueeze(2)).to(FP8).view(rows, tiles * TILE)
    return codes[:, :width].contiguous(), scale


def dequantize_tiles(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """codes (R, K), scales (R, ceil(K/128)) -> (R, K) float32."""
    return codes.float() * scale.repeat_interleave(TILE, dim=1)[:, : codes.shape[1]]


def quantize_blocks(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks of 128 x 128, the last ones may be short. w: (..., O, I) -> codes E4M3, scales
    (..., ceil(O/128), ceil(I/128)) float32."""
    rows, width = w.shape[-2:]
    padded = torch.nn.functional.pad(w, (0, -width % TILE, 0, -rows % TILE)) if rows % TILE or width % TILE else w
    blocks = padded.unflatten(-1, (-1, TILE)).unflatten(-3, (-1, TILE))  # (..., rows/128, 128, width/128, 128)
    scale = _scale(blocks.abs().amax(dim=(-3, -1)), False)
    codes = (blocks / scale[..., :, None, :, None]).to(FP8).flatten(-4, -3).flatten(-2, -1)
    return codes[..., :rows, :width].contiguous(), scale


def dequantize_blocks(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The inverse of `quantize_blocks`, float32."""
    return codes.float() * _spread(scale, codes.shape)


def _spread(scale: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    wide = scale.repeat_interleave(TILE, dim=-2).repeat_interleave(TILE, dim=-1)
    return wide[..., : shape[-2], : shape[-1]]


def round_e5m6(x: torch.Tensor) -> torch.Tensor:
    """Round to a format of 5 exponent and 6 mantissa bits, in which the report keeps the attention output's input: to
    nearest, ties to even. Magnitudes must lie under 2^16; every such number is one of float16, too."""
    exponent = torch.frexp(x.float()).exponent - 1
    step = torch.exp2((exponent.clamp_min(-14) - 6).float())
    return (torch.round(x.float() / step) * step).to(x.dtype)


def _by_rows(x: torch.Tensor, ends: torch.Tensor | None) -> torch.Tensor:
    """Round in tiles of 128 x 1, along rows, that do not cross the border between two experts. x: (R, K) -> (R, K)."""
    if ends is None:
        return dequantize_tiles(*quantize_tiles(x.T.contiguous())).T
    out, start = torch.empty(x.shape, dtype=torch.float32, device=x.device), 0
    for end in ends.tolist():
        if end > start:
            out[start:end] = dequantize_tiles(*quantize_tiles(x[start:end].T.contiguous())).T
        start = end
    return out


class EmulatedFp8(Products):
    """FP8 numerics on any device. Slower than plain products, not faster: it is for seeing what FP8 does to a run."""

    name = "fp8-emulated"
    dispatches_fp8 = True

    def __init__(self) -> None:
        self._settled: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def settle(self, weights: Iterable[torch.Tensor]) -> None:
        """See `Products`: each is scaled once, and not for every product. A byte an element is held for that."""
        self._settled = {w.untyped_storage()._cdata: quantize_blocks(w.detach()) for w in weights}

    def blocks(self, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """w (..., O, I) as products see it: its codes and scales in blocks of 128 x 128."""
        settled = self._settled.get(w.untyped_storage()._cdata)
        return quantize_blocks(w) if settled is None or settled[0].shape != w.shape else settled

    def cache(self, x: torch.Tensor, role: Role = "activation") -> Cached:
        """Codes and scales in tiles of 1 x 128; power-of-2 scales for what was dispatched and for the attention's
        output, which is also kept in E5M6, in the bits of a float16."""
        codes, scale = quantize_tiles(x, power_of_2=role != "activation")
        if role == "attention":
            wide = scale.repeat_interleave(TILE, dim=1)[:, : x.shape[1]]
            return round_e5m6(x / wide).to(torch.float16), scale
        return codes, scale

    def restore(self, kept: Cached, dtype: torch.dtype) -> torch.Tensor:
        """Dequantised."""
        return dequantize_tiles(*kept).to(dtype)

    def fprop(self, kept: Cached, w: torch.Tensor, ends: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
        """Tiles times blocks."""
        x = dequantize_tiles(*kept)
        if kept[0].dtype != FP8:
            x = dequantize_tiles(*quantize_tiles(x, power_of_2=True))
        return multiply(x, dequantize_blocks(*self.blocks(w)).transpose(-2, -1), ends, dtype)

    def dgrad(self, dy: torch.Tensor, w: torch.Tensor, ends: torch.Tensor | None) -> torch.Tensor:
        """Tiles of the gradient times blocks."""
        return multiply(dequantize_tiles(*quantize_tiles(dy)), dequantize_blocks(*self.blocks(w)), ends, dy.dtype)

    def wgrad(self, dy: torch.Tensor, kept: Cached, ends: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
        """Both regrouped in tiles of 128 rows."""
        x = _by_rows(dequantize_tiles(*kept), ends)
        return multiply(_by_rows(dy.float(), ends).T, x, ends, dtype)
