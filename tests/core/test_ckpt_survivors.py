"""Ranks that are about to go, and those that are left when they are gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal_core.ckpt import among, nearby, together
from shoal_core.ckpt.boxes import Box
from shoal_core.ckpt.folder import Folder, name_of
from shoal_core.ckpt.pieces import Piece, deal
from shoal_core.ckpt.whole import Checkpoint
from shoal_core.store import open_store
from tests.support.ranks import Mesh, Peer, content, on_ranks

STATE = {"w": torch.arange(12.0).view(6, 2), "b": torch.arange(4.0)}
THIRDS: Mesh = {"w": [Box((2 * rank, 0), (2, 2)) for rank in range(3)], "b": [Box((0,), (4,))] * 3}


def test_who_goes_writes_what_nobody_else_has() -> None:
    def piece(name: str, first: int, rows: int) -> Piece:
        return Piece(name, "float32", (12,), Box((first,), (rows,)))

    both = [piece("both", 0, 12)]
    held = [[piece("w", 0, 4), *both], [piece("w", 4, 4), *both], [piece("w", 8, 4), *both, piece("own", 0, 12)]]
    assert [both[0] in pieces for pieces in deal(held)] == [True, False, False]
    assert [both[0] in pieces for pieces in deal(held, {0: 1.0})] == [False, True, False]
    assert [both[0] in pieces for pieces in deal(held, {0: 1.0, 1: 1.0})] == [False, False, True]
    assert [both[0] in pieces for pieces in deal(held, dict.fromkeys(range(3), 1.0))] == [True, False, False]
    assert [both[0] in pieces for pieces in deal(held, {0: 0.0, 1: 9.0, 2: 1.0})] == [False, True, False], (
        "who can most"
    )


class Going:
    """Those of `ranks` go, and have time for so many bytes each."""

    def __init__(self, rank: int, ranks: frozenset[int], time: int) -> None:
        self.word, self.time = {"goes": rank in ranks}, time
        self.judged: list[tuple[list[int], list[int]]] = []

    def told(self) -> dict[str, Any]:
        return self.word

    def weights(self, said: Sequence[Any]) -> dict[int, float]:
        return {rank: 1.0 for rank, word in enumerate(said) if word["goes"]}

    def judge(self, said: Sequence[Any], written: Sequence[int], held: Sequence[int]) -> None:
        self.judged.append((list(written), list(held)))
        if any(word["goes"] and size > self.time for word, size in zip(said, written, strict=True)):
            raise together.TooLate


def saved(folder: Folder, peer: Peer, going: Going | None = None) -> int:
    mine = content(STATE, THIRDS, peer.rank)
    return together.save(folder, 0, mine, peer, {"steps": 3}, going=going)


def brought(folder: Folder, peer: Peer) -> int:
    disk = Folder(open_store(Path(folder.address).parents[1] / f"disk{peer.rank}"), folder.name)
    here = nearby.write(disk, 0, content(STATE, THIRDS, peer.rank), peer)
    return nearby.bring(here, folder, peer, {"steps": 3}, lambda why: None)


def test_those_that_stay_write_what_all_have(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path / name_of(3))
    going = [Going(rank, frozenset({0, 1}), time=16) for rank in range(3)]
    sizes = on_ranks(3, lambda peer: saved(folder, peer, going[peer.rank]))
    checkpoint = Checkpoint.open(folder)
    checkpoint.verify()
    assert sizes == [checkpoint.bytes] * 3
    (block,) = checkpoint.index.tensors["b"].blocks
    assert "-00002" in block.file
    assert [one.judged for one in going] == [[([16, 16, 32], [32, 32, 32])]] * 3


def test_what_does_not_fit_is_not_begun(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path / name_of(3))

    def one(peer: Peer) -> bool:
        try:
            saved(folder, peer, Going(peer.rank, frozenset({0, 1}), time=15))
        except together.TooLate:
            return True
        return False

    assert on_ranks(3, one) == [True] * 3
    assert folder.sizes() == {}


class Killed(BaseException):
    """Of a process."""


@pytest.mark.parametrize("way", [saved, brought])
@pytest.mark.parametrize("marked", [False, True])
def test_whoever_is_left_commits_what_all_have_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: Callable[[Folder, Peer], int], marked: bool
) -> None:
    """Rank 0 is gone before it has written the marker, or just after; two commit at once then."""
    folder = Folder.at(tmp_path / "checkpoints" / name_of(3))
    outcome, here = together.outcome, threading.local()

    def dying(*arguments: Any) -> dict[str, Any]:
        if here.peer.rank:
            return outcome(*arguments)
        if marked:
            outcome(*arguments)
        while here.peer.waited_for() < 2:  # the others have heard that all is written
            time.sleep(0.01)
        here.peer.leave()
        raise Killed

    def one(peer: Peer) -> Any:
        here.peer = peer
        try:
            return way(folder, peer)
        except Killed:
            return None

    monkeypatch.setattr(together, "outcome", dying)
    gone, *left = on_ranks(3, one)
    checkpoint = Checkpoint.open(folder)
    checkpoint.verify()
    assert (gone, left) == (None, [checkpoint.bytes] * 2)
    among.sweep(open_store(tmp_path / "checkpoints"))
    Checkpoint.open(folder).verify()
    assert len(folder.sizes()) == 5, "the marker, one index, a file of each rank"


def test_what_not_all_have_written_nobody_commits(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path / name_of(3))

    def one(peer: Peer) -> Any:
        if peer.rank == 1:
            peer.exchange(together.opening(folder, content(STATE, THIRDS, 1)))
            peer.leave()
            raise RuntimeError("killed")
        return saved(folder, peer)

    assert all(isinstance(answer, RuntimeError) for answer in on_ranks(3, one))
    assert among.whole(open_store(tmp_path)) == []
