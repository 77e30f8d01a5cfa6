"""Checkpoints of a cell: its workers copy their state, write it in the background and commit it together.

What a checkpoint is made of, and what makes it whole, stands in `shoal_core.ckpt`.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.record import slow
from shoal.saving.chances import Chances
from shoal_core.ckpt import among, together
from shoal_core.ckpt.errors import Damaged, Unfit
from shoal_core.ckpt.folder import Folder, name_of
from shoal_core.ckpt.stage import Stage
from shoal_core.ckpt.together import Loaded, Uncommitted
from shoal_core.errors import UserError
from shoal_core.store import open_store

if TYPE_CHECKING:
    from shoal_core.lane import Lane

__all__ = ["OURS", "Damaged", "Group", "Saver", "Unfit", "load"]

logger = logging.getLogger(__name__)

OURS = "shoal."
"""Begins the names of what the platform adds to a state: a checkpoint may be without it."""


class Group:
    """The ranks of a process group of CPUs, as those who write and read a checkpoint together; none: this rank alone,
    whatever world it is in."""

    def __init__(self, process_group: Any) -> None:
        import torch.distributed as dist

        self._group = process_group
        alone = process_group is None
        self.rank, self.size = (0, 1) if alone else (dist.get_rank(process_group), dist.get_world_size(process_group))

    def exchange(self, word: Any) -> list[Any]:
        """See `together.Peers`."""
        import torch
        import torch.distributed as dist

        if self.size == 1:
            return [word]
        mine = torch.frombuffer(bytearray(json.dumps(word).encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(mine)]), group=self._group)
        longest = max(int(length) for length in lengths)
        words = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(words, torch.nn.functional.pad(mine, (0, longest - len(mine))), group=self._group)
        return [json.loads(bytes(said[: int(length)].numpy())) for said, length in zip(words, lengths, strict=True)]


def load(folder: Folder, state: dict[str, Any], process_group: Any) -> Loaded:
    """Fill the tensors of `state` (any mesh) from a checkpoint, collectively over `process_group`: every rank reads its
    part of it, no byte of which is believed before it is verified.

    Raises:
        Damaged: the checkpoint is not what was committed. Unfit: it holds another state.
        RuntimeError: a peer is gone. Others as `together.load`.
    """
    return together.load(folder, state, Group(process_group), lambda name: name.startswith(OURS))


class Saver:
    """Writes the checkpoints of one cell; one at a time, in the background.

    `root`: where the run's checkpoints lie. `process_group`: the cell's own group for checkpoints, so that training's
    collectives are never in its way. `lane`: what the state leaves its device over; whoever changes the state lets it
    precede. `about`: what every marker says of the run. `done`: called on rank 0 with (steps, address, seconds, bytes)
    once a checkpoint is whole; `failed`, with (steps, reason, remedy), when it never will be: on rank 0, or on all that
    lost a peer. `asking`: a group of CPUs for what ranks ask each other between steps; none: this rank is alone.
    """

    def __init__(
        self,
        root: Path,
        process_group: Any,
        lane: Lane,
        keep: int,
        about: dict[str, Any],
        done: Callable[[int, str, float, int], None],
        failed: Callable[[int, str, str], None],
        asking: Any = None,
    ) -> None:
        self._rundir, self._root, self._peers, self._keep = root.parent, open_store(root), Group(process_group), keep
        self._about, self._done, self._failed, self._asking = about, done, failed, asking
        self._thread: threading.Thread | None = None
        self._stage, self._chances = Stage(lane), Chances()
        self.problem: str | None = None
        """Why the last checkpoint is not whole; all ranks of a living cell have the same word on whether it is."""

    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def join(self) -> None:
        """Wait for the checkpoint that is being written; if a peer is gone it fails."""
        if self._thread is not None:
            self._thread.join()

    def may(self, steps: int, *, due: bool) -> bool:
        """Whether to save after so many steps: if it is `due` and no save is under way, or if the last one came to
        nothing. The same on all ranks, which ask each other if need be.

        Raises:
            RuntimeError: a peer is gone.
        """
        import torch
        import torch.distributed as dist

        if not self._chances.asks(steps, due=due):
            return due
        word = torch.tensor([self.busy(), self.problem is not None], dtype=torch.int32)
        if self._asking is not None:
            dist.all_reduce(word, dist.ReduceOp.MAX, group=self._asking)
        return self._chances.heard(steps, due=due, busy=bool(word[0]), failed=bool(word[1]))

    def save(self, steps: int, generation: int, state: dict[str, Any], **about: Any) -> None:
        """Begin to copy `state` now, and write it in the background, after the one before it. `about`: what the marker
        says of this state.

        Raises:
            Unfit: a value of `state` cannot be saved.
        """
        start = time.monotonic()
        self.join()
        self.problem = None
        self._chances.began(steps)
        staged = self._stage.take(state)
        said = {"steps": steps, **self._about, **about}
        folder = Folder(self._root, name_of(steps))

        def finish() -> None:
            # Whatever it is, training goes on and this checkpoint is not whole.
            try:
                content = staged.read()
                slow.wait(self._rundir)
                size = together.save(folder, generation, content, self._peers, said)
            except Exception as error:
                self._gave_up(steps, error)
                return
            if self._peers.rank == 0:
                self._tidy()
                self._done(steps, folder.address, time.monotonic() - start, size)

        self._thread = threading.Thread(target=finish, daemon=True, name="checkpoint")
        self._thread.start()

    def _tidy(self) -> None:
        """Remove what is not kept; what the store does not let go of now it may the next time."""
        try:
            among.prune(self._root, self._keep)
        except UserError as error:
            logger.warning("older checkpoints are not removed: %s", error.problem)

    def _gave_up(self, steps: int, error: Exception) -> None:
        """Say why. A failure that all ranks share is told once."""
        shared = isinstance(error, Uncommitted)
        self.problem = error.problem if isinstance(error, Uncommitted) else together.in_words(error)
        if self._peers.rank == 0 or not shared:
            self._failed(steps, self.problem, error.remedy if isinstance(error, UserError) else "")
