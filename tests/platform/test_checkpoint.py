"""Checkpoints of a cell: saved in the background, loaded by all, and what a failure comes to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from shoal import checkpoint
from shoal.testing import World, world
from shoal_core.ckpt import among, together
from shoal_core.ckpt.folder import Folder, name_of
from shoal_core.ckpt.retention import Keep
from shoal_core.ckpt.stage import Stage
from shoal_core.ckpt.state import held
from shoal_core.ckpt.whole import Checkpoint
from shoal_core.errors import StoreError
from shoal_core.lane import DeviceLane, Lane
from shoal_core.store import open_store
from shoal_core.store.local import LocalStore
from tests.support.late import Late

STATE = {"vector": torch.arange(6.0), "bias": torch.zeros(2, dtype=torch.bfloat16)}


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A world of one."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def pair() -> Iterator[World]:
    with world(2) as found:
        yield found


@pytest.fixture
def saved(tmp_path: Path, alone: None) -> Folder:
    """A checkpoint of 7 steps."""
    saver, _ = saver_at(tmp_path / "checkpoints")
    saver.save(7, 0, STATE)
    saver.join()
    return Folder.at(tmp_path / "checkpoints" / name_of(7))


def saver_at(root: Path, lane: Lane | None = None) -> tuple[checkpoint.Saver, list[tuple[Any, ...]]]:
    """A saver, and what it will have said."""
    said: list[tuple[Any, ...]] = []
    done, failed = lambda *told: said.append(("done", *told)), lambda *told: said.append(("failed", *told))
    return checkpoint.Saver(root, None, lane or Lane(), Keep(2), {"run_id": "r"}, done, failed), said


def test_there_and_back(saved: Folder) -> None:
    found = Checkpoint.open(saved)
    assert (found.steps, found.marker["run_id"]) == (7, "r")
    assert found.index.described == {"vector": ((6,), "float32"), "bias": ((2,), "bfloat16")}
    state = {name: torch.empty_like(tensor) for name, tensor in STATE.items()}
    ours = torch.full((1,), 5)
    loaded = checkpoint.load(saved, {**state, "shoal.exponent.0": ours}, None)
    assert loaded == checkpoint.Loaded(7, sum(tensor.nbytes for tensor in STATE.values()))
    assert all(torch.equal(state[name], STATE[name]) for name in STATE)
    assert int(ours) == 5, "what an older checkpoint lacks of the platform's own stays as it was"


def test_a_state_is_saved_as_it_was_though_training_goes_on_before_it_has_left_the_device(
    tmp_path: Path, alone: None
) -> None:
    device = Late()
    lane = DeviceLane(device)
    saver, said = saver_at(tmp_path / "checkpoints", lane)
    state = {name: tensor.clone() for name, tensor in STATE.items()}
    saver.save(7, 0, state)
    assert device.log[0] == "side waits for main"
    lane.precede()
    for tensor in state.values():
        tensor.add_(1)
    saver.join()
    assert said[0][:2] == ("done", 7)
    found = {name: torch.empty_like(tensor) for name, tensor in STATE.items()}
    checkpoint.load(Folder.at(tmp_path / "checkpoints" / name_of(7)), found, None)
    assert all(torch.equal(found[name], STATE[name]) for name in STATE)


def test_training_goes_on_while_its_state_is_written(
    tmp_path: Path, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written is the state as it was, however slowly; the next one waits for its turn, in the same memory."""
    written = threading.Event()
    writer = LocalStore.writer

    def slow(self: LocalStore, name: str) -> Any:
        written.wait(timeout=60)
        return writer(self, name)

    monkeypatch.setattr(LocalStore, "writer", slow)
    saver, said = saver_at(tmp_path / "checkpoints")
    state = {name: tensor.clone() for name, tensor in STATE.items()}
    saver.save(1, 0, state)
    assert saver.busy()
    kept = dict(saver._stage._kept)
    state["vector"] += 100
    written.set()
    saver.save(2, 0, state)
    saver.join()
    assert [told[:3] for told in said] == [
        ("done", steps, str(tmp_path / "checkpoints" / name_of(steps))) for steps in (1, 2)
    ]
    for steps, more in ((1, 0), (2, 100)):
        found = {"vector": torch.zeros(6)}
        checkpoint.load(Folder.at(tmp_path / "checkpoints" / name_of(steps)), found, None)
        assert torch.equal(found["vector"], STATE["vector"] + more)
    assert all(saver._stage._kept[piece] is copy for piece, copy in kept.items())


def test_a_copy_is_made_of_views_and_scalars_too() -> None:
    state = {"turned": torch.arange(6.0).view(2, 3).T, "scalar": torch.tensor(7), "none": torch.empty(0)}
    found = {piece.name: bytes(content) for piece, content in Stage(Lane()).take(held(state)).read().items()}
    assert found["turned"] == torch.arange(6.0).view(2, 3).T.contiguous().numpy().tobytes()
    assert (len(found["scalar"]), found["none"]) == (8, b"")


@pytest.mark.parametrize(
    ("state", "word"),
    [
        ({"vector": torch.zeros(8)}, r"\[6\] float32 there, \[8\] float32 here"),
        ({"moment": torch.zeros(6)}, "no tensor moment"),
    ],
)
def test_another_state_is_refused(saved: Folder, state: dict[str, torch.Tensor], word: str) -> None:
    with pytest.raises(checkpoint.Unfit, match=word):
        checkpoint.load(saved, state, None)


def test_a_flipped_bit_is_never_loaded(saved: Folder) -> None:
    (part,) = Path(saved.address).glob("*.safetensors")
    content = part.read_bytes()
    for block in Checkpoint.open(saved).index.tensors["vector"].blocks:
        for place in (block.at, block.at + block.bytes // 2, block.at + block.bytes - 1):
            damaged = bytearray(content)
            damaged[place] ^= 1
            part.write_bytes(damaged)
            with pytest.raises(checkpoint.Damaged, match="differs"):
                checkpoint.load(saved, {"vector": torch.zeros(6)}, None)


def test_a_save_that_fails_is_told_and_leaves_nothing_behind(
    tmp_path: Path, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the files or at the marker."""
    saver, said = saver_at(tmp_path / "checkpoints")

    def full(self: LocalStore, name: str, *_: Any) -> None:
        raise StoreError(f"{self.where(name)}: No space left on device", "make room")

    for steps, what in ((1, "writer"), (2, "create")):
        with monkeypatch.context() as broken:
            broken.setattr(LocalStore, what, full)
            saver.save(steps, 0, STATE)
            saver.join()
    assert [(word, steps) for word, steps, *_ in said] == [("failed", 1), ("failed", 2)]
    assert all("rank 0: StoreError" in told[2] and "No space left" in told[2] for told in said)
    assert saver.problem is not None
    assert among.whole(open_store(tmp_path / "checkpoints")) == []
    assert list((tmp_path / "checkpoints").rglob("*.*")) == []
    saver.save(3, 0, STATE)
    saver.join()
    assert (said[-1][:2], saver.problem) == (("done", 3), None)


def test_what_is_removed_late_fails_no_save(tmp_path: Path, alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    saver, said = saver_at(tmp_path / "checkpoints")

    def kept(self: LocalStore, names: Any) -> None:
        raise StoreError("not yours", "ask its owner")

    monkeypatch.setattr(LocalStore, "delete", kept)
    for steps in (1, 2, 3):
        saver.save(steps, 0, STATE)
        saver.join()
    assert [told[:2] for told in said] == [("done", steps) for steps in (1, 2, 3)]


def exchanged() -> list[Any]:
    """What two ranks say to each other, of unequal length and in any letters."""
    rank = dist.get_rank()
    return checkpoint.Group(dist.group.WORLD).exchange({"rank": rank, "word": "ü" * (1 + 5000 * rank)})


def saved_and_loaded(folder: str) -> tuple[bool, int, int]:
    """A state of all kinds on two ranks: whether it came back, bytes read here, and those of its files."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Replicate, Shard

    rank = dist.get_rank()
    mesh = DeviceMesh("cpu", [0, 1])
    whole = torch.arange(21.0).view(7, 3)
    rows = whole.chunk(2)[rank].clone()
    state = {
        "rows": DTensor.from_local(rows, mesh, [Shard(0)], shape=torch.Size((7, 3)), stride=(3, 1)),
        "few": DTensor.from_local(torch.ones(1 - rank), mesh, [Shard(0)], shape=torch.Size((1,)), stride=(1,)),
        "same": DTensor.from_local(torch.full((4,), 2.0), mesh, [Replicate()]),
        "plain": torch.full((3,), 3.0),
        f"own.{rank}": torch.tensor([rank]),
    }
    peers = checkpoint.Group(dist.group.WORLD)
    size = together.save(Folder.at(folder), 0, Stage(Lane()).take(held(state)).read(), peers, {"steps": 1})
    empty: dict[str, Any] = {name: tensor * 0 for name, tensor in state.items()}
    loaded = checkpoint.load(Folder.at(folder), empty, dist.group.WORLD)
    local = {
        name: (tensor.to_local(), empty[name].to_local()) if isinstance(tensor, DTensor) else (tensor, empty[name])
        for name, tensor in state.items()
    }
    return all(torch.equal(*pair) for pair in local.values()), loaded.bytes, size


def retried(folder: str) -> tuple[list[tuple[int, str]], list[int]]:
    """Steps 1 to 3 of two ranks; the store takes nothing from rank 0 until step 3: what this rank was told of failures,
    and what became whole."""
    rank, group = dist.get_rank(), dist.new_group(backend="gloo")
    failed, whole = list[tuple[int, str]](), list[int]()
    saver = checkpoint.Saver(
        Path(folder),
        group,
        Lane(),
        Keep(10),
        {},
        lambda steps, *_: whole.append(steps),
        lambda steps, _, remedy: failed.append((steps, remedy)),
    )
    writer = LocalStore.writer

    def moody(self: LocalStore, name: str) -> Any:
        if rank == 0 and step < 3:
            raise StoreError("full", "make room")
        return writer(self, name)

    LocalStore.writer = moody  # type: ignore[method-assign]
    try:
        for step in (1, 2, 3):
            saver.save(step, 0, {"a": torch.full((3,), float(step))})
            saver.join()
            assert (saver.problem is None) == (step == 3)
    finally:
        LocalStore.writer = writer  # type: ignore[method-assign]
    return failed, whole


def test_what_all_ranks_lack_is_told_once(pair: World, tmp_path: Path) -> None:
    (failed, whole), (nothing, none) = pair.run(retried, str(tmp_path / "checkpoints"))
    assert failed == [(steps, "make room") for steps in (1, 2)]
    assert whole == [3]
    assert nothing == none == []


def test_ranks_say_to_each_other_what_they_say(pair: World) -> None:
    said = pair.run(exchanged)
    assert said[0] == said[1] == [{"rank": 0, "word": "ü"}, {"rank": 1, "word": "ü" * 5001}]


def test_two_ranks_save_and_load_their_shards(pair: World, tmp_path: Path) -> None:
    answers = pair.run(saved_and_loaded, str(tmp_path / name_of(1)))
    assert [same for same, _, _ in answers] == [True, True]
    found = Checkpoint.open(Folder.at(tmp_path / name_of(1)))
    found.verify()
    assert {size for _, _, size in answers} == {found.bytes}
    both = 4 * 4 + 3 * 4 + 8  # what each has all of: `same`, `plain` and its own
    assert [read for _, read, _ in answers] == [4 * 3 * 4 + 4 + both, 3 * 3 * 4 + both]
