"""Recomputes norms and MLA's up-projections in backward instead of keeping their outputs (report, section 3.2.3).

Nothing that costs much is done twice: the outputs of the down-projections and of the attention core are kept. A tensor
that was cheap to make is dropped where autograd would keep it, and made again when backward first asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.autograd.graph import saved_tensors_hooks

__all__ = ["Make", "Recomputed", "at_once"]

T = TypeVar("T", bound="torch.Tensor | tuple[torch.Tensor, ...]")
Make = Callable[[Callable[[], T]], T]


def at_once(make: Callable[[], T]) -> T:
    """make(), to be kept like anything else: the counterpart of a `Recomputed`."""
    return make()


class Recomputed:
    """A context of one layer's forward pass: `again(make)` is make(), and what is kept of its tensors, or views of
    them, is the recipe. The inputs of `make` must be kept by somebody else. Calls may be nested."""

    def __init__(self) -> None:
        self._made: list[_Made] = []
        self._hooks = saved_tensors_hooks(self._pack, _unpack)
        self._open = False

    def __call__(self, make: Callable[[], T]) -> T:
        value = make()
        if self._open:
            self._made.append(_Made(make, value if isinstance(value, tuple) else (value,)))
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
        storage = tensor.untyped_storage().data_ptr()
        for made in self._made:
            for index, value in enumerate(made.values):
                if value.untyped_storage().data_ptr() == storage:
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
