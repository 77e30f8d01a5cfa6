"""Numba's decorators for the loops of tokenizer training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

__all__ = ["compiled", "compiled_freely", "innermost"]


def _kept(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Numba's decorator with these options; what it compiles is kept for later processes where there is a place."""

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # neither the sources' folder nor the user's may be written: each process compiles anew
            return njit(**options)(function)

    return decorate


#: a loop that holds Python's lock
compiled = _kept()
#: a loop beside which other threads go on
compiled_freely = _kept(nogil=True)
# Numba counts, atomically, who holds an array at nearly every call; without that the scanners take a third of the time.
# Its type hints leave the option out: no reference counts, for a function that makes no arrays.
innermost = _kept(nogil=True, _nrt=False)
