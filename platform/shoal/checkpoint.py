"""Distributed checkpoints: torch DCP in the background, whole only once `COMMITTED.json` stands in the folder.

A checkpoint is written to a hidden folder by the workers of one cell, summed up in `COMMITTED.json` (written last,
with the SHA-256 of every file, since DCP does not notice flipped bits) and then renamed to `step-00000100`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.errors import UserError

__all__ = ["MARKER", "Saver", "Whole", "last_whole", "load", "whole"]

MARKER = "COMMITTED.json"
FOLDER = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class Whole:
    """A finished checkpoint. `steps`: committed steps its state stands for."""

    steps: int
    path: Path


def whole(root: Path) -> list[Whole]:
    """The finished checkpoints under `root`, oldest first. Half-written ones are not seen."""
    if not root.is_dir():
        return []
    found = [
        Whole(int(name[1]), child)
        for child in root.iterdir()
        if (name := FOLDER.fullmatch(child.name)) and (child / MARKER).is_file()
    ]
    return sorted(found, key=lambda one: one.steps)


def last_whole(root: Path) -> Whole | None:
    found = whole(root)
    return found[-1] if found else None


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(path: Path) -> dict[str, Any]:
    """Check every file of a checkpoint against its marker and return the marker.

    Raises:
        UserError: not whole, or a file is missing or differs.
    """
    try:
        marker = json.loads((path / MARKER).read_text())
        files: dict[str, Any] = marker["files"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: is no whole checkpoint ({error})", "use an older one") from error
    for name, expected in files.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != expected["bytes"] or digest(file) != expected["sha256"]:
            raise UserError(
                f"{file}: differs from what was committed", f"remove {path} to go on from an older checkpoint"
            )
    return marker


def load(path: Path, state: dict[str, Any], process_group: Any) -> int:
    """Fill the tensors of `state` (any mesh) from a checkpoint, collectively over `process_group`; returns its steps.

    Raises:
        UserError: the checkpoint is not whole.
    """
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp

    steps = int(json.loads((path / MARKER).read_text())["steps"])
    if dist.get_rank(process_group) == 0:
        verify(path)
    dcp.load(state, checkpoint_id=path, process_group=process_group)
    return steps


class Saver:
    """Writes the checkpoints of one cell; one at a time, in the background.

    `process_group`: the cell's own group for checkpoints, so that training's collectives are never in its way.
    `done`: called on rank 0 with (steps, path, seconds, bytes) once a checkpoint is whole; `failed`, on any rank, with
    (steps, reason) when it never will be.
    """

    def __init__(
        self,
        root: Path,
        rank: int,
        process_group: Any,
        keep: int,
        about: dict[str, Any],
        done: Callable[[int, Path, float, int], None],
        failed: Callable[[int, str], None],
    ) -> None:
        self._root, self._rank, self._group, self._keep = root, rank, process_group, keep
        self._about, self._done, self._failed = about, done, failed
        self._thread: threading.Thread | None = None

    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def join(self) -> None:
        """Wait for the checkpoint that is being written; if a peer is gone it fails."""
        if self._thread is not None:
            self._thread.join()

    def save(self, steps: int, generation: int, state: dict[str, Any]) -> None:
        """Copy `state` now and write it in the background. Collective over the cell.

        Raises:
            RuntimeError: a peer of the cell is gone.
        """
        import torch.distributed.checkpoint as dcp

        start = time.monotonic()
        folder = self._root / f".step-{steps:08d}-{generation}"
        future: Any = dcp.async_save(state, checkpoint_id=folder, process_group=self._group)

        def finish() -> None:
            try:
                future.result()
                if self._rank == 0:
                    size = commit(folder, self._root / f"step-{steps:08d}", {"steps": steps, **self._about})
                    prune(self._root, self._keep)
                    self._done(steps, self._root / f"step-{steps:08d}", time.monotonic() - start, size)
            except Exception as error:  # the cell broke, or the disk is full: training goes on, this one is not whole
                self._failed(steps, f"{type(error).__name__}: {error}")

        self._thread = threading.Thread(target=finish, daemon=True, name="checkpoint")
        self._thread.start()


def commit(folder: Path, final: Path, about: dict[str, Any]) -> int:
    """Mark `folder` whole and give it its final name. Returns its bytes."""
    files = {file.name: {"bytes": file.stat().st_size, "sha256": digest(file)} for file in sorted(folder.iterdir())}
    size = sum(file.stat().st_size for file in folder.iterdir())
    marker = folder / MARKER
    with marker.with_suffix(".tmp").open("w") as out:
        json.dump({**about, "time": time.time(), "files": files}, out, indent=1)
        out.flush()
        os.fsync(out.fileno())
    marker.with_suffix(".tmp").replace(marker)
    if (final / MARKER).is_file():  # another cell saved the same step: what is whole is never taken away
        shutil.rmtree(folder)
    else:
        folder.rename(final)
    return size


def prune(root: Path, keep: int) -> None:
    """Remove all but the newest `keep` whole checkpoints, and what older attempts left half-written."""
    kept = whole(root)[-keep:]
    for child in root.iterdir():
        name = re.fullmatch(r"\.?step-(\d{8})(-\d+)?", child.name)
        if name and child not in [one.path for one in kept] and kept and int(name[1]) <= kept[-1].steps:
            shutil.rmtree(child, ignore_errors=True)
