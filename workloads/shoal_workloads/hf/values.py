"""Values of a checkpoint's tensors as numbers to train on: converted, and where they are quantised multiplied out.

The public FP8 form keeps a matrix as float8_e4m3fn, and beside it, in the same file or another, a float32 for every
block of 128 x 128, `*.weight_scale_inv`, which its values are multiplied by. DeepSeek's `fp8_cast_bf16.py` does so too,
and rounds the product to bf16; here it is kept in float32, or in what is asked for.
"""

from __future__ import annotations

import torch

from shoal_core.ckpt.boxes import Box, whole
from shoal_core.errors import UserError
from shoal_workloads.hf.config import BLOCK
from shoal_workloads.hf.files import Files, Stored

__all__ = ["FLOATS", "FP8", "SCALE", "check_values", "scale_of", "values"]

FLOATS = ("F32", "BF16", "F16", "F64")
"""Types of weights, by safetensors' names."""
FP8 = "F8_E4M3"
SCALE = "_scale_inv"
"""Ends the name of a scale, behind that of its weight."""


def scale_of(name: str, stored: Stored) -> str | None:
    """The name of the scale of a tensor, if it is quantised."""
    return f"{name}{SCALE}" if stored.dtype == FP8 else None


def check_values(files: Files, name: str, block: tuple[int, int]) -> None:
    """Whether a tensor is of numbers that can be read. block: rows and columns that share a scale.

    Raises:
        UserError: it is of a type that is no weight's, FP8 without a scale of the right shape, or no FP8 with a scale:
            whether its values are multiplied out nobody knows.
    """
    stored = files.tensors[name]
    scale = scale_of(name, stored)
    if scale is None:
        if stored.dtype not in FLOATS:
            remedy = f"convert it to one of {', '.join((*FLOATS, FP8))}"
            raise UserError(f"{files.where(name)} is of type {stored.dtype}, no weight's", remedy)
        if f"{name}{SCALE}" in files.tensors:
            raise UserError(
                f"{files.where(f'{name}{SCALE}')} is a scale, and its weight is {stored.dtype}, which has none",
                "leave the scale out if the weight was multiplied by it, else copy the checkpoint again",
            )
        return
    if len(stored.shape) != 2:
        raise UserError(f"{files.where(name)} is FP8 and no matrix: {list(stored.shape)}", "convert it to BF16")
    if scale not in files.tensors:
        raise UserError(
            f"{files.where(name)} is FP8, and its scale {scale} is in none of the files",
            "copy all files of the checkpoint, or convert it to BF16 where its scales are",
        )
    expected = [-(-size // each) for size, each in zip(stored.shape, block, strict=True)]
    found = files.tensors[scale]
    if list(found.shape) != expected or found.dtype not in FLOATS:
        raise UserError(
            f"{files.where(scale)} is {list(found.shape)} {found.dtype}, expected {expected} F32 for {name} "
            f"of {list(stored.shape)} in blocks of {list(block)}",
            "see quantization_config.weight_block_size in its config.json, or copy the checkpoint again",
        )


def values(
    files: Files,
    name: str,
    box: Box | None = None,
    block: tuple[int, int] = BLOCK,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """A part of a tensor that was checked, or all of it, multiplied out in float32 and rounded to `dtype`.

    Raises:
        UserError: a value is not finite, or the file has changed. StoreError: the store does not answer.
    """
    stored = files.tensors[name]
    found = files.read(name, box)
    scale = scale_of(name, stored)
    if scale is not None:
        found = _multiplied(files, found, scale, whole(stored.shape) if box is None else box, block)
    found = found.to(dtype)
    if found.numel():
        least, most = found.aminmax()  # a NaN is both
        if not bool(least.isfinite() & most.isfinite()):
            raise UserError(f"{files.where(name)} holds values that are not finite", "give a checkpoint that is whole")
    return found


def _multiplied(files: Files, codes: torch.Tensor, scale: str, box: Box, block: tuple[int, int]) -> torch.Tensor:
    """codes: (R, C) of FP8, the `box` of their matrix -> float32."""
    found = codes.to(torch.float32)
    (top, left), (rows, columns) = box.offsets, box.lengths
    high, wide = block
    first, begin = top // high, left // wide
    ends = -(-(top + rows) // high), -(-(left + columns) // wide)
    scales = files.read(scale, Box((first, begin), (ends[0] - first, ends[1] - begin))).to(torch.float32)
    by_column = scales.repeat_interleave(wide, dim=1)[:, left - begin * wide :][:, :columns]
    for at, factors in enumerate(by_column, start=first):
        found[max(0, at * high - top) : (at + 1) * high - top].mul_(factors)
    return found
