"""Runs the Triton kernels in Triton's interpreter, on a CPU, beside the emulation; prints how far apart they are.

    TRITON_INTERPRET=1 python -m tests.support.interpreted

Rows are grouped by expert with an empty one, one of a single row, and tiles that are not full; widths are no multiples
of 128.
"""

from __future__ import annotations

import json

import torch

from shoal_workloads.precision import kernels
from shoal_workloads.precision.fp8 import _by_rows as by_rows
from shoal_workloads.precision.fp8 import dequantize_blocks, dequantize_tiles, quantize_blocks, quantize_tiles
from shoal_workloads.precision.hopper import HopperFp8

COUNTS, WIDTH, OUTPUTS = (130, 0, 1, 45), 200, 144


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference, in parts of the largest value."""
    return float((found - wanted).abs().max() / wanted.abs().max())


def main() -> None:
    generator = torch.Generator().manual_seed(3)
    ends = torch.tensor(COUNTS).cumsum(0).to(torch.int32)
    rows = int(ends[-1])
    x = torch.randn(rows, WIDTH, generator=generator)
    dy = torch.randn(rows, OUTPUTS, generator=generator)
    w = torch.randn(len(COUNTS), OUTPUTS, WIDTH, generator=generator)
    groups = [slice(int(end) - count, int(end)) for end, count in zip(ends, COUNTS, strict=True)]
    found: dict[str, float] = {}

    for power_of_2 in (False, True):
        codes, scales = kernels.quantize_tiles(x, power_of_2=power_of_2)
        their_codes, their_scales = quantize_tiles(x, power_of_2=power_of_2)
        found[f"scales, {power_of_2}"] = float((scales != their_scales).float().mean())
        found[f"codes, {power_of_2}"] = float((codes.float() != their_codes.float()).float().mean())

    kept, weight = quantize_tiles(x), quantize_blocks(w)
    y = kernels.grouped_product(kept, weight, ends, torch.float32)
    plain, wide = dequantize_tiles(*kept), dequantize_blocks(*weight)
    found["fprop"] = apart(y, torch.cat([plain[rows] @ wide[e].T for e, rows in enumerate(groups)]))

    hopper = HopperFp8(scaled_mm=False)
    hopper.settle([w])
    plain = dequantize_tiles(*kernels.quantize_tiles(dy))
    dx = torch.cat([plain[rows] @ wide[e] for e, rows in enumerate(groups)])
    found["dgrad"] = apart(hopper.dgrad(dy, w, ends), dx)

    left, right = kernels.quantize_rows(dy, ends), kernels.quantize_rows(x, ends)
    product = kernels.grouped_weight_product(left, right, ends, torch.float32)
    # codes (K, S*128) with scales (S, K): what the products were given, one span after the other
    given = [codes.float() * scales.T.repeat_interleave(kernels.ROWS, dim=1) for codes, scales in (left, right)]
    spans = torch.tensor([0, *(-(-count // kernels.ROWS) for count in COUNTS)]).cumsum(0) * kernels.ROWS
    parts = [slice(int(spans[e]), int(spans[e + 1])) for e in range(len(COUNTS))]
    found["wgrad"] = apart(product, torch.stack([given[0][:, part] @ given[1][:, part].T for part in parts]))
    restored = torch.cat([given[1][:, part][:, :count].T for part, count in zip(parts, COUNTS, strict=True)])
    found["codes, by rows"] = float((restored != by_rows(x, ends)).float().mean())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
