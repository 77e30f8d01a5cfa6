"""A state of torch's tensors as pieces with their bytes. What is sharded is a `DTensor`; what is not, each rank has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shoal_core.ckpt.boxes import Box, whole
from shoal_core.ckpt.dtypes import SAFETENSORS
from shoal_core.ckpt.errors import Unfit
from shoal_core.ckpt.pieces import Piece
from shoal_core.ckpt.plan import Want

if TYPE_CHECKING:
    import torch

__all__ = ["bytes_of", "destinations", "held", "room", "shared", "warm_up"]

_boxes: dict[object, Box] = {}
"""Where local tensors lie, by all that it hangs on: torch takes long to say it, and training waits for it."""


def warm_up() -> None:
    """Pay for what the first look at a sharded state imports, more than a second of processor time, before it is
    waited for."""
    import torch._dynamo
    import torch.distributed.tensor  # noqa: F401


def held(state: Mapping[str, Any]) -> dict[Piece, torch.Tensor]:
    """What this rank has of `state`, by name: local tensors that share storage with it. An empty shard of what is not
    empty is nothing.

    Raises:
        Unfit: a value is no tensor, one is of a type that cannot be saved, or is a sum that is still to be made.
    """
    import torch

    found = {}
    meshes: dict[int, object] = {}
    with torch.no_grad():  # with it a local tensor takes torch several times as long
        for name, value in state.items():
            shape, local, box = placed(name, value, meshes)
            if local.numel() or not numel(shape):
                dtype = str(local.dtype).removeprefix("torch.")
                if dtype not in SAFETENSORS:
                    raise Unfit(f"{name} is of type {dtype}, which no checkpoint can hold", "keep it as another type")
                found[Piece(name, dtype, shape, box if local.numel() else whole(shape))] = local
    return found


def shared(mine: Mapping[Piece, torch.Tensor], parts: Sequence[Piece]) -> dict[Piece, torch.Tensor]:
    """`parts` of what this rank has, as views of that."""
    named: dict[str, list[tuple[Box, torch.Tensor]]] = {}
    for piece, local in mine.items():
        named.setdefault(piece.name, []).append((piece.box, local))
    found = {}
    for one in parts:
        box, local = next(has for has in named[one.name] if one.box in (has[0], has[0].common(one.box)))
        found[one] = local if one.box == box else local[one.box.inside(box)]
    return found


def destinations(
    placed: Iterable[tuple[Piece, torch.Tensor]],
) -> tuple[dict[str, Want], dict[str, list[torch.Tensor]]]:
    """What to read for the parts of a state that are held here, and the local tensors that it goes to."""
    wanted: dict[str, Want] = {}
    targets: dict[str, list[torch.Tensor]] = {}
    for piece, local in placed:
        before = wanted.get(piece.name)
        boxes = () if before is None else before.boxes
        wanted[piece.name] = Want(piece.dtype, piece.shape, (*boxes, piece.box))
        targets.setdefault(piece.name, []).append(local)
    return wanted, targets


def placed(name: str, value: Any, meshes: dict[int, object]) -> tuple[tuple[int, ...], torch.Tensor, Box]:
    """Shape of the whole, the local tensor, and where that lies. meshes: this rank's place in those that were met."""
    import torch
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if not isinstance(value, torch.Tensor):
        raise Unfit(f"{name} is no tensor but of {type(value).__name__}", "keep it as one")
    shape = tuple(value.shape)
    if not isinstance(value, DTensor):
        return shape, value.detach(), whole(shape)
    if any(placement.is_partial() for placement in value.placements):
        raise Unfit(f"{name} is a sum over ranks that is still to be made", "reduce it first")
    mesh, placements = value.device_mesh, tuple(value.placements)
    if id(mesh) not in meshes:
        meshes[id(mesh)] = tuple(mesh.shape), tuple(mesh.get_coordinate() or ())
    key = (shape, meshes[id(mesh)], placements)
    if key not in _boxes:
        lengths, offsets = compute_local_shape_and_global_offset(shape, mesh, placements)
        _boxes[key] = Box(tuple(offsets), tuple(lengths))
    return shape, value.to_local().detach(), _boxes[key]


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor in the CPU's memory, which they share."""
    import torch

    return tensor.view(-1).view(torch.uint8).numpy().data


def room(count: int) -> memoryview:
    """So many bytes of memory, which hold anything."""
    import torch

    return bytes_of(torch.empty(count, dtype=torch.uint8))


def numel(shape: tuple[int, ...]) -> int:
    return whole(shape).numel
