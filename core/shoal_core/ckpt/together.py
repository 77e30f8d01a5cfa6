"""Saving and loading by all ranks of a cell: each writes and reads its own part, and all learn what came of it.

What ranks say to each other is JSON. Whatever fails on one is told to all, so that none waits for it; a rank that is
gone ends the wait of the others by their group's own means.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from shoal_core.ckpt.errors import Damaged, Earlier, Unfit
from shoal_core.ckpt.folder import Folder
from shoal_core.ckpt.gather import gather
from shoal_core.ckpt.pieces import Piece, block_bytes, deal
from shoal_core.ckpt.plan import Holder
from shoal_core.ckpt.read import Scattered, Source
from shoal_core.ckpt.remembered import Remembered
from shoal_core.ckpt.state import destinations, held
from shoal_core.ckpt.whole import Checkpoint
from shoal_core.ckpt.write import Attempt, Written, commit, committed, write
from shoal_core.ckpt.zeros import set_zeros
from shoal_core.errors import StoreError, UserError
from shoal_core.store import patiently

__all__ = [
    "ALONE",
    "Leaving",
    "Loaded",
    "Peers",
    "TooLate",
    "Uncommitted",
    "clean",
    "failed",
    "finished",
    "in_words",
    "load",
    "opening",
    "outcome",
    "part",
    "problems",
    "remedy",
    "save",
]


class Peers(Protocol):
    """The ranks that share a state."""

    rank: int

    def exchange(self, word: Any) -> list[Any]:
        """What every rank says, in the order of ranks. Collective.

        Raises:
            RuntimeError: one is gone.
        """


class Alone:
    """The only rank."""

    rank = 0

    def exchange(self, word: Any) -> list[Any]:
        return [word]


ALONE = Alone()


class Leaving(Protocol):
    """Ranks that are about to go, in the eyes of one of them."""

    def told(self) -> dict[str, Any]:
        """What this rank says of itself, in JSON."""

    def weights(self, said: Sequence[Any]) -> dict[int, float]:
        """By what all ranks say: those that go, and how much each can write beside the others of them."""

    def judge(self, said: Sequence[Any], written: Sequence[int], held: Sequence[int]) -> None:
        """By the same, and by the bytes that each would write and that it holds; all ranks judge alike.

        Raises:
            TooLate: it does not fit into the time.
        """


class TooLate(Exception):
    """What only ranks that go hold cannot be written before: nothing is. All ranks raise it."""


class Uncommitted(UserError):
    """A checkpoint did not become whole: what each rank lacked. All ranks raise it."""


class Loaded(NamedTuple):
    """`steps`: committed ones that the state stands for; `bytes`: those that this rank read; `near`: of them, not from
    the store."""

    steps: int
    bytes: int
    near: int = 0


def save(
    folder: Folder,
    generation: int,
    content: Mapping[Piece, memoryview],
    peers: Peers,
    about: Mapping[str, Any],
    *,
    replace: bool = False,
    going: Leaving | None = None,
    wrote: Callable[[int, float], None] | None = None,
) -> int:
    """Write a checkpoint whose marker says `about`, `steps` among it. content: what this rank has of the state. going:
    some ranks may not have the time for more than what only they have. wrote: is told this rank's bytes, and seconds.
    Returns the bytes; one that is whole there already stays, unless its marker is to be replaced. Collective. Once all
    is written, whoever is left of the ranks commits it.

    Raises:
        TooLate: see there. Uncommitted: it did not become whole; what was written of it is gone.
        RuntimeError: a peer is gone, and so may the checkpoint be; what is left of it nobody reads.
    """
    heard = peers.exchange(opening(folder, content, going))
    attempt = Attempt(generation, heard[0]["token"])
    start = time.monotonic()
    try:
        word, pieces = part(folder, attempt, heard, content, peers.rank, going)
        if wrote is not None and "written" in word:
            wrote(sum(file[0] for file in word["written"]["files"].values()), time.monotonic() - start)
        said = peers.exchange(word)
        lacks = {"problems": problems(said), "remedy": remedy(said)}
        written = [] if lacks["problems"] else [Written.heard(one["written"]) for one in said]
        return finished(folder, attempt, peers, pieces, written, about, lacks, replace=replace)
    except Uncommitted:
        if peers.rank == 0:
            clean(folder, attempt)
        raise


def finished(
    folder: Folder,
    attempt: Attempt,
    peers: Peers,
    pieces: list[Piece],
    written: list[Written],
    about: Mapping[str, Any],
    lacks: Mapping[str, Any],
    *,
    replace: bool = False,
) -> int:
    """Commit what all have written, unless somebody `lacks` something, and tell all. Returns the bytes. Collective.

    Raises: as `save`.
    """
    ends: dict[str, Any] = {"bytes": -1, **lacks}
    if peers.rank == 0 and not ends["problems"]:
        ends = outcome(folder, attempt, pieces, written, about, replace)
    try:
        ends = peers.exchange(ends)[0]
    except RuntimeError:
        if ends["bytes"] < 0 and not ends["problems"]:  # rank 0 may be gone, and all is there
            ends = outcome(folder, attempt, pieces, written, about, replace)
        if ends["bytes"] < 0:
            raise
    if ends["problems"]:
        raise Uncommitted("; ".join(ends["problems"]), ends["remedy"])
    return int(ends["bytes"])


def opening(folder: Folder, content: Mapping[Piece, memoryview], going: Leaving | None = None) -> dict[str, Any]:
    """A rank's first word: of which checkpoint, what it has of the state, and, if ranks go, what it says of itself."""
    word = {"token": secrets.token_hex(4), "of": folder.name, "pieces": [piece.told() for piece in content]}
    return word if going is None else {**word, "going": going.told()}


def part(
    folder: Folder,
    attempt: Attempt,
    heard: list[Any],
    content: Mapping[Piece, memoryview],
    rank: int,
    going: Leaving | None = None,
) -> tuple[dict[str, Any], list[Piece]]:
    """Write this rank's part: what it says of that, and all pieces of the state. Whatever goes wrong is its word.

    Raises:
        TooLate: see there.
    """
    try:
        if len({one["of"] for one in heard}) > 1:
            raise ValueError(f"ranks save different steps: {', '.join(one['of'] for one in heard)}")
        held = [[Piece.heard(piece) for piece in one["pieces"]] for one in heard]
        if going is None:
            dealt = deal(held)
        else:
            words = [one["going"] for one in heard]
            dealt = deal(held, going.weights(words))
            going.judge(words, *([sum(piece.bytes for piece in one) for one in each] for each in (dealt, held)))
        pieces = [piece for pieces in dealt for piece in pieces]
        block = (content.__getitem__, block_bytes(pieces))
        written = patiently(lambda: write(folder, attempt, rank, dealt[rank], *block), folder.store)
    except TooLate:
        raise
    except Exception as error:
        return failed(error), []
    return {"written": written.told()}, pieces


def outcome(
    folder: Folder,
    attempt: Attempt,
    pieces: list[Piece],
    written: list[Written],
    about: Mapping[str, Any],
    replace: bool,
) -> dict[str, Any]:
    """Commit what all have written: bytes of the checkpoint, or why it is not whole."""
    try:
        size = patiently(lambda: commit(folder, attempt, pieces, written, about, replace=replace), folder.store)
    except Exception as error:
        # An answer that was lost may have been a yes.
        with contextlib.suppress(UserError):
            checkpoint = patiently(lambda: Checkpoint.open(folder), folder.store)
            if checkpoint.marker["index"]["file"] == attempt.index:
                return {"bytes": checkpoint.bytes, "problems": []}
        return {"bytes": -1, "problems": problems([failed(error)]), "remedy": remedy([failed(error)])}
    if size is None:  # another cell saved the same step: what is whole is never taken away
        clean(folder, attempt)
        size = sum(file.bytes for one in written for file in one.files.values())
    return {"bytes": size, "problems": []}


def problems(said: list[Any]) -> list[str]:
    """What each rank lacked."""
    return [f"rank {rank}: {word['problem']}" for rank, word in enumerate(said) if "problem" in word]


def remedy(said: list[Any]) -> str:
    """What can be done about the first thing that was lacking."""
    return next((word["remedy"] for word in said if word.get("remedy")), "")


def failed(error: Exception) -> dict[str, str]:
    """What a rank says of what went wrong."""
    return {"problem": in_words(error), "remedy": error.remedy if isinstance(error, UserError) else ""}


def clean(folder: Folder, attempt: Attempt) -> None:
    """Remove what this cell has written of an attempt, as far as the store lets us: nobody reads what is left. If
    another rank has committed it after all it stays."""

    def remove() -> None:
        if not committed(folder, attempt):
            folder.delete(attempt.wrote(folder.sizes()))

    with contextlib.suppress(UserError):
        patiently(remove, folder.store)


def load(
    folder: Folder,
    state: Mapping[str, Any],
    peers: Peers,
    optional: Callable[[str], bool],
    nearer: Sequence[Source] = (),
    memory: Mapping[str, tuple[Holder, Scattered]] | None = None,
) -> Loaded:
    """Fill the tensors of `state`, sharded over any mesh, from the checkpoint in `folder`: every rank reads its part
    and verifies it. optional: whether a tensor may be missing there, and stays as it is then. nearer: what may hold
    some of its files too, the nearest first; what is damaged or missing there is read from the next. memory: who has
    parts of that state in memory, which are nearer still (see `Remembered`). Collective.

    Raises:
        Damaged: what some rank read is not what was committed; `state` holds anything then.
        Earlier: it is of the format before this one. Unfit: it holds another state. StoreError: the store fails.
        RuntimeError: a peer is gone.
    """
    word: dict[str, Any]
    own: Exception | None = None
    steps = 0
    try:
        stores = [one.store for one in (*nearer, folder) if isinstance(one, Folder)]
        checkpoint = patiently(lambda: Checkpoint.open(folder, files=not nearer and not memory), *stores)
        steps = checkpoint.steps
        known = checkpoint.index.tensors
        state = {name: tensor for name, tensor in state.items() if name in known or not optional(name)}
        wanted, targets = destinations(held(state).items())
        sources: dict[str, Source] = {str(number): source for number, source in enumerate([*nearer, folder])}
        holders = {name: Holder(known, number) for number, name in enumerate(sources)}
        wanted = set_zeros(known, wanted, targets, folder.address)
        if memory:
            remembered = Remembered(checkpoint.index, wanted, memory)
            sources["memory"], holders["memory"] = remembered, Holder(remembered.table, -1)
        given = patiently(lambda: gather(holders, sources, wanted, targets, folder.address), *stores)
        near = given.total() - given[str(len(nearer))]
        word = {"seal": checkpoint.marker["seal"], "bytes": given.total(), "near": near}
    except UserError as error:
        kind = next(number for number, one in enumerate(KINDS) if isinstance(error, one))
        word = {"kind": kind, "problem": error.problem, "remedy": error.remedy}
    except Exception as error:
        own, word = error, {"kind": len(KINDS), "problem": in_words(error), "remedy": ""}
    said = peers.exchange(word)
    if own is not None:
        raise own
    if wrong := [(one["kind"], rank) for rank, one in enumerate(said) if "kind" in one]:
        kind, rank = min(wrong)
        raise [*KINDS, RankFailed][kind](said[rank]["problem"], said[rank]["remedy"])
    if len({one["seal"] for one in said}) > 1:
        raise Damaged(f"{folder.address}: was replaced while it was read", "see who writes there")
    return Loaded(steps, said[peers.rank]["bytes"], said[peers.rank]["near"])


KINDS: tuple[type[UserError], ...] = (Damaged, Earlier, Unfit, StoreError, UserError)
"""Of what may be wrong on a rank; of several the first is raised on all."""


class RankFailed(UserError):
    """Another rank could not load for a reason of its own, which it raises."""


def in_words(error: BaseException) -> str:
    """What failed, in a line."""
    text = error.problem if isinstance(error, UserError) else str(error)
    return f"{type(error).__name__}: {text}"
