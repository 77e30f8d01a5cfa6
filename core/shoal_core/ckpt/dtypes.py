"""Types of elements: torch's names, those of safetensors, and bytes an element. Knows no torch."""

from __future__ import annotations

__all__ = ["SAFETENSORS", "itemsize"]

SAFETENSORS = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2": "F8_E5M2",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "complex64": "C64",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
"""By torch's names; what is not here cannot be saved."""

SIZES = {"F64": 8, "C64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}


def itemsize(dtype: str) -> int:
    """Bytes an element.

    Raises:
        ValueError: it is none that can be saved.
    """
    if dtype not in SAFETENSORS:
        raise ValueError(f"{dtype} is no type of elements that a checkpoint can hold")
    return SIZES.get(SAFETENSORS[dtype], 1)
