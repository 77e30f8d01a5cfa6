"""Several cells that hold the same state write it together: each its share, every element once; all learn the end."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal_core.ckpt import across, alone, among, nearby, pieces
from shoal_core.ckpt.across import Share
from shoal_core.ckpt.boxes import Box, whole
from shoal_core.ckpt.folder import Folder, name_of
from shoal_core.ckpt.marker import MARKER
from shoal_core.ckpt.pieces import Piece, block_bytes, check, deal, spread
from shoal_core.ckpt.state import bytes_of
from shoal_core.ckpt.together import Uncommitted
from shoal_core.ckpt.whole import Checkpoint
from shoal_core.errors import StoreError
from shoal_core.store import open_store
from shoal_core.store.local import LocalStore, LocalWriter
from tests.support.ranks import Mesh, Peer, on_ranks

STATE = {
    "w": torch.arange(4096.0).view(64, 64),
    "experts": torch.arange(1500.0).view(1, 50, 30),
    "bias": torch.zeros(40, dtype=torch.bfloat16),
    "step": torch.tensor(3),
    "none": torch.empty(0),
}
HALVES: Mesh = {
    "w": [Box((0, 0), (32, 64)), Box((32, 0), (32, 64))],
    "experts": [whole((1, 50, 30)), None],
    "bias": [whole((40,))] * 2,
    "step": [whole(())] * 2,
    "none": [whole((0,))] * 2,
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "SMALLEST", 256)


def held(rank: int) -> list[Piece]:
    """What a rank has of `STATE`."""
    return [
        Piece(name, str(STATE[name].dtype).removeprefix("torch."), tuple(STATE[name].shape), box)
        for name, boxes in HALVES.items()
        if (box := boxes[rank]) is not None
    ]


def shares_of(rank: int, cells: int) -> list[list[Piece]]:
    return spread(deal([held(0), held(1)])[rank], cells)


def content(parts: Collection[Piece], state: dict[str, torch.Tensor]) -> dict[Piece, memoryview]:
    return {one: bytes_of(state[one.name][one.box.inside(whole(one.shape))].contiguous()) for one in parts}


def share(place: int, cells: int = 2, **changed: Any) -> Share:
    block = block_bytes([*held(0), *held(1)])
    return replace(Share(tuple(range(cells)), place, 2, "ab12cd34", block), **changed)


def cell(folder: Folder, place: int, cells: int = 2, disks: Path | None = None, **changed: Any) -> list[Any]:
    """What the two ranks of a cell hear of a save by several."""
    mine = share(place, cells, **changed)

    def one(peer: Peer) -> int:
        parts = content(shares_of(peer.rank, cells)[place], STATE)
        if disks is None:
            return across.save(folder, 7, parts, peer, {"steps": 3}, mine)
        disk = Folder(open_store(disks / f"n{place}"), folder.name)
        here = nearby.write(disk, 7, parts, peer, mine)
        return nearby.bring(here, folder, peer, {"steps": 3}, lambda why: None, ())

    return on_ranks(2, one)


def together_at(folder: Folder, cells: int = 2, **changed: Any) -> list[list[Any]]:
    with ThreadPoolExecutor(cells) as pool:
        return list(pool.map(lambda place: cell(folder, place, cells, **changed), range(cells)))


# ---- who writes what


@pytest.mark.parametrize("cells", [1, 2, 3, 7])
def test_every_element_is_in_one_share_and_shares_are_even(cells: int) -> None:
    for rank in range(2):
        shares = shares_of(rank, cells)
        assert shares == spread(deal([held(0), held(1)])[rank][::-1], cells), "the order says nothing"
        sizes = [sum(one.bytes for one in parts) for parts in shares]
        assert max(sizes) - min(sizes) <= 2 * 256, "half a block on either side"
    check([one for rank in range(2) for parts in shares_of(rank, cells) for one in parts])


def test_shares_of_a_large_state_are_even_to_a_hundredth_and_little_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "SMALLEST", 1 << 16)
    mine = [
        Piece(f"layer.{at:02d}.{name}", "float32", shape, whole(shape))
        for at in range(23)
        for name, shape in [("w", (2048, 640)), ("norm", (512,)), ("experts", (1, 1024, 1024))]
    ]
    for cells in (2, 5, 16):
        shares = spread(mine, cells)
        sizes = [sum(one.bytes for one in parts) for parts in shares]
        assert max(sizes) < 1.01 * min(sizes)
        cut = [one for parts in shares for one in parts if one.box != whole(one.shape)]
        assert len(cut) <= 2 * (cells - 1)
        assert min(one.bytes for one in cut) >= 1 << 16
        check([one for parts in shares for one in parts])


def test_what_is_smaller_than_a_block_is_not_cut() -> None:
    mine = [Piece(name, "float32", (60,), whole((60,))) for name in "abc"]
    assert spread(mine, 2) in ([mine[:1], mine[1:]], [mine[:2], mine[2:]])
    assert [len(parts) for parts in spread(mine[:1], 4)].count(1) == 1


# ---- what becomes of it


@pytest.mark.parametrize("cells", [2, 3])
@pytest.mark.parametrize("near", [False, True])
def test_cells_write_a_state_together(tmp_path: Path, cells: int, near: bool) -> None:
    folder = Folder.at(tmp_path / "store" / name_of(3))
    sizes = together_at(folder, cells, disks=tmp_path / "disks" if near else None)
    checkpoint = Checkpoint.open(folder)
    checkpoint.verify()
    assert sizes == [[checkpoint.bytes] * 2] * cells
    found = alone.read(checkpoint)
    assert all(torch.equal(found[name], STATE[name]) for name in STATE)
    files = [f"g7-ab12cd34-{rank:05d}.safetensors" for rank in range(2 * cells)]
    assert sorted(folder.sizes()) == sorted([*files, "g7-ab12cd34.index.json", MARKER]), "no word is left"
    tensors = [checkpoint.index.files[name].bytes - checkpoint.index.files[name].header for name in files]
    assert sum(tensors) == sum(tensor.nbytes for tensor in STATE.values()), "each byte once"
    for rank in range(2):
        assert max(tensors[rank::2]) - min(tensors[rank::2]) <= 512
    if near:
        assert {path.name for path in (tmp_path / "disks").rglob("*.safetensors")} == set(files)


class Broken(LocalStore):
    """A store that fails at what `fails` says."""

    def __init__(self, root: Path, fails: str) -> None:
        super().__init__(str(root), root)
        self.fails = fails

    def writer(self, name: str) -> LocalWriter:
        if self.fails in name:
            raise StoreError(f"{self.where(name)}: No space left on device", "make room")
        return super().writer(name)


@pytest.mark.parametrize(
    ("fails", "who"),
    [("00003.safetensors", "cell 1, rank 1"), ("00000.safetensors", "cell 0, rank 0"), (MARKER, "rank 0")],
)
def test_what_one_rank_lacks_all_cells_are_told(tmp_path: Path, fails: str, who: str) -> None:
    folder = Folder(Broken(tmp_path, fails), name_of(3))
    answers = [answer for said in together_at(folder) for answer in said]
    assert {type(answer) for answer in answers} == {Uncommitted}
    assert {(answer.problem, answer.remedy) for answer in answers} == {(answers[0].problem, "make room")}
    assert f"{who}: StoreError" in answers[0].problem
    left = set(folder.sizes()) - {"g7-ab12cd34-part-00000.json"}
    assert bool(left) == (fails == MARKER), "beside the word that says so only what a late marker would need"
    among.sweep(open_store(tmp_path))
    assert folder.sizes() == {}


@pytest.mark.parametrize("missing", [0, 1])
def test_a_cell_that_never_says_anything_is_waited_for_no_longer_than_that(tmp_path: Path, missing: int) -> None:
    folder = Folder.at(tmp_path / name_of(3))
    answers = cell(folder, 1 - missing, patience=0.2)
    assert {type(answer) for answer in answers} == {Uncommitted}
    assert f"cell {missing} said nothing of its share" in answers[0].problem
    assert among.whole(open_store(tmp_path)) == []


@pytest.mark.parametrize("missing", [0, 1])
def test_nobody_waits_for_a_cell_that_is_gone(tmp_path: Path, missing: int) -> None:
    folder, gone = Folder.at(tmp_path / name_of(3)), list[int]()
    threading.Timer(0.2, gone.append, [missing]).start()
    answers = cell(folder, 1 - missing, gone=lambda: gone, patience=3600.0)
    assert f"cell {missing} ended before its share was told" in answers[0].problem
    assert among.whole(open_store(tmp_path)) == []


def test_what_a_cell_said_before_it_ended_counts(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path / name_of(3))
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(cell, folder, 1, patience=60.0)
        while "g7-ab12cd34-part-00001.json" not in folder.sizes():
            threading.Event().wait(0.01)
        sizes = cell(folder, 0, gone=lambda: [1])
        Checkpoint.open(folder).verify()
        assert other.result() == sizes == [Checkpoint.open(folder).bytes] * 2


def test_a_first_cell_that_ends_with_the_marker_has_saved(tmp_path: Path) -> None:
    """The others go by the marker, whoever told them of its end."""
    folder = Folder.at(tmp_path / name_of(3))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(cell, folder, 0, patience=60.0)
        assert cell(folder, 1, gone=lambda: [0] if MARKER in folder.sizes() else []) == first.result()
    Checkpoint.open(folder).verify()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-9],
        lambda text: text.replace('"problem', '"broblem'),
        lambda text: text.replace("w", "v"),
        lambda text: "[]",
    ],
)
def test_a_damaged_word_is_not_believed(tmp_path: Path, damage: Callable[[str], str]) -> None:
    folder = Folder.at(tmp_path / name_of(3))

    class Damaging(LocalStore):
        def put(self, name: str, content: bytes | memoryview) -> None:
            super().put(name, damage(bytes(content).decode()).encode() if "part-00001" in name else content)

    bad = Folder(Damaging(str(tmp_path), tmp_path), folder.name)
    answers = together_at(bad)
    assert {type(answer) for said in answers for answer in said} == {Uncommitted}
    assert among.whole(open_store(tmp_path)) == []


def test_one_that_stands_there_stays(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path / name_of(3))
    size = alone.write(folder, STATE, {"steps": 3})
    before = folder.sizes()
    assert together_at(folder) == [[size] * 2] * 2
    assert folder.sizes() == before
    Checkpoint.open(folder).verify()


@pytest.mark.parametrize("many", [False, True])
def test_what_stands_in_the_way_and_is_no_marker_is_no_checkpoint(tmp_path: Path, many: bool) -> None:
    folder = Folder.at(tmp_path / name_of(3))
    folder.put(MARKER, b"{")
    if many:
        answers = [answer for said in together_at(folder) for answer in said]
        assert {type(answer) for answer in answers} == {Uncommitted}
        assert "stands in the way" in answers[0].problem
    else:
        with pytest.raises(Uncommitted, match="stands in the way"):
            alone.write(folder, STATE, {"steps": 3})


@pytest.mark.parametrize("place", [0, 1])
def test_a_rank_that_is_gone_fails_its_cell_and_then_the_other(tmp_path: Path, place: int) -> None:
    """It has written, and dies before it says so."""
    folder, gone = Folder.at(tmp_path / name_of(3)), list[int]()

    def dying(peer: Peer) -> int:
        mine = share(place)
        parts = content(shares_of(peer.rank, 2)[place], STATE)
        if peer.rank:
            across.wrote(folder, mine.attempt(7), parts, peer, mine)
            peer.leave()
            gone.append(place)
            raise RuntimeError("killed")
        return across.save(folder, 7, parts, peer, {"steps": 3}, mine)

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(cell, folder, 1 - place, gone=lambda: gone, patience=3600.0)
        assert all(isinstance(answer, RuntimeError) for answer in on_ranks(2, dying))
        assert f"cell {place} ended" in other.result()[0].problem
    assert among.whole(open_store(tmp_path)) == []


def test_words_are_read_by_their_seal_alone(tmp_path: Path) -> None:
    folder, attempt = Folder.at(tmp_path / name_of(3)), share(1).attempt(7)
    across.tell(folder, attempt, 1, {"problems": [], "ranks": []})
    assert across.heard(folder, attempt, 1)["problems"] == []
    said = json.loads(folder.get(attempt.word(1)))
    folder.put(attempt.word(1), json.dumps({**said, "problems": ["x"]}).encode())
    with pytest.raises(ValueError, match="not as it was written"):
        across.heard(folder, attempt, 1)


def test_a_marker_that_comes_to_stand_late_has_all_that_it_names(tmp_path: Path) -> None:
    """The store gave no answer, also not to whether there is one; all are told that it failed, and then it is there."""
    late: list[bytes] = []

    class Late(LocalStore):
        def create(self, name: str, content: bytes | memoryview) -> bool:
            late.append(bytes(content))
            raise StoreError(f"{self.where(name)}: no answer", "try again")

    folder = Folder(Late(str(tmp_path), tmp_path), name_of(3))
    assert {type(answer) for said in together_at(folder) for answer in said} == {Uncommitted}
    folder.put(MARKER, late[0])
    Checkpoint.open(folder).verify()
