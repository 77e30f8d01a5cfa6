"""Which checkpoints stay, and that no other is removed."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal_core.ckpt import alone, among
from shoal_core.ckpt.among import READING_FOR, prune, reading
from shoal_core.ckpt.folder import Folder, name_of
from shoal_core.ckpt.retention import Keep, Saved, staying
from shoal_core.ckpt.whole import Checkpoint
from shoal_core.store import Store, open_store
from shoal_core.store.local import LocalStore


def test_the_last_every_nth_and_the_best_stay() -> None:
    bpb = {300: 1.0, 500: 1.2, 700: math.nan, 900: 1.1}
    found = [Saved(steps, metrics={"bpb": bpb[steps]} if steps in bpb else {}) for steps in range(100, 1100, 100)]
    assert staying(found, Keep(2)) == {900, 1000}
    assert staying(found, Keep(1, every=400)) == {400, 800, 1000}
    assert staying(found, Keep(1, best=2)) == {300, 900, 1000}
    assert staying(found, Keep(1, best=2, most=True)) == {500, 900, 1000}
    assert staying(found, Keep(1, best=2, score="loss")) == {1000}
    assert staying(found, Keep(1), used={200, 250}) == {200, 1000}


def test_what_stays_for_good_stays_the_same_when_others_are_gone() -> None:
    """Saves come at any step, and each removes what the one before left."""
    there: set[int] = set()
    for steps in range(37, 2000, 37):
        there |= {steps}
        there = staying(map(Saved, there), Keep(2, every=500))
    assert there == {518, 1000 + 36, 1517, 1961, 1998}


def test_a_sick_one_takes_no_healthy_ones_place() -> None:
    found = [Saved(10, metrics={"bpb": 2.0}), Saved(20), Saved(30, False, {"bpb": 0.1}), Saved(40, finite=False)]
    assert staying(found, Keep(1, every=10, best=1)) == {10, 20, 40}
    assert staying(found[2:], Keep(1)) == {40}
    assert staying([], Keep(1, 1, 1), used={5}) == set()


def written(root: Store, *steps: int, **about: Any) -> None:
    for step in steps:
        alone.write(Folder(root, name_of(step)), {"w": torch.ones(2)}, {"steps": step, **about})


def left(root: Store) -> list[int]:
    return [one.steps for one in among.whole(root)]


def test_what_the_markers_say_decides(tmp_path: Path) -> None:
    root = open_store(tmp_path)
    for steps, bpb in ((10, 1.5), (20, 0.9), (30, 1.2), (40, None), (50, None)):
        written(root, steps, finite=True, bpb=bpb)
    prune(root, Keep(1, every=30, best=1), used={10})
    assert left(root) == [10, 20, 30, 50]
    prune(root, Keep(1, best=1))
    assert left(root) == [20, 50]


def test_any_figure_of_the_step_decides_if_it_is_named_and_who_asks_hears_before_what_stays(tmp_path: Path) -> None:
    root = open_store(tmp_path)
    for steps, accuracy in ((10, 0.7), (20, 0.9), (30, 0.8), (40, 0.1)):
        written(root, steps, metrics={"accuracy": accuracy})
    heard: list[tuple[list[int], list[int]]] = []
    keep = Keep(1, best=2, score="accuracy", most=True)
    prune(root, keep, stay=lambda those: heard.append(([one.steps for one in those], left(root))))
    assert heard == [([20, 30, 40], [10, 20, 30, 40])]
    assert left(root) == [20, 30, 40]


def test_the_markers_of_old_ones_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, asked, known = open_store(tmp_path), [], dict[int, Saved]()
    get = LocalStore.get
    monkeypatch.setattr(LocalStore, "get", lambda self, name, *rest: asked.append(name) or get(self, name, *rest))
    written(root, 10, 20)
    prune(root, Keep(5), known=known)
    written(root, 30, 40)
    asked.clear()
    prune(root, Keep(5), known=known)
    assert not [name for name in asked if "10/COMMITTED" in name or "20/COMMITTED" in name]
    assert left(root) == [10, 20, 30, 40]


def test_what_is_being_read_is_not_removed(tmp_path: Path) -> None:
    root = open_store(tmp_path)
    written(root, 10, 20, 30)
    folder = Folder(root, name_of(10))
    with reading(folder):
        prune(root, Keep(1))
        assert left(root) == [10, 30]
        Checkpoint.open(folder).verify()
        (mark,) = folder_of(tmp_path, 10).glob("READING-*")
        long_ago = time.time() - READING_FOR - 60
        os.utime(mark, (long_ago, long_ago))
        prune(root, Keep(1))
        assert left(root) == [30], "who reads for so long has died"
    assert not list(tmp_path.rglob("READING-*"))


@pytest.mark.parametrize("hours", [-20, 20])
def test_whose_clock_is_wrong_removes_nothing_that_is_being_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """This machine's; the store's own is asked."""
    root, now = open_store(tmp_path), time.time
    written(root, 10, 20, 30)
    with reading(Folder(root, name_of(10))):
        monkeypatch.setattr(time, "time", lambda: now() + 3600 * hours)
        prune(root, Keep(1))
        assert left(root) == [10, 30]


def test_a_reader_says_that_it_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And reads where nothing may be written too."""
    root = open_store(tmp_path)
    written(root, 10, 20)
    checkpoint = Checkpoint.open(Folder(root, name_of(10)))
    read_into = LocalStore.read_into

    def pruned(self: LocalStore, name: str, offset: int, buffer: memoryview) -> None:
        prune(root, Keep(1))
        read_into(self, name, offset, buffer)

    monkeypatch.setattr(LocalStore, "read_into", pruned)
    assert alone.read(checkpoint)["w"].tolist() == [1.0, 1.0]
    assert left(root) == [10, 20]
    prune(root, Keep(1))
    assert left(root) == [20]


def folder_of(root: Path, steps: int) -> Path:
    return root / name_of(steps)


def test_what_a_killed_save_left_unfinished_goes_with_the_rest(tmp_path: Path) -> None:
    root = open_store(tmp_path)
    written(root, 20, finite=True)
    for steps in (10, 20, 30):
        Folder(root, name_of(steps)).writer("g0-ab-00001.safetensors").write(b"half")
    assert len(list(tmp_path.rglob(".*.tmp"))) == 3
    assert [one.name for one in among.sweep(root)] == [name_of(steps) for steps in (10, 20, 30)]
    assert not list(tmp_path.rglob(".*.tmp"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [name_of(20)]
    assert left(root) == [20]
