"""Checkpoints that are written to each node's own disk, and brought to the store from there: either may be damaged."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal_core.ckpt import among, nearby, together
from shoal_core.ckpt.boxes import Box
from shoal_core.ckpt.errors import Damaged
from shoal_core.ckpt.folder import Folder, name_of
from shoal_core.ckpt.gather import gather
from shoal_core.ckpt.plan import Holder, Want
from shoal_core.ckpt.together import Loaded, Uncommitted
from shoal_core.ckpt.whole import Checkpoint
from shoal_core.ckpt.write import Attempt
from shoal_core.errors import StoreError
from shoal_core.store import open_store
from shoal_core.store.local import LocalStore
from tests.support.ranks import Mesh, content, on_ranks

BLOCK = 1 << 16
STATE = {"w": torch.arange(3 * BLOCK, dtype=torch.int32).view(-1, 64), "b": torch.arange(5.0)}
ROWS = STATE["w"].shape[0]
BYTES = sum(tensor.nbytes for tensor in STATE.values())


def mesh(ranks: int) -> Mesh:
    """`w` in parts of rows, `b` in all ranks."""
    each = -(-ROWS // ranks)
    parts = [(rank * each, min(each, ROWS - rank * each)) for rank in range(ranks)]
    return {"w": [Box((first, 0), (rows, 64)) for first, rows in parts], "b": [Box((0,), (5,))] * ranks}


class Place:
    """A store and the disks of nodes with a rank each."""

    def __init__(self, root: Path, ranks: int = 2) -> None:
        self.root, self.ranks = root, ranks
        self.late: list[str] = []

    @property
    def store(self) -> Folder:
        return Folder(open_store(self.root / "store"), name_of(7))

    def disk(self, rank: int) -> Folder:
        return Folder(open_store(self.root / f"node{rank}"), name_of(7))

    def files(self, where: str) -> list[Path]:
        return sorted((self.root / where).rglob("*.safetensors"))

    def save(self, pauses: tuple[float, ...] = ()) -> list[Any]:
        """What each rank gets for it."""

        def one(peer: Any) -> int:
            mine = content(STATE, mesh(self.ranks), peer.rank)
            here = nearby.write(self.disk(peer.rank), 3, mine, peer)
            return nearby.bring(here, self.store, peer, {"steps": 7}, self.late.append, pauses)

        return on_ranks(self.ranks, one)

    def load(self) -> list[Any]:
        """All of it into each rank, which is what was saved: what each gets for it."""

        def one(peer: Any) -> Loaded:
            found = {name: torch.zeros_like(tensor) for name, tensor in STATE.items()}
            loaded = together.load(self.store, found, peer, lambda name: False, [self.disk(peer.rank)])
            assert all(torch.equal(found[name], STATE[name]) for name in STATE)
            return loaded

        return on_ranks(self.ranks, one)

    def read(self, ranks: int) -> tuple[int, int]:
        """What each of `ranks` holds, read with the disk of the node of its number, if there is one: bytes from disks,
        and from the store."""
        index = Checkpoint.open(self.store, files=False).index
        near = far = 0
        for rank in range(ranks):
            wanted, targets = {}, {}
            for name, boxes in mesh(ranks).items():
                box, whole = boxes[rank], STATE[name]
                assert box is not None
                wanted[name] = Want(str(whole.dtype).removeprefix("torch."), tuple(whole.shape), (box,))
                targets[name] = [torch.zeros(box.lengths, dtype=whole.dtype)]
            holders = {"disk": Holder(index.tensors, 0), "store": Holder(index.tensors, 1)}
            given = gather(holders, {"disk": self.disk(rank), "store": self.store}, wanted, targets, "")
            for name, (target,) in targets.items():
                first, rows = wanted[name].boxes[0].offsets[0], wanted[name].boxes[0].lengths[0]
                assert torch.equal(target, STATE[name][first : first + rows])
            near, far = near + given["disk"], far + given["store"]
        return near, far


@pytest.fixture
def place(tmp_path: Path) -> Place:
    found = Place(tmp_path)
    sizes = found.save()
    assert sizes == [sum(path.stat().st_size for path in found.files("store"))] * 2
    return found


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_checkpoint_comes_to_the_store_by_way_of_disks_each_byte_once(place: Place) -> None:
    found = Checkpoint.open(place.store)
    found.verify()
    assert sum(block.bytes for _, block in found.index.blocks()) == BYTES
    near, far = [path for rank in (0, 1) for path in place.files(f"node{rank}")], place.files("store")
    assert [path.name for path in near] == [path.name for path in far]
    assert [path.read_bytes() for path in near] == [path.read_bytes() for path in far]


def test_what_a_node_has_is_not_read_from_the_store(place: Place) -> None:
    assert place.read(2) == (BYTES, 20), "but what the other wrote of what both have"
    near, far = place.read(3)
    assert near > BYTES / 2
    assert near + far < 1.2 * BYTES, "blocks at the edges are read by two"


def test_a_damaged_block_is_had_from_the_other_place(place: Place) -> None:
    """A block of the disk, then another in the store, then the same in both."""
    (near,), (far, _) = place.files("node0"), place.files("store")
    blocks = Checkpoint.open(place.store).index.tensors["w"].blocks[:2]
    assert {block.file for block in blocks} == {near.name} == {far.name}
    flip(near, blocks[0].at + 5)
    flip(far, blocks[1].at + 5)
    assert place.read(2) == (BYTES - blocks[0].bytes, 20 + blocks[0].bytes)
    assert all(isinstance(one, Damaged) for one in place.load()), "the other rank has no part of that file near"
    flip(near, blocks[1].at + 5)
    with pytest.raises(Damaged, match="differs"):
        place.read(2)


def test_files_that_the_store_has_lost_are_read_where_they_are(place: Place) -> None:
    for path in place.files("store"):
        path.unlink()
    assert all(isinstance(one, Damaged) and "missing" in one.problem for one in place.load())
    (mine,), (theirs,) = place.files("node0"), place.files("node1")
    for path, other in ((mine, "node1"), (theirs, "node0")):
        (place.root / other / name_of(7) / path.name).write_bytes(path.read_bytes())
    assert place.load() == [Loaded(7, BYTES, BYTES)] * 2


def test_no_damage_of_disk_or_store_is_ever_loaded(place: Place) -> None:
    """Whatever is flipped, cut, removed or swapped on the disks, all is had from the store; in both, all or nothing."""
    kept = {path: path.read_bytes() for where in ("node0", "node1", "store") for path in place.files(where)}
    random_ = random.Random(7)

    def harm(path: Path) -> None:
        content = bytearray(kept[path])
        match random_.randrange(4):
            case 0:
                content[random_.randrange(len(content))] ^= 1 << random_.randrange(8)
            case 1:
                del content[random_.randrange(len(content)) :]
            case 2:
                path.unlink()
                return
            case 3:
                content = bytearray(kept[random_.choice([one for one in kept if one.name != path.name])])
        path.write_bytes(content)

    near, far = place.files("node0") + place.files("node1"), place.files("store")
    for number in range(30):
        victims = random_.sample(near, random_.randint(1, 2)) + ([random_.choice(far)] if number % 3 == 0 else [])
        for path in victims:
            harm(path)
        loaded = place.load()  # which holds them against what was saved
        assert number % 3 == 0 or all(isinstance(one, Loaded) for one in loaded)
        assert all(isinstance(one, Loaded | Damaged) for one in loaded)
        for path in victims:
            path.write_bytes(kept[path])


def refusing(patch: pytest.MonkeyPatch, which: Callable[[str, int], bool]) -> list[str]:
    """Have stores take no files of which it says so, by their addresses and how many were asked for before."""
    asked: list[str] = []
    writer = LocalStore.writer

    def maybe(self: LocalStore, name: str) -> Any:
        where = self.where(name)
        if which(where, len(asked)):
            asked.append(where)
            raise StoreError(f"{where}: No space left on device", "make room")
        return writer(self, name)

    patch.setattr(LocalStore, "writer", maybe)
    return asked


def test_a_store_that_takes_nothing_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path)
    asked = refusing(monkeypatch, lambda where, before: "/store/" in where and before < 3)
    sizes = place.save(pauses=(0.0, 0.0))
    assert len(asked) == 3
    assert len(place.late) == 1, "told once"
    assert "No space left" in place.late[0]
    assert sizes == [Checkpoint.open(place.store).bytes] * 2
    Checkpoint.open(place.store).verify()


def test_what_never_comes_to_the_store_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path)
    refusing(monkeypatch, lambda where, before: "/store/" in where and "-00001" in where)
    said = place.save(pauses=(0.0,))
    assert all(isinstance(one, Uncommitted) and "rank 1: StoreError" in str(one) for one in said)
    assert place.files("store") == []
    assert among.whole(open_store(tmp_path / "store")) == []


def test_a_disk_that_is_full_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path)
    refusing(monkeypatch, lambda where, before: "/node1/" in where)
    said = place.save()
    assert all(isinstance(one, Uncommitted) and "rank 1: StoreError" in str(one) for one in said)
    assert [place.files(where) for where in ("node0", "node1", "store")] == [[], [], []]


def test_what_a_disk_changed_is_never_committed(tmp_path: Path) -> None:
    place = Place(tmp_path)

    def one(peer: Any) -> int:
        here = nearby.write(place.disk(peer.rank), 3, content(STATE, mesh(2), peer.rank), peer)
        if peer.rank == 1:
            flip(place.files("node1")[0], 5000)
        return nearby.bring(here, place.store, peer, {"steps": 7}, place.late.append, ())

    assert all(isinstance(one, Uncommitted) and "differs" in str(one) for one in on_ranks(2, one))
    assert place.files("store") == []


def test_disks_keep_the_newest(tmp_path: Path) -> None:
    root = open_store(tmp_path)
    for steps in (10, 20, 30, 40, 50):
        Folder(root, name_of(steps)).put(f"g1-ab{steps}-00000.safetensors", b"x")
    newest = Folder(root, name_of(40))
    newest.put("g1-cd40-00000.safetensors", b"an attempt before")
    nearby.tidy(root, newest, Attempt(1, "ab40"))
    assert [path.name for path in sorted(tmp_path.rglob("*.safetensors"))] == [
        "g1-ab30-00000.safetensors",
        "g1-ab40-00000.safetensors",
        "g1-ab50-00000.safetensors",
    ]
