"""Checkpoints by way of a folder nearby: each rank writes its part to its node's own disk, and brings it from there to
the store while training goes on.

Nearby lie only files, which the marker in the store speaks for: a reader takes from there what is as it was committed,
and the rest from the store.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from shoal_core.ckpt import across
from shoal_core.ckpt.across import Share
from shoal_core.ckpt.among import folders
from shoal_core.ckpt.folder import Folder
from shoal_core.ckpt.moving import copy_file
from shoal_core.ckpt.pieces import Piece
from shoal_core.ckpt.plan import AT_ONCE, Part, merged
from shoal_core.ckpt.together import Peers, Uncommitted, clean, failed, finished, opening, part, problems, remedy
from shoal_core.ckpt.write import Attempt, Written
from shoal_core.errors import UserError
from shoal_core.store import PAUSES, Store, patiently

__all__ = ["Nearby", "bring", "tidy", "write"]

KEPT = 2
"""Checkpoints whose files stay nearby."""


@dataclass(frozen=True)
class Nearby:
    """A checkpoint that all ranks of a cell have written to their nodes' disks: this rank's part in `folder`; all
    pieces of the state, unless it is the cell's `share` of it; what every rank `said` of its part."""

    folder: Folder
    attempt: Attempt
    pieces: list[Piece]
    said: list[Any]
    share: Share | None

    def written(self, rank: int) -> Written:
        return Written.heard(self.said[rank]["written"])

    def bytes(self, rank: int) -> int:
        """That a rank wrote."""
        return sum(file.bytes for file in self.written(rank).files.values())


def write(
    folder: Folder, generation: int, content: Mapping[Piece, memoryview], peers: Peers, share: Share | None = None
) -> Nearby:
    """Write this rank's part into `folder`, its node's own. content: what the rank has of the state; of the cell's
    `share` what it is to write. Collective.

    Raises:
        Uncommitted: a rank could not write its part; nothing is left of it. RuntimeError: a peer is gone.
    """
    if share is not None:
        attempt, pieces = share.attempt(generation), list[Piece]()
        word = across.wrote(folder, attempt, content, peers, share)
    else:
        heard = peers.exchange(opening(folder, content))
        attempt = Attempt(generation, heard[0]["token"])
        word, pieces = part(folder, attempt, heard, content, peers.rank)
    said = peers.exchange(word)
    if lacks := problems(said):
        clean(folder, attempt)
        raise Uncommitted("; ".join(lacks), remedy(said))
    return Nearby(folder, attempt, pieces, said, share)


def bring(
    nearby: Nearby,
    folder: Folder,
    peers: Peers,
    about: Mapping[str, Any],
    late: Callable[[str], None],
    pauses: Sequence[float] = PAUSES,
) -> int:
    """Copy what lies nearby to `folder`, and commit it there with a marker that says `about`. late: is told on rank 0,
    once, why it takes longer: the store does not take it, and is asked again. Returns the bytes. Collective.

    Raises:
        Uncommitted: it did not become whole there, and nothing is left of it. RuntimeError: a peer is gone.
    """
    try:
        for number, pause in enumerate((*pauses, None)):
            said = peers.exchange(sent(nearby, folder, peers.rank))
            lacks = problems(said)
            if not lacks or pause is None:
                break
            if peers.rank == 0 and not number:
                late("; ".join(lacks))
            time.sleep(pause)
        if nearby.share is not None:
            words = said if lacks else nearby.said
            return across.finished(folder, nearby.attempt, peers, words, about, nearby.share)
        ends = {"problems": lacks, "remedy": remedy(said)}
        written = [nearby.written(rank) for rank in range(len(said))]
        return finished(folder, nearby.attempt, peers, nearby.pieces, written, about, ends)
    except Uncommitted:
        if peers.rank == 0 and nearby.share is None:
            clean(folder, nearby.attempt)
        raise


def sent(nearby: Nearby, folder: Folder, rank: int) -> dict[str, Any]:
    """Copy this rank's files, believing no byte that is not as it was written. Whatever goes wrong is its word."""
    mine = nearby.written(rank)
    try:
        for name, file in mine.files.items():
            blocks = sorted((block for _, block in mine.blocks if block.file == name), key=lambda block: block.at)
            reads = list(merged([Part(name, block, ()) for block in blocks if block.bytes], AT_ONCE))
            copy = partial(copy_file, nearby.folder, folder, name, file, reads)
            patiently(copy, nearby.folder.store, folder.store)
    except Exception as error:
        return failed(error)
    return {}


def tidy(root: Store, newest: Folder, attempt: Attempt) -> None:
    """Remove files nearby, in `root`, that nobody will read: of checkpoints long before `newest`, which was committed,
    and of attempts at it that were not."""
    with contextlib.suppress(UserError):
        steps = newest.steps or 0
        older = [folder for at, folder in folders(root) if at < steps]
        for folder in older[: -(KEPT - 1)]:
            folder.delete(folder.sizes())
        newest.delete([name for name in newest.sizes() if not name.startswith(attempt.prefix)])
