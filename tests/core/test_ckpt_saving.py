"""Saving by several ranks: all or nothing, told to all; what is kept beside each other, and what goes."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal_core.ckpt import alone, among, together
from shoal_core.ckpt.boxes import Box, whole
from shoal_core.ckpt.errors import Damaged, Unfit
from shoal_core.ckpt.folder import Folder, name_of
from shoal_core.ckpt.marker import MARKER
from shoal_core.ckpt.retention import Keep
from shoal_core.ckpt.together import Loaded, Uncommitted
from shoal_core.ckpt.whole import Checkpoint, read_marker
from shoal_core.errors import StoreError
from shoal_core.store import Store, open_store
from shoal_core.store.local import LocalStore, LocalWriter
from tests.support import ranks

STATE = {"w": torch.arange(12.0).view(4, 3), "bias": torch.zeros(2, dtype=torch.bfloat16)}
HALVES: dict[str, list[Box | None]] = {"w": [Box((0, 0), (2, 3)), Box((2, 0), (2, 3))], "bias": [whole((2,))] * 2}


def commit(root: Path, steps: int, fill: float = 0.0, **about: Any) -> Path:
    """A small checkpoint."""
    alone.write(Folder.at(root / name_of(steps)), {"w": torch.full((3,), fill)}, {"steps": steps, **about})
    return root / name_of(steps)


def half_written(root: Path, steps: int) -> None:
    folder = root / name_of(steps)
    folder.mkdir(parents=True)
    (folder / "g0-ab-00000.safetensors").write_bytes(b"half")


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_only_what_is_committed_counts(tmp_path: Path) -> None:
    half_written(tmp_path, 30)
    (tmp_path / name_of(40)).mkdir()
    for steps in (20, 10):
        commit(tmp_path, steps)
    root = open_store(tmp_path)
    assert [one.steps for one in among.whole(root)] == [10, 20]
    last = among.last_whole(root)
    assert last is not None
    assert Checkpoint.open(last.folder).steps == 20
    assert among.last_whole(open_store(tmp_path / "nowhere")) is None


def test_a_second_save_of_a_step_leaves_the_first_alone(tmp_path: Path) -> None:
    final = commit(tmp_path, 10, 1.0)
    before = names(final)
    commit(tmp_path, 10, 2.0)
    assert names(final) == before
    assert alone.read(Checkpoint.open(Folder.at(final)))["w"].tolist() == [1.0] * 3


def test_of_two_cells_that_save_a_step_at_once_one_is_whole(tmp_path: Path) -> None:
    """Each of two ranks, in one folder."""
    folder = Folder.at(tmp_path / name_of(5))
    states = [{name: tensor + cell for name, tensor in STATE.items()} for cell in range(2)]
    sizes: list[Any] = [None, None]

    def cell(number: int) -> None:
        sizes[number] = ranks.save(folder, states[number], HALVES, 2, 5, cell=number)

    threads = [threading.Thread(target=cell, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(size > 0 for cell in sizes for size in cell)
    checkpoint = Checkpoint.open(folder)
    checkpoint.verify()
    winner = states[checkpoint.marker["cell"]]
    assert all(torch.equal(found, winner[name]) for name, found in alone.read(checkpoint).items())
    assert len(names(tmp_path / name_of(5))) == 4, "two files, an index and a marker"


def test_the_marker_says_what_was_trained(tmp_path: Path) -> None:
    final = commit(tmp_path, 10, run_id="r", samples=80)
    said = read_marker(Folder.at(final))
    assert (said["steps"], said["run_id"], said["samples"], said["generation"]) == (10, "r", 80, 0)


def test_the_newest_stay_and_half_written_ones_go(tmp_path: Path) -> None:
    for steps in (10, 20, 30):
        commit(tmp_path, steps)
    half_written(tmp_path, 25)
    half_written(tmp_path, 40)
    (tmp_path / name_of(20) / "g9-cd-00000.safetensors").write_bytes(b"of another attempt")
    root = open_store(tmp_path)
    among.prune(root, Keep(2))
    assert names(tmp_path) == [name_of(20), name_of(30), name_of(40)]
    assert len(names(tmp_path / name_of(20))) == 3
    (tmp_path / name_of(50)).mkdir()
    (tmp_path / name_of(50) / "notes.txt").write_text("a user's own")
    assert [folder.name for folder in among.sweep(root)] == [name_of(40)]
    assert names(tmp_path) == [name_of(20), name_of(30), name_of(50)]


def test_one_saved_after_a_step_that_is_no_number_takes_no_healthy_ones_place(tmp_path: Path) -> None:
    root = open_store(tmp_path)
    for steps in (10, 20):
        commit(tmp_path, steps)
    for steps in (30, 40):
        commit(tmp_path, steps, finite=False)
        among.prune(root, Keep(2))
    assert [one.steps for one in among.whole(root)] == [10, 20, 40]
    for steps in (50, 60):
        commit(tmp_path, steps, finite=True)
        among.prune(root, Keep(2))
    assert [one.steps for one in among.whole(root)] == [50, 60]


def test_one_that_is_set_aside_is_seen_no_more_and_stays(tmp_path: Path) -> None:
    """The step is saved again beside it, which goes in its time."""
    root = open_store(tmp_path)
    final = commit(tmp_path, 10)
    kept = set(names(final)) - {MARKER}
    aside = Path(among.set_aside(Folder(root, name_of(10))))
    assert among.whole(root) == []
    commit(tmp_path, 10, 7.0)
    assert alone.read(Checkpoint.open(Folder.at(final)))["w"].tolist() == [7.0] * 3
    commit(tmp_path, 20)
    among.prune(root, Keep(1))
    among.sweep(root)
    assert [one.steps for one in among.whole(root)] == [20]
    assert set(names(final)) == {*kept, aside.name}


def test_a_marker_that_cannot_be_read_takes_nothing_with_it(tmp_path: Path) -> None:
    final = commit(tmp_path, 10)
    (final / MARKER).write_text("{")
    before = names(final)
    among.sweep(open_store(tmp_path))
    assert names(final) == before


def test_one_is_deleted_marker_first(tmp_path: Path) -> None:
    final = commit(tmp_path, 10)
    among.delete(Folder(open_store(tmp_path), name_of(10)))
    assert not final.exists()


# ---- what fails


class Broken(LocalStore):
    """A store that fails at what `fails` says."""

    def __init__(self, root: Path, fails: str) -> None:
        super().__init__(str(root), root)
        self.fails = fails

    def writer(self, name: str) -> LocalWriter:
        if self.fails in name:
            raise StoreError(f"{self.where(name)}: No space left on device", "make room")
        return super().writer(name)


class Forgetful(LocalStore):
    """A store that loses the answer to the one question that counts: it did what it says it did not."""

    def create(self, name: str, content: bytes | memoryview) -> bool:
        super().create(name, content)
        raise StoreError(f"{self.where(name)}: no answer", "try again")


@pytest.mark.parametrize("fails", ["-00001.safetensors", "-00000.safetensors", "index.json", MARKER])
def test_a_rank_that_cannot_write_fails_all_and_leaves_nothing(tmp_path: Path, fails: str) -> None:
    store: Store = Broken(tmp_path, fails)
    answers = ranks.save(Folder(store, name_of(3)), STATE, HALVES, 2, 3)
    rank = 1 if "00001" in fails else 0
    assert [type(answer) for answer in answers] == [Uncommitted, Uncommitted]
    assert {str(answer) for answer in answers} == {str(answers[0])}
    assert f"rank {rank}: StoreError" in str(answers[0])
    assert "No space left" in str(answers[0])
    assert list(tmp_path.rglob("*.*")) == []


def test_a_marker_whose_answer_was_lost_counts(tmp_path: Path) -> None:
    folder = Folder(Forgetful(str(tmp_path), tmp_path), name_of(3))
    sizes = ranks.save(folder, STATE, HALVES, 2, 3)
    assert sizes == [Checkpoint.open(folder).bytes] * 2
    Checkpoint.open(folder).verify()


@pytest.mark.parametrize("after", [1, 2])
@pytest.mark.parametrize("gone", [0, 1])
def test_a_rank_that_is_gone_fails_the_others_and_takes_no_whole_checkpoint_away(
    tmp_path: Path, gone: int, after: int
) -> None:
    """After its first word, or its second: then rank 0 may have committed by the time others learn of it."""
    folder = Folder.at(tmp_path / name_of(3))

    class Leaving:
        def __init__(self, peer: ranks.Peer) -> None:
            self.rank, self.peer, self.words = peer.rank, peer, 0

        def exchange(self, word: Any) -> list[Any]:
            if self.rank == gone and self.words == after:
                self.peer.leave()
                raise RuntimeError("killed")
            self.words += 1
            return self.peer.exchange(word)

    answers = ranks.on_ranks(
        2,
        lambda peer: together.save(folder, 0, ranks.content(STATE, HALVES, peer.rank), Leaving(peer), {"steps": 3}),
    )
    whole = any(isinstance(answer, int) for answer in answers)  # whoever knows that all have written may commit
    assert all(isinstance(answer, int | RuntimeError) for answer in answers)
    if whole:
        Checkpoint.open(folder).verify()
    else:
        with pytest.raises(Damaged):
            Checkpoint.open(folder)
    among.sweep(open_store(tmp_path))
    assert len(among.whole(open_store(tmp_path))) == whole


def test_what_is_wrong_on_one_rank_is_raised_on_all(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path / name_of(3))
    ranks.save(folder, STATE, HALVES, 2, 3)
    (part,) = (tmp_path / name_of(3)).glob("*-00001.safetensors")
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)

    def work(peer: ranks.Peer) -> Any:
        asked = {"w": torch.zeros(4, 3)} if peer.rank else {"bias": torch.zeros(2, dtype=torch.bfloat16)}
        return together.load(folder, asked, peer, lambda name: False)

    answers = ranks.on_ranks(2, work)
    assert [type(answer) for answer in answers] == [Damaged, Damaged]
    assert "00001.safetensors: differs from what was committed (w from [2, 0]" in answers[0].problem

    def asks(peer: ranks.Peer) -> Any:
        return together.load(folder, {"v" if peer.rank else "bias": STATE["bias"].clone()}, peer, lambda name: False)

    assert [type(answer) for answer in ranks.on_ranks(2, asks)] == [Unfit, Unfit]


def test_ranks_load_their_parts_and_what_may_be_missing_stays(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path / name_of(3))
    ranks.save(folder, STATE, HALVES, 2, 3)

    def work(peer: ranks.Peer) -> Any:
        asked = {"w": torch.zeros(4, 3), "own.x": torch.full((1,), 5.0)}
        return together.load(folder, asked, peer, lambda name: name.startswith("own.")), asked

    for loaded, state in ranks.on_ranks(2, work):
        assert loaded == Loaded(3, STATE["w"].nbytes)
        assert torch.equal(state["w"], STATE["w"])
        assert state["own.x"].item() == 5.0
