"""Checkpoints of a cell: its workers copy their state, or the cell's share of it where others hold the same, write it
in the background and commit it together.

What a checkpoint is made of, and what makes it whole, stands in `shoal_core.ckpt`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.peers import Cells, Dealt, Group
from shoal.record import slow
from shoal.saving.chances import Chances
from shoal.saving.deadline import Choice, Notice, Speed
from shoal.saving.leaving import Judging
from shoal_core.ckpt import across, among, nearby, together
from shoal_core.ckpt.across import Share
from shoal_core.ckpt.errors import Damaged, Unfit
from shoal_core.ckpt.folder import Folder, name_of
from shoal_core.ckpt.pieces import Piece
from shoal_core.ckpt.plan import Holder
from shoal_core.ckpt.read import Scattered
from shoal_core.ckpt.retention import Keep, Saved
from shoal_core.ckpt.stage import Stage
from shoal_core.ckpt.state import held
from shoal_core.ckpt.together import Loaded, Uncommitted
from shoal_core.errors import UserError
from shoal_core.store import Store, local_folder, open_store

if TYPE_CHECKING:
    from shoal_core.lane import Lane

__all__ = ["OURS", "Cells", "Damaged", "Disk", "Group", "Saver", "Unfit", "load"]

logger = logging.getLogger(__name__)

OURS = "shoal."
"""Begins the names of what the platform adds to a state: a checkpoint may be without it."""


def load(
    folder: Folder,
    state: dict[str, Any],
    process_group: Any,
    disk: Store | None = None,
    memory: Callable[[Group, int], AbstractContextManager[Mapping[str, tuple[Holder, Scattered]]]] | None = None,
) -> Loaded:
    """Fill the tensors of `state` (any mesh) from a checkpoint, collectively over `process_group`: every rank reads its
    part of it, no byte of which is believed before it is verified; from the `memory` of the ranks what they tell each
    other that they have of the state of these steps, and from its node's `disk` what is whole there.

    Raises:
        Damaged: the checkpoint is not what was committed. Unfit: it holds another state.
        RuntimeError: a peer is gone. Others as `together.load`.
    """
    nearer = [] if disk is None else [Folder(disk, folder.name)]
    peers, steps = Group(process_group), folder.steps
    with contextlib.nullcontext({}) if memory is None or steps is None else memory(peers, steps) as remembered:
        loaded = together.load(folder, state, peers, lambda name: name.startswith(OURS), nearer, remembered)
    logger.info("%s: %d bytes read, of them %d not from the storage", folder.address, loaded.bytes, loaded.near)
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
    stood still for it. `told`: see `Saver.save`; `share`: this cell's, if several write it."""

    steps: int
    folder: Folder
    about: Mapping[str, Any]
    start: float
    lost: float
    told: Mapping[str, float] | None
    share: Share | None = None


class Saver:
    """Writes the checkpoints of one cell; one at a time, in the background.

    `root`: where the run's checkpoints lie. `process_group`: the cell's own group for checkpoints, so that training's
    collectives are never in its way. `lane`: what the state leaves its device over; whoever changes the state lets it
    precede. `keep`: which stay. `about`: what every marker says of the run. `done`: called on rank 0 with (steps,
    address, seconds, bytes) once a checkpoint is whole; `failed`, with (steps, reason, remedy), when it never will be:
    on rank 0, or on all that lost a peer. `asking`: a group of CPUs for what ranks ask each other between steps; none:
    this rank is alone, or no other cell saves with it. `disk`: what checkpoints are written to first; `used`: steps of
    those that stay in any case. `speed`: learns how fast this rank writes to the storage; `chosen`: called on rank 0
    with (steps, what) when nodes of the cell go and it was chosen what is done before; `stay`: is told which
    checkpoints stay, before any other is removed.
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
        stay: Callable[[Sequence[Saved]], None] = lambda those: None,
    ) -> None:
        folder = local_folder(root)
        self._rundir = None if folder is None else folder.parent
        self._root, self._peers, self._keep = open_store(root, self._rundir), Group(process_group), keep
        self._about, self._done, self._failed, self._dealt = about, done, failed, Dealt(Group(asking))
        self._disk, self._used, self._known, self._stay = disk, used, dict[int, Saved](), stay
        self._writing = self._bringing = ENDED
        self._stage, self._newest = Stage(lane), -1
        self._speed, self._chosen = Speed() if speed is None else speed, chosen
        self._standing: frozenset[tuple[int, int]] = frozenset()
        self.chances = Chances()
        """When to save, beside when one is due."""
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

    def stand(self, formed: Collection[tuple[int, int]]) -> None:
        """Which cells there are from now on, by number and formation: for the shares of others nobody waits. Any
        thread."""
        self._standing = frozenset(formed)

    def save(
        self,
        steps: int,
        generation: int,
        state: dict[str, Any],
        told: Mapping[str, float] | None = None,
        going: Notice | None = None,
        cells: Cells | None = None,
        **about: Any,
    ) -> None:
        """Begin to copy `state` now, and write it in the background, after the one before it. `told`: what this rank
        tells the others of it once it is whole, beside what it cost; `going`: what it says of its node, if one of the
        cell's is about to go: then it is saved only if it fits; `cells`: those that save it together, which all begin
        to; `about`: what the marker says of this state.

        Raises:
            Unfit: a value of `state` cannot be saved. RuntimeError: a peer is gone.
        """
        start = time.monotonic()
        self.join()
        mine, share = held(state), None
        if cells is not None:
            mine, share = self._dealt.shared(mine, steps, cells, lambda: cells.gone(self._standing))
        self.problem, self.heard, self._newest = None, [], steps
        self.chances.began(steps)
        staged = self._stage.take(mine)
        folder, about = Folder(self._root, name_of(steps)), {"steps": steps, **self._about, **about}
        one = Saving(steps, folder, about, start, time.monotonic() - start, told, share)

        def write() -> None:
            content = staged.read()
            if self._rundir is not None:
                slow.wait_in_time(self._rundir)
            near = self._near(folder.name, generation, content, share) if going is None else None
            if near is None:
                with contextlib.suppress(together.TooLate):  # which is told, and no failure: it is not tried again
                    self._whole(one, self._stored(one, generation, content, going), self._peers)
                return
            if self._bringing is not ENDED:
                self._bringing.join()  # one is brought, one waits: more would fill the disk
            self._bringing = self._behind(one, lambda: self._bring(one, near))

        self._writing = self._behind(one, write)

    def _stored(self, one: Saving, generation: int, content: Mapping[Piece, memoryview], going: Notice | None) -> int:
        """Write straight to the storage. Returns the bytes. Raises: as `together.save`."""
        where, took = (one.folder, generation, content, self._peers, one.about), self._speed.took
        if one.share is not None:
            return across.save(*where, one.share, took)
        leaving = None if going is None else Judging(going, lambda choice: self._tell(one, choice))
        return together.save(*where, going=leaving, wrote=took)

    def _near(
        self, name: str, generation: int, content: Mapping[Piece, memoryview], share: Share | None
    ) -> nearby.Nearby | None:
        """Write to the node's disk, if there is one; none if one of the cell's takes nothing: the storage may."""
        if self._disk is None:
            return None
        try:
            return nearby.write(Folder(self._disk.root, name), generation, content, self._peers, share)
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
                self._gave_up(one, error)

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
        """A checkpoint is whole: tell. Of several cells each does, since any may be gone by now."""
        seconds = time.monotonic() - one.start
        if peers.rank == 0 or peers.broken:  # whoever is left
            if one.share is None or not one.share.place:
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
            among.prune(self._root, self._keep, self._used, self._known, self._stay)
        except UserError as error:
            logger.warning("older checkpoints are not removed: %s", error.problem)

    def _gave_up(self, one: Saving, error: Exception) -> None:
        """Say why. A failure that all ranks share is told once; of a cell that broke others tell who write it too."""
        shared = isinstance(error, Uncommitted)
        problem = error.problem if isinstance(error, Uncommitted) else together.in_words(error)
        if one.steps == self._newest:
            self.problem = problem
        if self._peers.rank == 0 if shared else one.share is None:
            self._failed(one.steps, problem, error.remedy if isinstance(error, UserError) else "")
