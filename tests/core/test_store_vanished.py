"""A folder that is unmounted or moved away while it is used, and one that does not answer."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal_core.ckpt import alone, together
from shoal_core.ckpt.errors import Damaged
from shoal_core.ckpt.folder import Folder
from shoal_core.ckpt.whole import Checkpoint
from shoal_core.errors import StoreError
from shoal_core.store import Store, open_store, patience, patiently, unmounted

USES: list[Callable[[Store], Any]] = [
    lambda store: store.put("a", b"1"),
    lambda store: store.create("b", b"1"),
    lambda store: store.swap("c", b"1", None),
    lambda store: store.swap("a", b"1", "1"),
    lambda store: store.get("a"),
    lambda store: store.stat("a"),
    lambda store: list(store.list()),
    lambda store: store.folders(),
    lambda store: store.delete(["a"]),
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "runs" / "r").mkdir(parents=True)
    return tmp_path / "runs" / "r"


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("moved", ["runs", "runs/r"])
def test_it_is_neither_taken_for_empty_nor_made_anew(use: Callable[[Store], Any], moved: str, run: Path) -> None:
    """`runs` stands for what a disk is mounted at, and `runs/r` for a run on it."""
    root = run.parent.parent
    store = open_store(run / "checkpoints", within=run)
    store.put("a", b"0")
    (root / moved).rename(root / "elsewhere")
    with pytest.raises(StoreError, match=r"runs/r: this folder was there and is not any more(.|\n)*mount"):
        use(store)
    assert not run.exists()
    (root / "elsewhere").rename(root / moved)
    assert store.get("a") == b"0"


def test_what_is_being_written_then_is_no_object(run: Path) -> None:
    writer = open_store(run / "checkpoints", within=run).writer("a")
    writer.write(b"0")
    run.rename(run.parent / "elsewhere")
    with pytest.raises(StoreError, match="is not any more"):
        writer.close()
    assert not run.exists()


def test_a_store_that_must_be_within_nothing_is_made_as_ever(tmp_path: Path) -> None:
    store = open_store(tmp_path / "a" / "b")
    assert list(store.list()) == []
    store.put("c", b"1")
    assert store.get("c") == b"1"


def test_what_may_be_the_matter_with_an_address_is_told(tmp_path: Path) -> None:
    (tmp_path / "mount").mkdir()
    assert unmounted(tmp_path) is None
    assert unmounted("s3://bucket/runs") is None
    assert unmounted(tmp_path / "mount") == f"and {tmp_path}/mount is empty: is its disk mounted?"
    assert unmounted(tmp_path / "mount" / "a" / "b") == f"and {tmp_path}/mount is empty: is its disk mounted?"
    assert unmounted(tmp_path / "c" / "b") == f"and {tmp_path}/c is not there: is its disk mounted?"
    with pytest.raises(Damaged, match=f"there is none, and {tmp_path}/c is not there: is its disk mounted"):
        Checkpoint.open(Folder.at(tmp_path / "c" / "checkpoints" / "step-00000010"))


@pytest.fixture
def hangs(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Whoever reads waits until this is set; a second of patience is none."""
    answered = threading.Event()
    preadv = os.preadv

    def late(file: int, buffers: Any, offset: int) -> int:
        answered.wait()
        return preadv(file, buffers, offset)

    monkeypatch.setattr(os, "preadv", late)
    monkeypatch.setattr(patience, "PATIENCE", 0.0)
    monkeypatch.setattr(patience, "SLOWEST", float("inf"))
    yield answered
    answered.set()


def test_a_folder_that_hangs_is_given_up_and_used_again_when_it_answers(tmp_path: Path, hangs: threading.Event) -> None:
    store = open_store(tmp_path)
    store.put("a", b"12")
    with pytest.raises(StoreError, match=f"{tmp_path}/a: has not been answered(.|\n)*file server"):
        patiently(lambda: store.get("a"), store)
    with pytest.raises(StoreError, match="has not been answered"):
        patiently(lambda: 7, open_store(tmp_path / "c"), store)  # what was given up may still read or write
    assert patiently(lambda: 7, open_store(tmp_path / "b")) == 7
    hangs.set()
    while store.asked.hanging():  # type: ignore[attr-defined]
        threading.Event().wait(0.01)
    assert patiently(lambda: store.get("a"), store) == b"12"


def test_what_work_raises_is_raised(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(FileNotFoundError):
        patiently(lambda: store.get("a"), store)


def test_a_checkpoint_in_a_folder_that_hangs_is_not_waited_for(tmp_path: Path, hangs: threading.Event) -> None:
    folder = Folder.at(tmp_path / "step-00000010")
    alone.write(folder, {"w": torch.ones(3)}, {"steps": 10})
    with pytest.raises(StoreError, match="has not been answered"):
        together.load(folder, {"w": torch.zeros(3)}, together.ALONE, lambda name: False)
