"""Files of a checkpoint out of the memory of those who hold the state that it is of."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from shoal_core.ckpt.errors import Damaged, Unfit
from shoal_core.ckpt.gather import gather
from shoal_core.ckpt.index import Block, Index
from shoal_core.ckpt.plan import Holder, Want, remaining
from shoal_core.ckpt.read import Scattered
from shoal_core.errors import StoreError

if TYPE_CHECKING:
    import torch

__all__ = ["Remembered"]


class Remembered:
    """What `memory` (holders, and where to read of each) has of the blocks of a checkpoint, whatever mesh it is held
    in; who reads holds each against its hash, so that another state of as many steps is not believed. `table`: the
    blocks that are there whole, of those that hold anything of what is `wanted`."""

    def __init__(
        self, index: Index, wanted: Mapping[str, Want], memory: Mapping[str, tuple[Holder, Scattered]]
    ) -> None:
        self._holders = {key: holder for key, (holder, _) in memory.items()}
        self._sources = {key: source for key, (_, source) in memory.items()}
        self._index = index
        self.table = {
            name: replace(index.tensors[name], blocks=self._whole(name, want)) for name, want in wanted.items()
        }
        self._blocks: defaultdict[str, list[tuple[int, str, Block]]] = defaultdict(list)
        for name, tensor in self.table.items():
            for block in tensor.blocks:
                self._blocks[block.file].append((block.at, name, block))
        for blocks in self._blocks.values():
            blocks.sort(key=lambda one: one[0])

    def _whole(self, name: str, want: Want) -> tuple[Block, ...]:
        """The blocks of a tensor that are there."""
        kind = self._index.tensors[name]
        found = [
            tensor
            for holder in self._holders.values()
            if (tensor := holder.table.get(name)) is not None
            and (tensor.shape, tensor.dtype) == (kind.shape, kind.dtype)
        ]
        boxes = [block.box for tensor in found for block in tensor.blocks]
        asked = [block for block in kind.blocks if block.bytes and any(block.box.common(box) for box in want.boxes)]
        return tuple(block for block in asked if not remaining(block.box, boxes))

    def where(self, name: str) -> str:
        return f"memory/{name}"

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """See `Source`: whole blocks of `table` only.

        Raises:
            FileNotFoundError: nobody has all of them.
        """
        blocks, end = self._blocks[name], offset + buffer.nbytes
        wanted: defaultdict[str, list[Block]] = defaultdict(list)
        targets: defaultdict[str, list[torch.Tensor]] = defaultdict(list)
        for at, tensor, block in blocks[bisect_right(blocks, offset, key=lambda one: one[0]) - 1 :]:
            if at >= end:
                break
            wanted[tensor].append(block)
            targets[tensor].append(self._view(tensor, block, buffer[at - offset :][: block.bytes]))
        kinds = self._index.tensors
        wants = {
            tensor: Want(kinds[tensor].dtype, kinds[tensor].shape, tuple(block.box for block in found))
            for tensor, found in wanted.items()
        }
        try:
            gather(self._holders, self._sources, wants, targets, "memory")
        except (Unfit, Damaged, StoreError) as error:
            raise FileNotFoundError(name) from error

    def _view(self, name: str, block: Block, content: memoryview) -> torch.Tensor:
        import torch

        dtype = getattr(torch, self._index.tensors[name].dtype)
        return torch.frombuffer(content, dtype=dtype).view(block.box.lengths)
