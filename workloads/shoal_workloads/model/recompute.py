"""Makes in backward again what was cheap to make, instead of keeping it: norms and MLA's up-projections (report,
section 3.2.3), copies of rows, and, where memory is short, more of a feed-forward network.

The outputs of the down-projections and of the attention core are always kept. A tensor that is made again is dropped
where autograd would keep it, and made when backward first asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch.autograd.graph import saved_tensors_hooks

__all__ = ["LEVELS", "Keep", "Level", "Make", "Recomputed", "at_once"]

T = TypeVar("T", bound="torch.Tensor | tuple[torch.Tensor, ...]")
Level = bool | Literal["ffn", "dispatch"]
"""What is made again, each with what stands before it: nothing (False); norms and MLA's up-projections (True); the
first product of feed-forward networks; and rows that came from other workers, which travel again."""
LEVELS: tuple[Level, ...] = (False, True, "ffn", "dispatch")
"""Of ever less memory and ever more time."""


class Make(Protocol):
    """How a layer makes what its backward needs: `at_once`, or to be made again."""

    def __call__(self, make: Callable[[], T], again: Callable[[], T] | None = None) -> T:
        """make(). `again`: how backward makes it, if otherwise."""


def at_once(make: Callable[[], T], again: Callable[[], T] | None = None) -> T:
    """make(), to be kept like anything else: the counterpart of a `Recomputed`."""
    return make()


@dataclass(frozen=True)
class Keep:
    """What a feed-forward network keeps. again: how it makes what need not be kept; x: makes its input once more; raw:
    that is kept by others, or made again, as it is; inner: keep the input of the activation; rows: keep rows that came
    from other workers."""

    again: Make = at_once
    x: Callable[[], torch.Tensor] | None = None
    raw: bool = False
    inner: bool = True
    rows: bool = True


class Recomputed:
    """A context of one layer's forward pass: calling it with `make` is make(), and what is kept of its tensors, or
    views of them, is the recipe. The inputs of the recipe must be kept by somebody else. Calls may be nested."""

    def __init__(self) -> None:
        self._made: list[_Made] = []
        self._hooks = saved_tensors_hooks(self._pack, _unpack)
        self._open = False

    def __call__(self, make: Callable[[], T], again: Callable[[], T] | None = None) -> T:
        value = make()
        if self._open:
            self._made.append(_Made(again or make, value if isinstance(value, tuple) else (value,)))
        return value

    def __enter__(self) -> Recomputed:
        self._hooks.__enter__()
        self._open = True
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)
        self._open = False
        for made in self._made:
            made.values = ()
        # A recipe may refer to this object: what it held would otherwise hold later parts of the graph.
        self._made = []

    def _pack(self, tensor: torch.Tensor) -> Any:
        # By storage, not by address: tensors without elements have none, and those on the meta device neither.
        storage = tensor.untyped_storage()._cdata
        for made in self._made:
            for index, value in enumerate(made.values):
                if value.untyped_storage()._cdata == storage:
                    made.uses += 1
                    return _Kept(made, index, tensor.shape, tensor.stride(), int(tensor.storage_offset()))
        return tensor


class _Made:
    """What one recipe makes. `values` are held during forward, lest another tensor take their place in memory."""

    def __init__(self, make: Callable[[], Any], values: tuple[torch.Tensor, ...]) -> None:
        self._make, self.values = make, values
        self.uses = 0  # places in the graph that ask for it
        self._asked, self._again = 0, tuple[torch.Tensor, ...]()

    def take(self, index: int) -> torch.Tensor:
        """Value `index`, made again for the first that asks and dropped after the last."""
        if not self._again:
            with torch.no_grad():
                value = self._make()
            self._again = value if isinstance(value, tuple) else (value,)
        found = self._again[index]
        self._asked += 1
        if self._asked == self.uses:
            self._asked, self._again = 0, ()
        return found


class _Kept:
    """A view of something made, in the graph's place of the tensor."""

    def __init__(self, made: _Made, index: int, shape: torch.Size, stride: tuple[int, ...], offset: int) -> None:
        self._made, self._index, self._layout = made, index, (shape, stride, offset)

    def tensor(self) -> torch.Tensor:
        return self._made.take(self._index).as_strided(*self._layout)


def _unpack(kept: torch.Tensor | _Kept) -> torch.Tensor:
    return kept.tensor() if isinstance(kept, _Kept) else kept
