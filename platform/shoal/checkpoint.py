"""Distributed checkpoints: torch DCP in the background, whole only once `COMMITTED.json` stands in the folder.

A checkpoint is written to a hidden folder by the workers of one cell, summed up in `COMMITTED.json` (written last,
with the SHA-256 of every file, since DCP does not notice flipped bits) and then renamed to `step-00000100`. One that
fails is removed at once.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.record import slow
from shoal_core.errors import UserError
from shoal_core.marker import MARKER, Damaged, Whole, commit, last_whole, prune, verify, whole

if TYPE_CHECKING:
    from shoal_core.lane import Copy, Lane

__all__ = ["MARKER", "Damaged", "Saver", "Unfit", "Whole", "commit", "last_whole", "load", "prune", "verify", "whole"]

OURS = "shoal."
"""Begins the names of what the platform adds to a state: a checkpoint may be without it."""
LITTLE = 1 << 20
"""Bytes left on a disk that is taken for full: torch says nothing of why it could not write."""


class Unfit(UserError):
    """A checkpoint is whole, but its state is not this workload's."""


def load(path: Path, state: dict[str, Any], process_group: Any) -> int:
    """Fill the tensors of `state` (any mesh) from a checkpoint, collectively over `process_group`; returns its steps.

    Rank 0 verifies every byte first, and all hear of it: none reads a checkpoint that is damaged.

    Raises:
        Damaged: the checkpoint is not what was committed. Unfit: it holds another state.
        RuntimeError: a peer is gone.
    """
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    from shoal_core.dcp import Reader, in_words, read_index

    told: list[Any] = [None, None]  # its steps, or what is wrong
    if dist.get_rank(process_group) == 0:
        try:
            told[0] = verify(path)["steps"]
        except Damaged as error:
            told[1] = (error.problem, error.remedy)
    dist.broadcast_object_list(told, group=process_group, group_src=0)
    steps, problem = told
    if problem is not None:
        raise Damaged(*problem)
    held = read_index(path).state_dict_metadata
    wanted = {name: tensor for name, tensor in state.items() if name in held or not name.startswith(OURS)}
    try:
        dcp.load(wanted, storage_reader=Reader(path), process_group=process_group)
    except CheckpointException as error:
        remedy = "resume with the workload it was saved by, or begin another run"
        raise Unfit(f"{path}: does not hold this workload's state ({in_words(error)})", remedy) from error
    return int(steps)


def stage(state: dict[str, Any], lane: Lane) -> tuple[dict[str, Any], Copy]:
    """A state of the same names in the CPU's memory, and the copy that fills it."""
    from torch.distributed.tensor import DTensor

    from shoal_core.lane import room_for

    def local(tensor: Any) -> Any:
        return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()

    staged = {name: room_for(tensor) for name, tensor in state.items()}
    lane.follow()
    return staged, lane.copy([local(room) for room in staged.values()], [local(tensor) for tensor in state.values()])


class Saver:
    """Writes the checkpoints of one cell; one at a time, in the background.

    `process_group`: the cell's own group for checkpoints, so that training's collectives are never in its way. `lane`:
    what the state leaves its device over; whoever changes the state lets it precede. `about`: what every marker says of
    the run. `done`: called on rank 0 with (steps, path, seconds, bytes) once a
    checkpoint is whole; `failed`, with (steps, reason), when it never will be: on rank 0, or on all that lost a peer.
    """

    def __init__(
        self,
        root: Path,
        rank: int,
        process_group: Any,
        lane: Lane,
        keep: int,
        about: dict[str, Any],
        done: Callable[[int, Path, float, int], None],
        failed: Callable[[int, str], None],
    ) -> None:
        self._root, self._rank, self._group, self._lane, self._keep = root, rank, process_group, lane, keep
        self._about, self._done, self._failed = about, done, failed
        self._thread: threading.Thread | None = None
        self.problem: str | None = None
        """Why the last checkpoint is not whole; all ranks of a living cell have the same word on whether it is."""

    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def join(self) -> None:
        """Wait for the checkpoint that is being written; if a peer is gone it fails."""
        if self._thread is not None:
            self._thread.join()

    def save(self, steps: int, generation: int, state: dict[str, Any], **about: Any) -> None:
        """Begin to copy `state` now, and write it in the background. `about`: what the marker says of this state."""
        import torch.distributed.checkpoint as dcp

        start = time.monotonic()
        folder, final = self._root / f".step-{steps:08d}-{generation}", self._root / f"step-{steps:08d}"
        self.problem = None
        staged, copy = stage(state, self._lane)

        def finish() -> None:
            # DCP's own exception is no Exception. Whatever it is, training goes on and this checkpoint is not whole.
            try:
                copy.wait()
                dcp.save(staged, checkpoint_id=folder, process_group=self._group)
                slow.wait(self._root.parent)
                size = self._settle(folder, final, {"steps": steps, **self._about, **about})
            except BaseException as error:
                self._gave_up(folder, steps, error)
                return
            if self._rank == 0:
                self._done(steps, final, time.monotonic() - start, size)

        self._thread = threading.Thread(target=finish, daemon=True, name="checkpoint")
        self._thread.start()

    def _settle(self, folder: Path, final: Path, marker: dict[str, Any]) -> int:
        """Rank 0 commits what all have written, and all learn whether it could. Returns the bytes."""
        import torch
        import torch.distributed as dist

        size, problem = -1, None
        if self._rank == 0:
            try:
                size = commit(folder, final, marker)
            except Exception as error:
                problem = error
        if dist.get_world_size(self._group) > 1:
            word = torch.tensor([size])
            dist.broadcast(word, group=self._group, group_src=0)
            size = int(word[0])
        if size < 0:
            raise problem or Uncommitted("rank 0 could not commit it")
        if self._rank == 0:
            prune(self._root, self._keep)
        return size

    def _gave_up(self, folder: Path, steps: int, error: BaseException) -> None:
        """Leave nothing behind, and say why. A failure that all ranks share is told once."""
        from torch.distributed.checkpoint.api import CheckpointException

        from shoal_core.dcp import in_words

        self.problem = in_words(error)
        try:
            free = shutil.disk_usage(self._root).free  # while what was written of it is there
            if free < LITTLE:
                self.problem = f"no room: {free:,} bytes are free at {self._root} ({self.problem})"
        except OSError:
            pass  # then it is no disk that is full
        shutil.rmtree(folder, ignore_errors=True)
        if self._rank == 0 or not isinstance(error, CheckpointException | Uncommitted):
            self._failed(steps, self.problem)


class Uncommitted(Exception):
    """What rank 0's failure to commit is on the other ranks."""
