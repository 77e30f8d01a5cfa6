"""Checkpoints of a cell: its workers copy their state, write it in the background and commit it together.

What a checkpoint is made of, and what makes it whole, stands in `shoal_core.ckpt`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.record import slow
from shoal.saving.chances import Chances
from shoal.saving.deadline import Choice, Notice, Speed
from shoal.saving.leaving import Judging
from shoal_core.ckpt import among, nearby, together
from shoal_core.ckpt.errors import Damaged, Unfit
from shoal_core.ckpt.folder import Folder, name_of
from shoal_core.ckpt.pieces import Piece
from shoal_core.ckpt.retention import Keep, Saved
from shoal_core.ckpt.stage import Stage
from shoal_core.ckpt.together import Loaded, Uncommitted
from shoal_core.errors import UserError
from shoal_core.store import Store, local_folder, open_store

if TYPE_CHECKING:
    from shoal_core.lane import Lane

__all__ = ["OURS", "Damaged", "Disk", "Group", "Saver", "Unfit", "load"]

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
        self.broken = False
        """A peer is gone."""

    def exchange(self, word: Any) -> list[Any]:
        """See `together.Peers`."""
        try:
            return self._exchange(word)
        except RuntimeError:
            self.broken = True
            raise

    def _exchange(self, word: Any) -> list[Any]:
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


def load(folder: Folder, state: dict[str, Any], process_group: Any, disk: Store | None = None) -> Loaded:
    """Fill the tensors of `state` (any mesh) from a checkpoint, collectively over `process_group`: every rank reads its
    part of it, no byte of which is believed before it is verified; from its node's `disk` what is whole there.

    Raises:
        Damaged: the checkpoint is not what was committed. Unfit: it holds another state.
        RuntimeError: a peer is gone. Others as `together.load`.
    """
    nearer = [] if disk is None else [Folder(disk, folder.name)]
    loaded = together.load(folder, state, Group(process_group), lambda name: name.startswith(OURS), nearer)
    logger.info("%s: %d bytes read, of them %d from this node's disk", folder.address, loaded.bytes, loaded.near)
    return loaded


ENDED = threading.Thread()
"""Of what is not done in the background, or has long been."""


@dataclass(frozen=True)
class Disk:
    """Of a node, for checkpoints of one cell: `root`: where the run's files lie there; `peers`: the cell's own group
    for bringing them to the storage."""

    root: Store
    peers: Group


@dataclass(frozen=True)
class Saving:
    """A checkpoint on its way: where to, what its marker says, when it was begun, and for how many seconds training
    stood still for it. `told`: see `Saver.save`."""

    steps: int
    folder: Folder
    about: Mapping[str, Any]
    start: float
    lost: float
    told: Mapping[str, float] | None


class Saver:
    """Writes the checkpoints of one cell; one at a time, in the background.

    `root`: where the run's checkpoints lie. `process_group`: the cell's own group for checkpoints, so that training's
    collectives are never in its way. `lane`: what the state leaves its device over; whoever changes the state lets it
    precede. `keep`: which stay. `about`: what every marker says of the run. `done`: called on rank 0 with (steps,
    address, seconds, bytes) once a checkpoint is whole; `failed`, with (steps, reason, remedy), when it never will be:
    on rank 0, or on all that lost a peer. `asking`: a group of CPUs for what ranks ask each other between steps; none:
    this rank is alone. `disk`: what checkpoints are written to first; `used`: steps of those that stay in any case.
    `speed`: learns how fast this rank writes to the storage; `chosen`: called on rank 0 with (steps, what) when nodes
    of the cell go and it was chosen what is done before.
    """

    def __init__(
        self,
        root: str | Path,
        process_group: Any,
        lane: Lane,
        keep: Keep,
        about: dict[str, Any],
        done: Callable[[int, str, float, int], None],
        failed: Callable[[int, str, str], None],
        asking: Any = None,
        disk: Disk | None = None,
        used: Collection[int] = (),
        speed: Speed | None = None,
        chosen: Callable[[int, dict[str, Any]], None] | None = None,
    ) -> None:
        folder = local_folder(root)
        self._rundir = None if folder is None else folder.parent
        self._root, self._peers, self._keep = open_store(root, self._rundir), Group(process_group), keep
        self._about, self._done, self._failed, self._asking = about, done, failed, asking
        self._disk, self._used, self._known = disk, used, dict[int, Saved]()
        self._writing = self._bringing = ENDED
        self._stage, self._chances = Stage(lane), Chances()
        self._speed, self._chosen = Speed() if speed is None else speed, chosen
        self._newest = -1
        self.problem: str | None = None
        """Why the last checkpoint is not whole; all ranks of a living cell have the same word on whether it is."""
        self.heard: list[dict[str, float]] = []
        """What all ranks say of the last checkpoint, if it is whole and anything was to be told of it."""

    def busy(self) -> bool:
        """Whether a checkpoint is not whole yet that may become so."""
        return self._writing.is_alive() or self._bringing.is_alive()

    def join(self) -> None:
        """Wait until another may be begun; if a peer is gone the one before fails."""
        if self._writing is not ENDED:
            self._writing.join()

    @property
    def settled(self) -> bool:
        """Whether all ranks know of each other how the last save went, if there was one."""
        return not self._chances.open

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

    def save(
        self,
        steps: int,
        generation: int,
        state: dict[str, Any],
        told: Mapping[str, float] | None = None,
        going: Notice | None = None,
        **about: Any,
    ) -> None:
        """Begin to copy `state` now, and write it in the background, after the one before it. `told`: what this rank
        tells the others of it once it is whole, beside what it cost; `going`: what it says of its node, if one of the
        cell's is about to go: then it is saved only if it fits; `about`: what the marker says of this state.

        Raises:
            Unfit: a value of `state` cannot be saved.
        """
        start = time.monotonic()
        self.join()
        self.problem, self.heard, self._newest = None, [], steps
        self._chances.began(steps)
        staged = self._stage.take(state)
        folder = Folder(self._root, name_of(steps))
        one = Saving(steps, folder, {"steps": steps, **self._about, **about}, start, time.monotonic() - start, told)

        def write() -> None:
            content = staged.read()
            if self._rundir is not None:
                slow.wait(self._rundir)
            near = self._near(folder.name, generation, content) if going is None else None
            if near is None:
                peers, wrote = self._peers, self._speed.took
                leaving = None if going is None else Judging(going, lambda choice: self._tell(one, choice))
                with contextlib.suppress(together.TooLate):  # which is told, and no failure: it is not tried again
                    size = together.save(folder, generation, content, peers, one.about, going=leaving, wrote=wrote)
                    self._whole(one, size, peers)
                return
            if self._bringing is not ENDED:
                self._bringing.join()  # one is brought, one waits: more would fill the disk
            self._bringing = self._behind(one, lambda: self._bring(one, near))

        self._writing = self._behind(one, write)

    def _near(self, name: str, generation: int, content: Mapping[Piece, memoryview]) -> nearby.Nearby | None:
        """Write to the node's disk, if there is one; none if one of the cell's takes nothing: the storage may."""
        if self._disk is None:
            return None
        try:
            return nearby.write(Folder(self._disk.root, name), generation, content, self._peers)
        except Uncommitted as error:  # which all ranks raise
            if self._peers.rank == 0:
                logger.warning("%s goes straight to the storage: %s (%s)", name, error.problem, error.remedy)
            return None

    def _behind(self, one: Saving, work: Callable[[], None]) -> threading.Thread:
        """Do a part of a save in the background. Whatever fails, training goes on and this checkpoint is not whole."""

        def run() -> None:
            try:
                work()
            except Exception as error:
                self._gave_up(one.steps, error)

        thread = threading.Thread(target=run, daemon=True, name="checkpoint")
        thread.start()
        return thread

    def _bring(self, one: Saving, near: nearby.Nearby) -> None:
        """Bring what was written nearby to the storage."""

        def late(why: str) -> None:
            logger.warning(
                "the checkpoint of step %d is not in the storage yet, which is asked again: %s", one.steps, why
            )

        assert self._disk is not None
        start = time.monotonic()
        size = nearby.bring(near, one.folder, self._disk.peers, one.about, late)
        self._speed.took(near.bytes(self._disk.peers.rank), time.monotonic() - start)
        nearby.tidy(self._disk.root, near.folder, near.attempt)
        self._whole(one, size, self._disk.peers)

    def _whole(self, one: Saving, size: int, peers: Group) -> None:
        """A checkpoint is whole: tell."""
        seconds = time.monotonic() - one.start
        if peers.rank == 0 or peers.broken:  # whoever is left
            self._tidy()
            self._done(one.steps, one.folder.address, seconds, size)
        if one.told is not None:
            with contextlib.suppress(RuntimeError):  # a peer is gone, and the cell with it
                heard = peers.exchange({**one.told, "lost": one.lost, "written": seconds})
                self.heard = heard if one.steps == self._newest else []

    def _tell(self, one: Saving, choice: Choice) -> None:
        """Say what is done before nodes go, and what counts if the state is not saved."""
        if self._peers.rank or self._chosen is None:
            return
        newest: int | None = None
        with contextlib.suppress(UserError):
            newest = max((whole.steps for whole in among.whole(self._root)), default=None)
        self._chosen(one.steps, {"kind": "last_save", **choice.told(), "checkpoint": newest})

    def _tidy(self) -> None:
        """Remove what is not kept; what the store does not let go of now it may the next time."""
        try:
            among.prune(self._root, self._keep, self._used, self._known)
        except UserError as error:
            logger.warning("older checkpoints are not removed: %s", error.problem)

    def _gave_up(self, steps: int, error: Exception) -> None:
        """Say why. A failure that all ranks share is told once."""
        shared = isinstance(error, Uncommitted)
        problem = error.problem if isinstance(error, Uncommitted) else together.in_words(error)
        if steps == self._newest:
            self.problem = problem
        if self._peers.rank == 0 or not shared:
            self._failed(steps, problem, error.remedy if isinstance(error, UserError) else "")
