"""Triton kernels for FP8 on Hopper: scaling, and grouped products with fine-grained scales.

Shapes: R rows grouped by expert, K contraction, N outputs, E experts. A "span" is up to `ROWS` consecutive rows of one
expert: products work on spans, so that no tile mixes two experts. There are at most R/ROWS + E of them, which bounds
the grid without asking the device how many there are. Triton reads the kernels' annotations, too, and refuses names of
other modules there.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language import tensor

__all__ = ["grouped_product", "grouped_weight_product", "quantize_rows", "quantize_tiles", "spans_of"]

TILE = tl.constexpr(128)
ROWS = 128
FP8_MAX = tl.constexpr(448.0)


def spans_of(ends: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """ends: (E,) int32, the end of each expert's rows -> expert (S,) and first row (S,) of every span, int32; spans
    beyond the last have expert E. S = rows/ROWS + E, known on the host. A span ends at its expert's end or ROWS on."""
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    counts = (ends - starts + ROWS - 1) // ROWS
    last = counts.cumsum(0)
    index = torch.arange(rows // ROWS + len(ends), device=ends.device)
    expert = torch.searchsorted(last, index, right=True)
    inside = expert.clamp_max(len(ends) - 1)
    first = starts[inside] + (index - (last[inside] - counts[inside])) * ROWS
    return expert.to(torch.int32), first.to(torch.int32)


@triton.jit
def _product(
    a: tensor, scale_a: tensor, b: tensor, scale_b: tensor, out: tensor,
    ends: tensor, expert_of: tensor, first_of: tensor, n: tensor, k: tensor, n_experts: tensor,
    block_rows: tl.constexpr, block_n: tl.constexpr,
) -> None:  # fmt: skip
    """out[r, :] = sum_k a[r, k] * b[expert(r), :, k]; a: (R, K) in tiles 1 x 128, b: (E, N, K) in blocks 128 x 128."""
    span, column = tl.program_id(0), tl.program_id(1)
    expert = tl.load(expert_of + span)
    if expert < n_experts:
        rows = tl.load(first_of + span) + tl.arange(0, block_rows)
        row_ok = rows < tl.load(ends + expert)
        columns = column * block_n + tl.arange(0, block_n)
        column_ok = columns < n
        tiles = tl.cdiv(k, TILE)
        blocks = scale_b + expert * tl.cdiv(n, TILE) * tiles + (column * block_n // TILE) * tiles
        weight = b + expert.to(tl.int64) * n * k
        total = tl.zeros((block_rows, block_n), dtype=tl.float32)
        for tile in range(tiles):
            inner = tile * TILE + tl.arange(0, TILE)
            inner_ok = inner < k
            here = rows[:, None].to(tl.int64) * k + inner[None, :]
            x = tl.load(a + here, mask=row_ok[:, None] & inner_ok[None, :], other=0.0)
            there = columns[None, :] * k + inner[:, None]
            w = tl.load(weight + there, mask=inner_ok[:, None] & column_ok[None, :], other=0.0)
            # Promotion to float32 every 128 elements of K: each tile's partial sum is scaled and added outside.
            row_scale = tl.load(scale_a + rows.to(tl.int64) * tiles + tile, mask=row_ok, other=0.0)
            total += tl.dot(x, w) * (row_scale * tl.load(blocks + tile))[:, None]
        where = out + rows[:, None].to(tl.int64) * n + columns[None, :]
        tl.store(where, total.to(out.dtype.element_ty), mask=row_ok[:, None] & column_ok[None, :])


def grouped_product(
    a: tuple[torch.Tensor, torch.Tensor], b: tuple[torch.Tensor, torch.Tensor], ends: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """a: codes (R, K) and scales (R, ceil(K/128)); b: codes (E, N, K) and scales (E, ceil(N/128), ceil(K/128)), all
    contiguous -> (R, N) in `dtype`: the product with the transposed weight of each row's expert."""
    (codes, scale), (weight, blocks) = a, b
    experts, n, k = weight.shape
    rows = codes.shape[0]
    out = torch.empty((rows, n), dtype=dtype, device=codes.device)
    expert_of, first_of = spans_of(ends, rows)
    _product[(len(expert_of), triton.cdiv(n, 128))](
        codes, scale, weight, blocks, out, ends, expert_of, first_of, n, k, experts,
        block_rows=ROWS, block_n=128, num_warps=8, num_stages=3,
    )  # fmt: skip
    return out


@triton.jit
def _quantize_tiles(x: tensor, codes: tensor, scales: tensor, k: tensor, power_of_2: tl.constexpr) -> None:
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    inner = tile * TILE + tl.arange(0, TILE)
    value = tl.load(x + row * k + inner, mask=inner < k, other=0.0).to(tl.float32)
    amax = tl.max(tl.abs(value), axis=0)
    scale = tl.where(amax > 0, amax / FP8_MAX, 1.0)
    if power_of_2:
        scale = tl.exp2(tl.ceil(tl.log2(scale)))
    tl.store(codes + row * k + inner, (value / scale).to(codes.dtype.element_ty), mask=inner < k)
    tl.store(scales + row * tl.cdiv(k, TILE) + tile, scale)


def quantize_tiles(x: torch.Tensor, *, power_of_2: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """`fp8.quantize_tiles` in one pass over x: (R, K) -> codes (R, K), scales (R, ceil(K/128))."""
    rows, k = x.shape
    codes = torch.empty((rows, k), dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty((rows, triton.cdiv(k, 128)), dtype=torch.float32, device=x.device)
    if rows:
        _quantize_tiles[(rows, scales.shape[1])](x.contiguous(), codes, scales, k, power_of_2=power_of_2, num_warps=1)
    return codes, scales


@triton.jit
def _quantize_rows(
    x: tensor, codes: tensor, scales: tensor, ends: tensor, expert_of: tensor, first_of: tensor,
    k: tensor, n_experts: tensor, length: tensor, block_k: tl.constexpr,
) -> None:  # fmt: skip
    """One scale a column and span: tiles of 128 x 1, written transposed so that the rows are contiguous."""
    span, column = tl.program_id(0), tl.program_id(1)
    expert = tl.load(expert_of + span)
    columns = column * block_k + tl.arange(0, block_k)
    inside = tl.arange(0, TILE)
    rows = tl.load(first_of + span) + inside
    # A span beyond the last holds no rows.
    end = tl.load(ends + expert, mask=expert < n_experts, other=0)
    ok = (rows < end)[:, None] & (columns < k)[None, :]
    value = tl.load(x + rows[:, None].to(tl.int64) * k + columns[None, :], mask=ok, other=0.0).to(tl.float32)
    amax = tl.max(tl.abs(value), axis=0)
    scale = tl.where(amax > 0, amax / FP8_MAX, 1.0)
    code = (value / scale[None, :]).to(codes.dtype.element_ty)
    where = codes + columns[None, :].to(tl.int64) * length + span * TILE + inside[:, None]
    tl.store(where, code, mask=(columns < k)[None, :])
    tl.store(scales + span * k + columns, scale, mask=columns < k)


def quantize_rows(x: torch.Tensor, ends: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x: (R, K) -> codes (K, S*128) E4M3, rows of each span contiguous and padded with zeros; scales (S, K) float32."""
    rows, k = x.shape
    expert_of, first_of = spans_of(ends, rows)
    spans = len(expert_of)
    codes = torch.empty((k, spans * ROWS), dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty((spans, k), dtype=torch.float32, device=x.device)
    grid = (spans, triton.cdiv(k, 64))
    _quantize_rows[grid](
        x.contiguous(), codes, scales, ends, expert_of, first_of, k, len(ends), spans * ROWS, block_k=64
    )
    return codes, scales


@triton.jit
def _weight_product(
    y: tensor, scale_y: tensor, x: tensor, scale_x: tensor, out: tensor, first_span: tensor,
    n_out: tensor, n_in: tensor, length: tensor, block_out: tl.constexpr, block_in: tl.constexpr,
) -> None:  # fmt: skip
    """out[e] = y_e^T x_e over the spans of expert e; a span is one tile of 128 rows for both."""
    expert, tile_out, tile_in = tl.program_id(2), tl.program_id(0), tl.program_id(1)
    outs = tile_out * block_out + tl.arange(0, block_out)
    ins = tile_in * block_in + tl.arange(0, block_in)
    inside = tl.arange(0, TILE)
    total = tl.zeros((block_out, block_in), dtype=tl.float32)
    for span in range(tl.load(first_span + expert), tl.load(first_span + expert + 1)):
        rows = span * TILE + inside
        left = tl.load(y + outs[:, None].to(tl.int64) * length + rows[None, :], mask=(outs < n_out)[:, None], other=0.0)
        right = tl.load(x + ins[None, :].to(tl.int64) * length + rows[:, None], mask=(ins < n_in)[None, :], other=0.0)
        left_scale = tl.load(scale_y + span * n_out + outs, mask=outs < n_out, other=0.0)
        right_scale = tl.load(scale_x + span * n_in + ins, mask=ins < n_in, other=0.0)
        total += tl.dot(left, right) * left_scale[:, None] * right_scale[None, :]
    where = out + (expert * n_out + outs[:, None]).to(tl.int64) * n_in + ins[None, :]
    tl.store(where, total.to(out.dtype.element_ty), mask=(outs < n_out)[:, None] & (ins < n_in)[None, :])


def grouped_weight_product(
    y: tuple[torch.Tensor, torch.Tensor], x: tuple[torch.Tensor, torch.Tensor], ends: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """y, x: of `quantize_rows` with the same `ends`: (O, S*128) and (I, S*128) -> (E, O, I) in `dtype`."""
    n_out, n_in, length = y[0].shape[0], x[0].shape[0], y[0].shape[1]
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    counts = (ends - starts + ROWS - 1) // ROWS
    first_span = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(torch.int32)
    out = torch.empty((len(ends), n_out, n_in), dtype=dtype, device=y[0].device)
    grid = (triton.cdiv(n_out, 128), triton.cdiv(n_in, 128), len(ends))
    _weight_product[grid](
        *y, *x, out, first_span, n_out, n_in, length, block_out=128, block_in=128, num_warps=8, num_stages=3
    )
    return out
