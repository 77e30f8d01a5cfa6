"""A state put together from other workers' memory: any mesh from any mix of holders, each byte once and evenly."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from shoal.protocol import codec
from shoal.protocol.codec import encode
from shoal.protocol.copying import Coming, Enter, Look, Ranges, Whole
from shoal.protocol.greeting import VERSION, Challenge
from shoal.protocol.orders import Keeper
from shoal.timeouts import Timeouts
from shoal.worker import peers as peers_module
from shoal.worker.copies import CopyServer, LostCopy
from shoal.worker.courier import Courier, put_together
from shoal.worker.peers import Peer, push
from shoal.worker.shelf import Held, Shelf, copy_name, heard_tables
from shoal_core.ckpt import gather as gather_module
from shoal_core.ckpt import pieces as pieces_module
from shoal_core.ckpt import plan as plan_module
from shoal_core.ckpt import read as read_module
from shoal_core.ckpt import together
from shoal_core.ckpt.boxes import Box, whole
from shoal_core.ckpt.folder import Folder
from shoal_core.ckpt.pieces import Piece
from shoal_core.ckpt.state import bytes_of
from shoal_core.ckpt.tables import heard, table_of
from shoal_core.ckpt.together import Loaded
from shoal_core.errors import StoreError
from tests.support.ranks import on_ranks

SHAPES = {"wte": (130, 64), "experts": (8, 24, 16), "norm": (64,), "half": (130, 32), "shoal.exponent.0": (3,)}
LAYERS = {"a": {"wte", "norm", "shoal.exponent.0"}, "b": {"experts", "half"}}
NAME = "state/0/7"


def whole_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    state = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    return {**state, "half": state["half"].bfloat16()}


def boxes(name: str, mesh: str, rank: int) -> list[Box]:
    """What a rank of a mesh has of a tensor: `fsdp N` cuts rows, and experts along their width; `ep N` experts by their
    number; `ep 4 moved` has them shuffled; `columns N` cuts all along the last axis; `pp 2` gives stages of layers, and
    `pp 1` all to one."""
    kind, count = mesh.split()[0], int(mesh.split()[1])
    shape = SHAPES[name]
    if kind == "pp" and count == 2:
        return [whole(shape)] if name in LAYERS["ab"[rank]] else []
    if name == "norm" or count == 1:
        return [whole(shape)]
    if name.startswith("shoal"):
        return [whole(shape)] if rank == 0 else []
    if "moved" in mesh and name == "experts":
        return [Box((e, 0, 0), (1, *shape[1:])) for e in ((5 * n + 3) % 8 for n in range(2 * rank, 2 * rank + 2))]
    axis = {"fsdp": int(name == "experts"), "columns": len(shape) - 1}.get(kind, 0)
    each = -(-shape[axis] // count)
    first = min(rank * each, shape[axis])
    length = min(each, shape[axis] - first)
    box = Box(
        tuple(first if d == axis else 0 for d in range(len(shape))),
        tuple(length if d == axis else size for d, size in enumerate(shape)),
    )
    return [box] if length else []


class Shard:
    """A rank's part of a state, in tensors of its own; experts of one rank lie in one tensor."""

    def __init__(self, mesh: str, rank: int, state: Mapping[str, torch.Tensor] | None = None) -> None:
        self.tensors_: list[torch.Tensor] = []
        self.parts: list[tuple[Piece, torch.Tensor]] = []
        self.placings = 0
        for name, shape in SHAPES.items():
            mine = boxes(name, mesh, rank)
            if not mine:
                continue
            dtype = "bfloat16" if name == "half" else "float32"
            rows = [
                torch.full(box.lengths, float("nan"), dtype=getattr(torch, dtype))
                if state is None
                else state[name][box.inside(whole(shape))]
                for box in mine
            ]
            tensor = torch.cat(rows).contiguous() if len(rows) > 1 else rows[0].clone()
            self.tensors_.append(tensor)
            start = 0
            for box in mine:
                length = box.lengths[0]
                self.parts.append((Piece(name, dtype, shape, box), tensor[start : start + length]))
                start += length

    def placed(self) -> list[tuple[Piece, torch.Tensor]]:
        return self.parts

    def arrangement(self) -> dict[str, torch.Tensor]:
        return {}

    def arranged(self) -> None:
        pass

    def held(self) -> Held:
        return Held(self.tensors_, table_of(self.parts, self.tensors_))

    def holds(self, state: Mapping[str, torch.Tensor]) -> bool:
        return all(torch.equal(part, state[p.name][p.box.inside(whole(p.shape))]) for p, part in self.parts)

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors_)


def step_of(shard: Shard) -> Any:
    return SimpleNamespace(shard=shard, sums=SimpleNamespace(state=dict), member=SimpleNamespace(rank=0))


def server(shelf: Shelf | None = None) -> CopyServer:
    return CopyServer("127.0.0.1", lambda *_: None, timeout=60, secret=lambda: "s", shelf=shelf)


def holders(mesh: str, count: int, cells: int, state: Mapping[str, torch.Tensor]) -> dict[str, CopyServer]:
    found = {}
    for cell in range(cells):
        for rank in range(count):
            one = found[f"{cell}.{rank}"] = server()
            one.shelf.put(NAME, Shard(mesh, rank, state).held())
    return found


def filled(
    shard: Shard,
    having: Mapping[str, CopyServer],
    own: str = "",
    turn: int = 0,
    secret: str = "s",
    timeout: float = 60,
) -> Counter[str]:
    addresses = {key: one.address for key, one in having.items()}
    shelf = having[own].shelf if own else Shelf()
    holders = {key: (address, [NAME]) for key, address in addresses.items()}
    return put_together(step_of(shard), holders, shelf, own, secret, timeout, turn)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "LEAST", 256)


MESHES = [
    ("fsdp 4", 4, "fsdp 2", 2),
    ("fsdp 4", 4, "fsdp 3", 3),
    ("pp 2", 2, "pp 1", 1),
    ("ep 2", 2, "ep 4", 4),
    ("ep 4 moved", 4, "fsdp 3", 3),
    ("fsdp 3", 3, "ep 4 moved", 4),
    ("columns 3", 3, "fsdp 2", 2),
]


@pytest.mark.parametrize(("before", "count", "after", "ranks"), MESHES)
def test_any_mesh_is_filled_from_the_memory_of_any_other(before: str, count: int, after: str, ranks: int) -> None:
    """Two cells of one, one of which lost its last worker: every rank of the new reads its part and no byte more, and
    what it has itself not at all."""
    state = whole_state()
    having = holders(before, count, 2, state)
    having.pop(f"1.{count - 1}")
    asked = Counter[str]()
    for rank in range(ranks):
        shard = Shard(after, rank)
        own = f"0.{rank}" if rank < count else ""
        given = filled(shard, having, own, rank)
        assert shard.holds(state)
        assert given.total() == shard.bytes
        mine = Shard(before, rank, state) if own else None
        assert given[own] == (0 if mine is None else common(mine, shard))
        asked += Counter({key: size for key, size in given.items() if key != own})
    for key, one in having.items():
        assert one.given[NAME] == asked[key]


def common(one: Shard, other: Shard) -> int:
    """Bytes of what both hold."""
    found = 0
    for mine, _ in one.parts:
        for theirs, _ in other.parts:
            box = mine.box.common(theirs.box) if mine.name == theirs.name else None
            found += 0 if box is None else box.numel * mine.itemsize
    return found


def test_all_who_have_it_give_about_as_much() -> None:
    state = whole_state()
    having = holders("fsdp 4", 4, 3, state)
    given = Counter[str]()
    for rank in range(2):
        given += filled(Shard("fsdp 2", rank), having, turn=rank)
    assert max(given.values()) <= 1.25 * given.total() / len(having)


def test_copies_that_are_kept_for_others_are_put_together_in_another_shape() -> None:
    """By the tables that came with them."""
    state, keeper = whole_state(), server()
    for rank in range(4):
        push(Shard("ep 4 moved", rank, state).held(), rank, 7, Keeper(keeper.address), "s", timeout=60)
    names = [copy_name(rank, 7) for rank in range(4)]
    for rank in range(3):
        shard = Shard("fsdp 3", rank)
        given = put_together(step_of(shard), {"keeper": (keeper.address, names)}, Shelf(), "", "s", timeout=60)
        assert given == {"keeper": shard.bytes}
        assert shard.holds(state)
    shard = Shard("fsdp 3", 1)
    with pytest.raises(LostCopy, match="nobody has experts"):
        put_together(step_of(shard), {"keeper": (keeper.address, names[1:])}, Shelf(), "", "s", timeout=60)


class Faulty:
    """A worker that gives ranges as one does, of a shard; until its connections are dealt with by `fault`, which is
    given what it would send, and how much it has sent."""

    def __init__(self, held: Held, fault: Any) -> None:
        self.held, self.fault, self.sent = held, fault, 0
        self.shelf = Shelf()
        self.shelf.put(NAME, held)
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.address = self.listening.getsockname()
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while True:
            try:
                line, _ = self.listening.accept()
            except OSError:
                return
            threading.Thread(target=self.answer, args=(line,), daemon=True).start()

    def answer(self, line: socket.socket) -> None:
        with line, line.makefile("rb") as words, contextlib.suppress(OSError):
            line.sendall(encode(Challenge(VERSION, "n")))
            assert isinstance(codec.copying(words.readline()), Enter)
            while said := words.readline():
                asked = codec.copying(said)
                if isinstance(asked, Look):
                    tables = self.shelf.told(asked.prefix)
                    line.sendall(encode(Whole(len(tables), peers_module.xxhash.xxh3_64_intdigest(tables))) + tables)
                    continue
                assert isinstance(asked, Ranges)
                content = b"".join(bytes(view) for at, n in asked.ranges for view in self.held.views(at, n))
                summed = peers_module.xxhash.xxh3_64_intdigest(content)
                self.sent += len(content)
                line.sendall(encode(Coming(self.held.bytes)))
                self.fault(self, line, content)
                line.sendall(encode(Whole(len(content), summed)))


def dies(self: Faulty, line: socket.socket, content: bytes) -> None:
    line.sendall(content[: len(content) // 2])
    self.listening.close()
    line.shutdown(socket.SHUT_RDWR)


def hangs(self: Faulty, line: socket.socket, content: bytes) -> None:
    line.sendall(content[:1])
    line.recv(1)  # until the other side closes it


def damages(self: Faulty, line: socket.socket, content: bytes) -> None:
    line.sendall(bytes([content[0] ^ 1]) + content[1:])


@pytest.mark.parametrize("fault", [dies, hangs, damages])
def test_what_one_does_not_give_whole_comes_from_another(fault: Any) -> None:
    state = whole_state()
    having: dict[str, Any] = holders("fsdp 4", 4, 1, state)
    bad = having["1.2"] = Faulty(Shard("fsdp 4", 2, state).held(), fault)
    shard, patience = Shard("fsdp 2", 1), 6.0 if fault is hangs else 60.0
    given = filled(shard, having, timeout=patience)
    assert bad.sent > 0, "it was asked"
    assert shard.holds(state)
    assert given["1.2"] == 0
    assert given.total() == shard.bytes
    if fault is hangs:
        return  # who is silent was waited for once
    del having["0.2"]
    with pytest.raises(LostCopy, match=f"{NAME} in the memory of 127.0.0.1"):
        filled(Shard("fsdp 2", 1), having)


def test_who_has_no_secret_gets_nothing_and_what_nobody_has_is_named() -> None:
    having = holders("fsdp 4", 4, 1, whole_state())
    with pytest.raises(LostCopy, match="no tensor wte"):
        filled(Shard("fsdp 2", 0), having, secret="guess")
    assert not any(one.given for one in having.values())
    having["0.1"].shelf.drop(NAME)
    with pytest.raises(LostCopy, match=r"nobody has wte from \[33, 0\]"):
        filled(Shard("fsdp 2", 0), having)


def test_a_state_that_goes_on_meanwhile_is_not_believed() -> None:
    """What was sent before its holder's next step is of no state."""
    one, shard = server(), Shard("fsdp 4", 0, whole_state())
    stands = iter([True, False])
    one.shelf.put(NAME, Held(shard.tensors_, {}, lambda: next(stands)))
    with Peer(one.address, "s", 60) as peer, pytest.raises(FileNotFoundError):
        peer.read_each(NAME, [(0, memoryview(bytearray(8)))])
    one.shelf.put(NAME, shard.held())
    with Peer(one.address, "s", 60, {NAME: 5}) as peer, pytest.raises(StoreError, match="not 5"):
        peer.read_each(NAME, [(0, memoryview(bytearray(8)))])


def test_no_more_is_held_than_a_few_blocks_beside_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what cannot be received where it belongs (columns), counted while it is there; of rows nothing."""
    block, lock, alive = 1 << 11, threading.Lock(), Counter[str]()
    room, place = read_module.room, read_module.place

    def counted(size: int) -> memoryview:
        with lock:
            alive["now"] += size
            alive["most"] = max(alive["most"], alive["now"])
        return room(size)

    def placed(part: Any, content: memoryview, targets: Any) -> None:
        place(part, content, targets)
        with lock:
            alive["now"] -= content.nbytes

    monkeypatch.setattr(gather_module, "allot", partial(plan_module.allot, at_once=block))
    monkeypatch.setattr(read_module, "room", counted)
    monkeypatch.setattr(read_module, "place", placed)
    state = whole_state()
    for before, most in (("columns 2", read_module.READERS * block), ("fsdp 2", 0)):
        having = holders(before, int(before[-1]), 1, state)
        shard = Shard("fsdp 2", 1)
        alive.clear()
        filled(shard, having)
        assert shard.holds(state)
        assert (0 < alive["most"] <= most) if most else alive["most"] == 0


@pytest.mark.parametrize("before", ["ep 2", "fsdp 2"])
def test_the_process_is_no_larger_than_with_the_new_state_and_a_few_blocks(
    monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    """By what the system counts of it, while others read from it too: 64 MiB that were not there, 8 of 1 MiB beside,
    and what threads and tables take."""
    mib = 1 << 20
    monkeypatch.setitem(SHAPES, "experts", (8, 1 << 12, 1 << 10))
    monkeypatch.setattr(gather_module, "allot", partial(plan_module.allot, at_once=mib))
    state = whole_state()
    having, shard = holders(before, 2, 1, state), Shard("fsdp 2", 0)
    large = next(tensor for tensor in shard.tensors_ if tensor.nbytes == 64 * mib)
    large.untyped_storage().resize_(0)  # gives its memory back
    large.untyped_storage().resize_(64 * mib)
    first = largest()
    given = filled(shard, having)
    grown = largest(reset=False) - first
    assert 64 * mib < given.total() == shard.bytes
    assert shard.holds(state)
    assert 64 * mib <= grown <= (64 + 8 + 8) * mib


def largest(*, reset: bool = True) -> int:
    """Bytes of memory that this process had at most since this was reset, which it is to what it has now."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def content(mesh: str, rank: int, state: Mapping[str, torch.Tensor]) -> dict[Piece, memoryview]:
    """What a rank has of a state, to be saved."""
    return {piece: bytes_of(part.clone()) for piece, part in Shard(mesh, rank, state).parts}


@pytest.mark.parametrize(("before", "count", "after", "ranks"), MESHES[:4])
def test_a_restore_takes_from_memory_what_is_there_and_the_rest_from_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, count: int, after: str, ranks: int
) -> None:
    """The last rank of the new cell keeps copies of all old ranks but the first; a state of another history, or a
    holder that does not answer, changes no bit of what is loaded."""
    monkeypatch.setattr(pieces_module, "SMALLEST", 512)
    state = whole_state()
    folder = Folder.at(tmp_path / "step-00000007")
    saved = on_ranks(
        count, lambda peer: together.save(folder, 0, content(before, peer.rank, state), peer, {"steps": 7})
    )
    assert saved == [saved[0]] * count
    monkeypatch.setattr(together, "held", lambda parts: dict(parts.values()))
    keeper = server()

    def keep(held: Mapping[str, torch.Tensor]) -> None:
        for rank in range(1, count):
            push(Shard(before, rank, held).held(), rank, 7, Keeper(keeper.address), "s", timeout=60)

    def load() -> tuple[int, int]:
        """Bytes that were read, and those of them that were not from the store."""

        def one(peer: Any) -> Loaded:
            mine, shard = keeper if peer.rank == ranks - 1 else server(), Shard(after, peer.rank)
            courier = Courier(Timeouts(60.0), lambda: "s", mine.shelf, f"w{peer.rank}")
            courier.address = mine.address
            parts = {piece.name: (piece, part) for piece, part in shard.parts}
            with courier.remembered(peer, 7) as memory:
                found = together.load(folder, parts, peer, lambda name: False, memory=memory)
            assert shard.holds(state)
            return found

        found = on_ranks(ranks, one)
        return sum(loaded.bytes for loaded in found), sum(loaded.near for loaded in found)

    keep(state)
    total, near = load()
    first = Shard(before, 0, state).bytes
    assert total - 1.5 * first * ranks <= near < total
    assert near > 0
    keep({name: tensor + 1 for name, tensor in state.items()})
    assert load() == (total, 0)
    keep(state)
    gone = SimpleNamespace(shelf=keeper.shelf, address=("127.0.0.1", 1))
    keeper = cast(CopyServer, gone)
    found, own = load()
    assert found == total
    assert own < near or (ranks == 1 and own == near), "who keeps them has them still"


@pytest.mark.parametrize(
    "said",
    [
        b"[]",
        b'{"f":[8,{"w":["float32",[2],[[[0],[3],0]]]}]}',
        b'{"f":[8,{"w":["float32",[4],[[[0],[2],4]]]}]}',
        b'{"f":[8,{"w":["nothing",[2],[]]}]}',
        b'{"f":[8,{"w":["float32",[-2],[]]}]}',
        b'{"f":8}',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_a_table_that_leads_elsewhere_is_refused(said: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        heard_tables(said)


def test_a_table_is_told_and_heard() -> None:
    held = Shard("ep 4 moved", 3, whole_state()).held()
    shelf = Shelf()
    shelf.put(NAME, held)
    (table,) = shelf.tables("state/").values()
    assert {n: (t.shape, t.dtype, [(b.box, b.at) for b in t.blocks]) for n, t in table.items()} == {
        n: (t.shape, t.dtype, [(b.box, b.at) for b in t.blocks]) for n, t in held.table.items()
    }
    assert heard({}, "f", 0) == {}
