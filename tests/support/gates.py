"""Holds a worker at a named point of its life (`shoal.worker.inject`) until the test has done something to it, or to
somebody else: so that a death is at that point, and at no other.

A lab's processes are held only if this module was preloaded there (`shoal.testing.preload`); the test and they talk by
files in a folder beside the run's.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from shoal.testing import Lab
from shoal.worker.inject import Injector
from shoal.worker.peers import Peer
from shoal.worker.rendezvous import Keys

__all__ = ["POINTS", "Gate"]

BEFORE = ("pause", "paused", "form", "left", "building", "fill", "filling", "filled")
AFTER = ("meet", "join", "joined", "commit", "committed")
"""Points of every generation; looked at once the shard was filled from those of another shape."""
POINTS = (*BEFORE, *AFTER)
"""Of a change of shape, in order. `building`: others of the new cell are told where this worker is to be reached, and
it is connected with none of them yet; `filling`: the first ranges of the shard have come from another worker."""
LOOK = 0.002
FOLDER, GATE, HELD, HITS = "gates", "gate.json", "held", "hits"


class Gate:
    """In the test: the first of `workers` (by default: of all) that comes to `point` waits there until `open`."""

    def __init__(self, one: Lab, point: str, workers: Iterable[str] | None = None) -> None:
        self._lab, self._folder = one, one.path.parent / FOLDER
        pids = None if workers is None else [one.processes[worker].pid for worker in workers]
        self._folder.mkdir()
        part = self._folder / "part"
        part.write_text(json.dumps({"point": point, "pids": pids}))
        part.rename(self._folder / GATE)

    def held(self) -> str:
        """Wait until a worker is held; returns its name."""
        held = self._folder / HELD
        self._lab.until(held.is_symlink)
        return self._named({int(held.readlink().name)})[0]

    def came_to(self, point: str, count: int) -> list[str]:
        """Wait until so many workers have come to a point; returns their names."""
        self._lab.until(lambda: len(self._at(point)) >= count)
        return self._named(self._at(point))

    def open(self) -> None:
        (self._folder / GATE).unlink()

    def _at(self, point: str) -> set[int]:
        hits = self._folder / HITS
        lines = [line.split() for line in hits.read_text().splitlines()] if hits.exists() else []
        return {int(pid) for pid, hit in lines if hit == point}

    def _named(self, pids: set[int]) -> list[str]:
        return sorted(name for name, process in self._lab.processes.items() if process.pid in pids)


# ---- in the workers


class Passing:
    """What a worker does at each point. `folder`: of the run that it is part of, once that is known."""

    folder: Path | None = None
    fills = False
    groups = 0

    def builds(self) -> None:
        """The second group of a cell begins once the first, its world, stands."""
        self.groups += 1
        if self.groups == 2:
            self.at("building")

    def at(self, point: str) -> None:
        if self.folder is None or not (self.folder / GATE).exists():
            return
        self.fills |= point == "fill"
        self.groups *= point != "left"
        if point in AFTER and not self.fills:
            return
        with (self.folder / HITS).open("a") as hits:
            hits.write(f"{os.getpid()} {point}\n")
        with contextlib.suppress(OSError, ValueError):  # it is opened just now, or somebody else is held
            gate = json.loads((self.folder / GATE).read_text())
            if gate["point"] == point and (gate["pids"] is None or os.getpid() in gate["pids"]):
                (self.folder / HELD).symlink_to(str(os.getpid()))
                while (self.folder / GATE).exists():
                    time.sleep(LOOK)


def install() -> None:
    """Have every point passed so in this process, and in those that are forked from it."""
    passing, hit, read_each, told = Passing(), Injector.hit, Peer.read_each, Keys.set

    @functools.wraps(hit)
    def held(self: Injector, point: str, *about: Any) -> None:
        passing.folder = Path(self._place).parent / FOLDER
        hit(self, point, *about)
        passing.at(point)

    @functools.wraps(read_each)
    def filling(self: Peer, *ranges: Any) -> None:
        read_each(self, *ranges)
        passing.at("filling")

    @functools.wraps(told)
    def building(self: Keys, *value: Any) -> None:
        told(self, *value)
        if type(self) is Keys:
            passing.builds()

    patches: list[tuple[type, str, Callable[..., None]]] = [
        (Injector, "hit", held),
        (Peer, "read_each", filling),
        (Keys, "set", building),
    ]
    for owner, name, function in patches:
        setattr(owner, name, function)
