"""Ranks of a cell as threads of one process, which hold parts of tensors without torch's meshes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from shoal_core.ckpt import together
from shoal_core.ckpt.boxes import Box, whole
from shoal_core.ckpt.folder import Folder
from shoal_core.ckpt.pieces import Piece
from shoal_core.ckpt.state import bytes_of

State = Mapping[str, torch.Tensor]
Mesh = Mapping[str, Sequence[Box | None]]
"""Of each tensor, what every rank has."""


class Meeting:
    """Of `count` ranks, which talk as processes do; `gone`: those that never come."""

    def __init__(self, count: int, gone: frozenset[int] = frozenset()) -> None:
        self.words: list[Any] = [None] * count
        self.gone = gone
        self.barrier = threading.Barrier(count)

    def peer(self, rank: int) -> Peer:
        return Peer(rank, self)


class Peer:
    """One of them."""

    def __init__(self, rank: int, meeting: Meeting) -> None:
        self.rank, self._meeting = rank, meeting

    def exchange(self, word: Any) -> list[Any]:
        meeting = self._meeting
        meeting.words[self.rank] = word
        try:
            meeting.barrier.wait(timeout=60)
            said = list(meeting.words)
            meeting.barrier.wait(timeout=60)  # before the next word takes its place
        except threading.BrokenBarrierError as error:
            raise RuntimeError("a peer is gone") from error
        return said

    def waited_for(self) -> int:
        """How many others wait for its next word."""
        return self._meeting.barrier.n_waiting

    def leave(self) -> None:
        """As a process that ends."""
        self._meeting.barrier.abort()


def on_ranks(count: int, work: Callable[[Peer], Any]) -> list[Any]:
    """What `work` returns, or the exception it raises, on each of `count` ranks."""
    meeting = Meeting(count)

    def one(rank: int) -> Any:
        try:
            return work(meeting.peer(rank))
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def content(state: State, mesh: Mesh, rank: int) -> dict[Piece, memoryview]:
    """What a rank has of a state, to be saved."""
    found = {}
    for name, boxes in mesh.items():
        box, shape = boxes[rank], tuple(state[name].shape)
        if box is not None:
            local = state[name][box.inside(whole(shape))].contiguous()
            found[Piece(name, str(local.dtype).removeprefix("torch."), shape, box)] = bytes_of(local)
    return found


def save(folder: Folder, state: State, mesh: Mesh, count: int, steps: int, **about: Any) -> list[Any]:
    """Save `state`, of which each of `count` ranks holds what `mesh` says."""
    said = {"steps": steps, **about}
    return on_ranks(count, lambda peer: together.save(folder, 0, content(state, mesh, peer.rank), peer, said))
