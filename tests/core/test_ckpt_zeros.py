"""A checkpoint that is written as it is made, with tensors that hold zeros alone and are stored nowhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from shoal_core.ckpt import alone, together
from shoal_core.ckpt.boxes import Box
from shoal_core.ckpt.errors import Unfit
from shoal_core.ckpt.folder import Folder
from shoal_core.ckpt.index import Index
from shoal_core.ckpt.pieces import Piece
from shoal_core.ckpt.state import bytes_of
from shoal_core.ckpt.whole import Checkpoint
from shoal_core.ckpt.write import in_order
from shoal_core.errors import StoreError, UserError

WHOLE = torch.arange(1.0, 25.0).view(6, 4)
PIECES = [Piece("w", "float32", (6, 4), Box((first, 0), (2, 4))) for first in (0, 2, 4)]
ZEROS = {"m": ((6, 4), "float32"), "v": ((3,), "bfloat16")}


def write(folder: Path) -> list[Piece]:
    """The order in which pieces were asked for."""
    asked: list[Piece] = []

    def content(piece: Piece) -> memoryview:
        asked.append(piece)
        return bytes_of(WHOLE[piece.box.inside(Box((0, 0), (6, 4)))])

    size = alone.stream(Folder.at(folder), PIECES, content, ZEROS, {"steps": 0})
    assert size == sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return asked


def test_it_comes_back_with_its_zeros(tmp_path: Path) -> None:
    place = tmp_path / "step-00000000"
    assert write(place) == in_order(PIECES)
    found = Checkpoint.open(Folder.at(place))
    found.verify()
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in found.index.tensors.items()} == {
        "w": ((6, 4), "float32"),
        **ZEROS,
    }
    values = alone.read(found)
    assert torch.equal(values["w"], WHOLE)
    assert [values[name].dtype for name in ZEROS] == [torch.float32, torch.bfloat16]
    assert not any(values[name].any() for name in ZEROS)
    (part,) = alone.read_boxes(found, {"w": [Box((1, 1), (3, 2))]})["w"]
    assert torch.equal(part, WHOLE[1:4, 1:3])
    state = {"w": torch.ones(6, 4), "m": torch.ones(6, 4), "v": torch.ones(3, dtype=torch.bfloat16)}
    loaded = together.load(Folder.at(place), state, together.ALONE, lambda _: False)
    assert loaded.bytes == WHOLE.nbytes
    assert torch.equal(state["w"], WHOLE)
    assert not state["m"].any() | state["v"].any()
    with pytest.raises(Unfit, match=r"m is \[6, 4\] float32 there, \[4, 6\] float32 here"):
        together.load(Folder.at(place), {"m": torch.ones(4, 6)}, together.ALONE, lambda _: False)


def test_only_an_index_that_says_so_lacks_blocks(tmp_path: Path) -> None:
    write(tmp_path / "step-00000000")
    said = json.loads(Checkpoint.open(Folder.at(tmp_path / "step-00000000")).index.written())
    assert Index.parse(json.dumps(said).encode()).tensors["m"].blocks == ()
    with pytest.raises(ValueError, match=r"the blocks of m are not the tensor"):
        Index.parse(json.dumps({**said, "version": 3}).encode())
    said["tensors"]["w"]["blocks"].pop()
    with pytest.raises(ValueError, match=r"the blocks of w are not the tensor"):
        Index.parse(json.dumps(said).encode())


def test_what_fails_on_its_way_leaves_nothing(tmp_path: Path) -> None:
    place = tmp_path / "step-00000000"

    def broken(piece: Piece) -> memoryview:
        if piece == in_order(PIECES)[-1]:
            raise StoreError("gone", "")
        return bytes_of(torch.ones(2, 4))

    with pytest.raises(StoreError, match="gone"):
        alone.stream(Folder.at(place), PIECES, broken, ZEROS, {"steps": 0})
    assert not place.exists()
    write(place)
    with pytest.raises(UserError, match="another checkpoint was put there"):
        write(place)
    Checkpoint.open(Folder.at(place)).verify()
    assert len(list(place.iterdir())) == 3
