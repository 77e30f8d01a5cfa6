"""Positions in the global order -> items of a map-style dataset: a seeded permutation, epoch after epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from shoal_workloads.torchmodel.randomness import key_of, restored, seed_all, seeded

__all__ = ["Dataset", "Items", "moved"]


class Dataset(Protocol):
    """What has a length and an item at every index below it. It may have `__getitems__`, for the items of several
    indices at once; `ordered`, if it brings its own order: then an index is a position in the global order, of any
    epoch; and `expect`, which is told what will be read next."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Items:
    """Batches of a dataset. `order`: the seed of the permutation, none: items stand in their own order (held out).
    `seed`: of what is random in the dataset, which is the same whenever a position is read."""

    def __init__(self, dataset: Dataset, order: int | None, seed: int, collate: Callable[[list[Any]], Any]) -> None:
        from shoal_data.reading.order import SampleOrder

        self._dataset, self._seed, self._collate = dataset, seed, collate
        own = order is None or getattr(dataset, "ordered", False)
        self._order = None if own or order is None else SampleOrder([len(dataset)], None, order)

    def indices(self, positions: Sequence[int]) -> list[int]:
        """What the dataset is asked for, for these positions of any epoch."""
        if self._order is None:
            return list(positions)
        return [int(index) for index in self._order(np.asarray(positions, dtype=np.int64))[1]]

    def items(self, positions: Sequence[int]) -> list[Any]:
        """The items at these positions."""
        if hasattr(self._dataset, "__getitems__"):
            with seeded(key_of("items", self._seed, *positions)):
                return list(self._dataset.__getitems__(self.indices(positions)))
        found = []
        with restored():
            for position, index in zip(positions, self.indices(positions), strict=True):
                seed_all(key_of("item", self._seed, position))
                found.append(self._dataset[index])
        return found

    def batch(self, positions: Sequence[int]) -> Any:
        """What `collate` makes of the items at these positions."""
        return self._collate(self.items(positions))

    def expect(self, coming: Iterable[Sequence[int]]) -> None:
        """Tell the dataset what will be read next, batch after batch, if it wants to know."""
        if hasattr(self._dataset, "expect"):
            self._dataset.expect(self.indices(positions) for positions in coming)


def moved(batch: Any, device: str) -> Any:
    """A batch with its tensors on a device: in lists, tuples and mappings too, and whatever has a method `to`."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: moved(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(moved(value, device) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(moved(value, device) for value in batch)
    return batch
