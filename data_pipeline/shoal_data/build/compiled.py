"""Numba's decorator for the innermost loops of tokenizer training."""

from __future__ import annotations

from typing import Any

from numba import njit

__all__ = ["innermost"]

#: numba's own option, which its type hints leave out: no reference counts, for a function that makes no arrays
_BORROWED: dict[str, Any] = {"_nrt": False}

# Numba counts, atomically, who holds an array at nearly every call; without that the scanners take a third of the time.
innermost = njit(cache=True, nogil=True, **_BORROWED)
