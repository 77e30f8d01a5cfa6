"""The format of checkpoints: what any mesh saved any other reads to the bit, reading no more than it must."""

from __future__ import annotations

import random
import secrets
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from shoal_core.ckpt import alone, pieces
from shoal_core.ckpt.boxes import MOST_CUT, Box, rows, tile, whole
from shoal_core.ckpt.dtypes import SAFETENSORS, itemsize
from shoal_core.ckpt.errors import Unfit
from shoal_core.ckpt.folder import Folder
from shoal_core.ckpt.index import Index
from shoal_core.ckpt.pieces import Piece, deal
from shoal_core.ckpt.plan import Want, plan
from shoal_core.ckpt.read import fetch
from shoal_core.ckpt.whole import Checkpoint
from tests.support import ranks

BLOCK = 64
SHAPES = [(), (0, 3), (1,), (7,), (12, 5), (3, 4, 6), (2, 40)]


def of_all_types() -> dict[str, torch.Tensor]:
    """A tensor of each type that can be saved, with bits of any kind, by names of any kind."""
    state = {}
    generator = torch.Generator().manual_seed(0)
    for number, dtype in enumerate(SAFETENSORS):
        raw = torch.randint(0, 2 if dtype == "bool" else 256, (6, 5 * itemsize(dtype)), generator=generator)
        state[f"{dtype}.{number}"] = raw.to(torch.uint8).view(getattr(torch, dtype))
    state |= {"scalar": torch.tensor(3.5), "none": torch.empty(0, 3), "one@0": torch.ones(2), "@": torch.tensor(1)}
    state |= {"__metadata__": torch.arange(3), 'ü/% "\\\n.weight': torch.arange(4.0), "": torch.zeros(1)}
    return state


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """To the bit, NaN too."""
    raw = [tensor.contiguous().view(-1).view(torch.uint8) for tensor in (one, other)]
    return (one.dtype, one.shape) == (other.dtype, other.shape) and torch.equal(*raw)


def cut(shape: tuple[int, ...], count: int, kind: int) -> list[Box | None]:
    """What each of `count` ranks has of a tensor: all of it, rows, columns, or tiles, as torch's chunks have them."""
    if not shape or kind == 0 or 0 in shape:
        return [whole(shape)] * count
    grid = [1] * len(shape)
    if kind == 3 and len(shape) > 1 and count % 2 == 0:
        grid[0], grid[-1] = 2, count // 2
    else:
        grid[-1 if kind == 2 else 0] = count
    boxes: list[Box | None] = []
    for rank in range(count):
        place, left = [], rank
        for size, parts in zip(shape, grid, strict=True):
            left, index = divmod(left, parts)
            each = -(-size // parts)
            place.append((min(index * each, size), min((index + 1) * each, size)))
        box = Box(tuple(first for first, _ in place), tuple(end - first for first, end in place))
        boxes.append(box if box.numel else None)
    return boxes


def mesh(state: dict[str, torch.Tensor], count: int, dice: random.Random) -> dict[str, list[Box | None]]:
    return {name: cut(tuple(tensor.shape), count, dice.randrange(4)) for name, tensor in state.items()}


def read_by(checkpoint: Checkpoint, found: dict[str, list[Box | None]], rank: int) -> tuple[dict[str, Any], int, int]:
    """What a rank of another mesh reads; bytes that it read, and those of the blocks that hold any of it."""
    tensors = checkpoint.index.tensors
    boxes = {name: box for name, held in found.items() if (box := held[rank]) is not None}
    wanted = {name: Want(tensors[name].dtype, tensors[name].shape, (box,)) for name, box in boxes.items()}
    targets = {
        name: [torch.empty(box.lengths, dtype=getattr(torch, tensors[name].dtype))] for name, box in boxes.items()
    }
    size = fetch(checkpoint.folder, plan(checkpoint.index, wanted, ""), targets)
    least = sum(block.bytes for name, box in boxes.items() for block in tensors[name].blocks if block.box.common(box))
    return {name: target for name, (target,) in targets.items()}, size, least


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 6), st.integers(1, 6), st.randoms(use_true_random=False))
def test_any_mesh_reads_what_any_other_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saving: int, loading: int, dice: random.Random
) -> None:
    monkeypatch.setattr(pieces, "SMALLEST", BLOCK)
    state = {f"t{number}": torch.randn(shape) for number, shape in enumerate(SHAPES)}
    state |= {"half": torch.randn(9, 4).bfloat16(), "eight": torch.randn(5, 8).to(torch.float8_e4m3fn)}
    folder = Folder.at(tmp_path / secrets.token_hex(8) / "step-00000003")
    saved = mesh(state, saving, dice)
    total = sum(tensor.nbytes for tensor in state.values())
    sizes = ranks.save(folder, state, saved, saving, 3)
    checkpoint = Checkpoint.open(folder)
    assert sizes == [checkpoint.bytes] * saving
    headers = sum(file.header for file in checkpoint.index.files.values())
    assert checkpoint.bytes == total + headers, "every element is written once"
    checkpoint.verify()
    for found in (saved, mesh(state, loading, dice)):
        for rank in range(saving if found is saved else loading):
            values, size, least = read_by(checkpoint, found, rank)
            for name, value in values.items():
                box = found[name][rank]
                assert box is not None
                assert same(value, state[name][box.inside(whole(state[name].shape))]), name
            assert size == least
            if found is saved:
                assert size == sum(value.nbytes for value in values.values()), "of its own, not a byte more"


def test_a_mesh_of_another_size_reads_little_more_than_its_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 -> 3 ranks: at most a block more at each end."""
    monkeypatch.setattr(pieces, "SMALLEST", 1 << 10)
    state = {"w": torch.randn(1000, 16)}
    folder = Folder.at(tmp_path / "step-00000001")
    ranks.save(folder, state, {"w": cut((1000, 16), 4, 1)}, 4, 1)
    checkpoint = Checkpoint.open(folder)
    parts = cut((1000, 16), 3, 1)
    for rank in range(3):
        values, size, _ = read_by(checkpoint, {"w": parts}, rank)
        assert values["w"].nbytes <= size <= values["w"].nbytes + 2 * (1 << 10)


def test_all_types_shapes_and_names_come_back(tmp_path: Path) -> None:
    state = of_all_types()
    folder = Folder.at(tmp_path / "a b%20ü#+" / "step-00000007")
    alone.write(folder, state, {"steps": 7})
    checkpoint = Checkpoint.open(folder)
    checkpoint.verify()
    found = alone.read(checkpoint)
    assert found.keys() == state.keys()
    assert all(same(found[name], tensor) for name, tensor in state.items())
    shape, dtype = checkpoint.index.described["bfloat16.3"]
    assert (shape, dtype) == ((6, 5), "bfloat16")
    assert Index.parse(checkpoint.index.written()) == checkpoint.index


def test_safetensors_alone_opens_the_files(tmp_path: Path) -> None:
    """A tensor by its name where a rank has all of it, else by its name and where its part begins."""
    state = {"w": torch.arange(24.0).view(6, 4), "bias": torch.arange(3).to(torch.int8), "a@b": torch.ones(2)}
    folder = Folder.at(tmp_path / "step-00000001")
    held = {"w": cut((6, 4), 2, 1), "bias": cut((3,), 2, 0), "a@b": cut((2,), 2, 0)}
    ranks.save(folder, state, held, 2, 1)
    files = sorted((tmp_path / "step-00000001").glob("*.safetensors"))
    found = {key: value for file in files for key, value in load_file(file).items()}
    assert found.keys() == {"w@0,0", "w@3,0", "bias", "a@b@0"}
    assert torch.equal(torch.cat([found["w@0,0"], found["w@3,0"]]), state["w"])
    assert torch.equal(found["bias"], state["bias"])


def test_a_rank_with_much_writes_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal_core.ckpt.write.PART", 100)
    state = {f"t{number}": torch.full((10,), float(number)) for number in range(5)}
    folder = Folder.at(tmp_path / "step-00000001")
    alone.write(folder, state, {"steps": 1})
    files = sorted((tmp_path / "step-00000001").glob("*.safetensors"))
    assert sorted(len(load_file(file)) for file in files) == [1, 2, 2]
    found = alone.read(Checkpoint.open(folder), ["t4"])
    assert torch.equal(found["t4"], state["t4"])


def test_what_all_hold_is_dealt_out_evenly() -> None:
    shared = [Piece(f"s{n}", "float32", (100 + n,), whole((100 + n,))) for n in range(12)]
    own = [Piece("w", "float32", (40, 10), Box((10 * rank, 0), (10, 10))) for rank in range(4)]
    dealt = deal([[*shared, own[rank]] for rank in range(4)])
    assert sorted((piece for found in dealt for piece in found), key=lambda piece: (piece.name, piece.box)) == sorted(
        [*shared, *own], key=lambda piece: (piece.name, piece.box)
    )
    sizes = [sum(piece.bytes for piece in found) for found in dealt]
    assert max(sizes) - min(sizes) < 100


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ([[Piece("w", "float32", (4,), Box((0,), (3,)))]], "every element of w once"),
        ([[Piece("w", "float32", (4,), Box((0,), (3,)))], [Piece("w", "float32", (4,), Box((2,), (2,)))]], "once"),
        ([[Piece("w", "float32", (4,), whole((4,)))], [Piece("w", "int8", (4,), whole((4,)))]], "several kinds"),
    ],
)
def test_what_is_no_state_is_not_saved(held: list[list[Piece]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        deal(held)


def test_a_state_that_is_not_there_is_refused(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path / "step-00000001")
    alone.write(folder, {"w": torch.zeros(3)}, {"steps": 1})
    index = Checkpoint.open(folder).index
    for name, kind, said in [
        ("v", ("float32", (3,)), "no tensor v"),
        ("w", ("float32", (4,)), r"w is \[3\] float32 there, \[4\] float32 here"),
        ("w", ("int32", (3,)), "int32 here"),
    ]:
        with pytest.raises(Unfit, match=said):
            plan(index, {name: Want(*kind, (whole(kind[1]),))}, folder.address)
    with pytest.raises(Unfit, match="no tensor but of list"):
        alone.write(folder, {"w": [1]}, {"steps": 1})


@given(st.integers(1, 6), st.randoms(use_true_random=False))
def test_boxes_tile_until_one_is_moved_or_missing(count: int, dice: random.Random) -> None:
    shape = dice.choice([(7,), (12, 5), (3, 4, 6)])
    boxes = [box for box in cut(shape, count, dice.randrange(1, 4)) if box is not None]
    blocks = [block for box in boxes for block, _ in rows(box, 4, dice.choice([1, 16, 50]))]
    dice.shuffle(blocks)
    assert tile(shape, blocks)
    assert not tile(shape, blocks[1:])
    assert not tile(shape, [*blocks, blocks[0]])
    assert len(blocks) < 2 or not tile(shape, [blocks[-1], *blocks[1:]])


def test_boxes_side_by_side_are_held_against_each_other_in_no_time() -> None:
    """Those that begin in the same row, too: an index made of them holds no reader up. What takes as long as there are
    pairs of them would not end here."""
    count = 100_000
    columns = [Box((0, at), (1, 1)) for at in range(count)]
    assert tile((1, count), columns)
    assert not tile((1, count), [*columns[:-1], columns[0]])


def test_a_tensor_is_cut_along_few_dimensions() -> None:
    shape = (2,) * (MOST_CUT + 1)
    halves = [Box((at, *[0] * MOST_CUT), (1, *shape[1:])) for at in (0, 1)]
    assert tile(shape, halves)
    apiece = [Box(place, (1,) * len(shape)) for place in product((0, 1), repeat=len(shape))]
    assert not tile(shape, apiece)
    assert tile(shape[1:], [Box(box.offsets[1:], box.lengths[1:]) for box in apiece if not box.offsets[0]])
