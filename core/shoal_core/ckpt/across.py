"""Saving by several cells that hold the same state: each writes its share of every rank's part, and the first of them
commits them all.

Cells share no group for this. They speak by small words in the store, beside the files: each says what it has written
once that lies there, the first waits for all, and writes index and marker; the marker tells the others that the
checkpoint is whole, or a word of the first that it is not. Nobody waits for one that is gone, nor longer than for so
many times what its own share took.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from shoal_core.ckpt.errors import Damaged, Earlier
from shoal_core.ckpt.folder import Folder
from shoal_core.ckpt.marker import MARKER, seal
from shoal_core.ckpt.pieces import Piece, check
from shoal_core.ckpt.together import Peers, Uncommitted, clean, failed, outcome
from shoal_core.ckpt.whole import read_marker
from shoal_core.ckpt.write import Attempt, Written, committed, write
from shoal_core.errors import StoreError, UserError
from shoal_core.store import patiently

__all__ = ["Share", "finished", "save", "wrote"]

T = TypeVar("T")

PATIENCE, TIMES = 30.0, 10.0
"""How long the first cell waits for the others: so many seconds, or so many times what its own share took, whichever is
longer. All write as much."""
LONGER = 3.0
"""Times as long the others wait for the first, which may be waiting itself."""
WORD = re.compile(r"g\d+-[0-9a-f]+-part-\d+\.json")
"""Of what a cell says."""
SHORTEST, LONGEST = 0.02, 1.0
"""Seconds between two looks into the store: a tenth of the wait so far, within these."""


@dataclass(frozen=True)
class Share:
    """The part of one cell in a checkpoint that several write. `cells`: their numbers, the first commits; `place`: of
    this one among them; `ranks`: of each; `token`: of the attempt, which all have; `block`: bytes that are hashed
    together; `gone`: places of cells that are no more; `patience`, `since`: seconds, and the monotonic time that they
    are counted from."""

    cells: tuple[int, ...]
    place: int
    ranks: int
    token: str
    block: int
    gone: Callable[[], Collection[int]] = tuple
    patience: float = PATIENCE
    since: float = field(default_factory=time.monotonic)

    def attempt(self, generation: int) -> Attempt:
        return Attempt(generation, self.token, self.place, self.ranks)


def save(
    folder: Folder,
    generation: int,
    content: Mapping[Piece, memoryview],
    peers: Peers,
    about: Mapping[str, Any],
    share: Share,
    took: Callable[[int, float], None] | None = None,
) -> int:
    """Write this cell's share of a checkpoint whose marker says `about`, `steps` among it. content: what this rank is
    to write; took: is told its bytes, and seconds. Returns the bytes of all of it; one that is whole there already
    stays. Collective over the cell.

    Raises:
        Uncommitted: it did not become whole; what is left of it nobody reads. RuntimeError: a peer is gone.
    """
    attempt = share.attempt(generation)
    start = time.monotonic()
    word = wrote(folder, attempt, content, peers, share)
    if took is not None and "written" in word:
        took(sum(file[0] for file in word["written"]["files"].values()), time.monotonic() - start)
    return finished(folder, attempt, peers, peers.exchange(word), about, share)


def wrote(
    folder: Folder, attempt: Attempt, content: Mapping[Piece, memoryview], peers: Peers, share: Share
) -> dict[str, Any]:
    """Write a rank's share: what it says of that. Whatever goes wrong is its word."""
    try:
        pieces = list(content)
        block = (content.__getitem__, share.block)
        written = patiently(lambda: write(folder, attempt, peers.rank, pieces, *block), folder.store)
    except Exception as error:
        return failed(error)
    return {"pieces": [piece.told() for piece in pieces], "written": written.told()}


def finished(
    folder: Folder, attempt: Attempt, peers: Peers, said: list[Any], about: Mapping[str, Any], share: Share
) -> int:
    """Tell the other cells what the ranks of this one have `said` of their shares (`wrote`), and hear what comes of it.
    Returns the bytes. Collective over the cell.

    Raises: as `save`.
    """
    ends: dict[str, Any] = {}
    if peers.rank == 0:
        try:
            one = (folder, attempt, of_cell(said, share), about, share)
            ends = patiently(lambda: (follow if share.place else lead)(*one), folder.store)
        except Exception as error:
            ends = not_whole(error, share)
    try:
        ends = peers.exchange(ends)[0]
    except RuntimeError:  # rank 0 may be gone, and all is there
        if not (found := whole_by(folder, attempt)):
            raise
        ends = found
    if ends["problems"]:
        raise Uncommitted("; ".join(ends["problems"]), ends["remedy"])
    return int(ends["bytes"])


def of_cell(said: list[Any], share: Share) -> dict[str, Any]:
    """What a cell says to the others, of what its ranks say: all they wrote, or what they lack."""
    lacks = [
        f"cell {share.cells[share.place]}, rank {at}: {one['problem']}"
        for at, one in enumerate(said)
        if "problem" in one
    ]
    if lacks:
        return {"problems": lacks, "remedy": next((one["remedy"] for one in said if one.get("remedy")), "")}
    return {"problems": [], "ranks": said}


def lead(
    folder: Folder, attempt: Attempt, own: Mapping[str, Any], about: Mapping[str, Any], share: Share
) -> dict[str, Any]:
    """Wait for what all cells say, commit it, and tell the others if it comes to nothing. Returns the end: bytes, or
    what was lacking."""
    try:
        if not (ends := standing(folder)):
            ends = committed_of(folder, attempt, gathered(folder, attempt, own, share), about)
    except Exception as error:
        ends = not_whole(error, share)
    if ends["problems"]:
        with contextlib.suppress(UserError):
            tell(folder, attempt, 0, ends)
    forget(folder, attempt, ends)
    return ends


def committed_of(
    folder: Folder, attempt: Attempt, words: Mapping[int, Mapping[str, Any]], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Commit what all cells have said, if none lacks anything. Returns the end; with `begun`, if a marker that was not
    answered for may still come to stand there.

    Raises:
        ValueError: what they wrote is no state.
    """
    said = [words[place] for place in sorted(words)]
    if lacks := [problem for word in said for problem in word["problems"]]:
        return {"bytes": -1, "problems": lacks, "remedy": next((w["remedy"] for w in said if w.get("remedy")), "")}
    ranks = [one for word in said for one in word["ranks"]]
    pieces = [Piece.heard(piece) for one in ranks for piece in one["pieces"]]
    check(pieces)
    folder.delete([name for name in folder.sizes() if WORD.fullmatch(name)])  # nobody may be left to do it after this
    ends = outcome(folder, attempt, pieces, [Written.heard(one["written"]) for one in ranks], about, False)
    return {**ends, "begun": True}


def gathered(folder: Folder, attempt: Attempt, own: Mapping[str, Any], share: Share) -> dict[int, Mapping[str, Any]]:
    """What all cells say, by their places; less, if one of them lacks something.

    Raises:
        Uncommitted: one is gone, or takes too long. StoreError: the store does not answer. ValueError: a word is none.
    """
    found: dict[int, Mapping[str, Any]] = {0: own}

    def find(there: Collection[str]) -> bool | None:
        for place in range(len(share.cells)):
            if place not in found and attempt.word(place) in there:
                found[place] = heard(folder, attempt, place)
        return len(found) == len(share.cells) or any(word["problems"] for word in found.values()) or None

    def lacking() -> list[int]:
        return [place for place in range(len(share.cells)) if place not in found]

    awaited(folder, share, find, lacking, 1.0)
    return found


def follow(
    folder: Folder, attempt: Attempt, own: Mapping[str, Any], about: Mapping[str, Any], share: Share
) -> dict[str, Any]:
    """Tell the first cell what this one has written, and wait for what it makes of all. Returns the end.

    Raises: as `gathered`.
    """
    tell(folder, attempt, share.place, own)

    def find(there: Collection[str]) -> dict[str, Any] | None:
        if attempt.word(0) in there:
            return heard(folder, attempt, 0)
        return standing(folder) if MARKER in there else None

    ends = awaited(folder, share, find, lambda: [0], LONGER)
    forget(folder, attempt, ends)
    with contextlib.suppress(UserError):
        folder.delete([attempt.word(share.place)])
    return ends


def forget(folder: Folder, attempt: Attempt, ends: Mapping[str, Any]) -> None:
    """Remove what this cell wrote if it is of no use, and nothing can come to need it."""
    if not (ends["problems"] and ends.get("begun")):
        clean(folder, attempt)


def awaited(
    folder: Folder,
    share: Share,
    find: Callable[[Collection[str]], T | None],
    lacking: Callable[[], Collection[int]],
    times: float,
) -> T:
    """What `find` finds among the names that are there, as soon as it does. lacking: places of the cells that are
    waited for; times: as long as the first cell waits.

    Raises:
        Uncommitted: one of them is gone, or takes too long. StoreError: the store does not answer. Others as `find`.
    """
    begun = time.monotonic()
    patience = times * max(share.patience, TIMES * (begun - share.since))
    while True:
        gone, waited = set(share.gone()), time.monotonic() - begun  # before the look: what they said by then counts
        late = waited > patience
        try:
            if (found := find(folder.sizes())) is not None:
                return found
        except StoreError:
            if late or gone:
                raise
        left = [place for place in lacking() if late or place in gone or share.place in gone]
        if left:
            names = ", ".join(f"cell {share.cells[place]}" for place in left)
            why = f"said nothing of its share within {waited:.0f} s" if late else "ended before its share was told"
            raise Uncommitted(f"{names} {why}", "")
        time.sleep(min(LONGEST, max(SHORTEST, waited / 10)))


def standing(folder: Folder) -> dict[str, Any] | None:
    """The end, if a checkpoint is whole there: whoever wrote it, it is of the same steps."""
    try:
        marker = read_marker(folder)
    except (Damaged, Earlier):
        return None
    return {"bytes": sum(marker["files"].values()), "problems": []}


def whole_by(folder: Folder, attempt: Attempt) -> dict[str, Any] | None:
    """The end, if this attempt is whole by now, as far as the store says."""
    with contextlib.suppress(UserError):
        return standing(folder) if committed(folder, attempt) else None
    return None


def not_whole(error: Exception, share: Share) -> dict[str, Any]:
    """The end, of what went wrong here."""
    if isinstance(error, Uncommitted):
        return {"bytes": -1, "problems": [error.problem], "remedy": error.remedy}
    word = failed(error)
    return {"bytes": -1, "problems": [f"cell {share.cells[share.place]}: {word['problem']}"], "remedy": word["remedy"]}


def tell(folder: Folder, attempt: Attempt, place: int, said: Mapping[str, Any]) -> None:
    """Say something for a cell. Raises StoreError: the store does not take it."""
    folder.put(attempt.word(place), json.dumps({**said, "seal": seal(said)}).encode())


def heard(folder: Folder, attempt: Attempt, place: int) -> dict[str, Any]:
    """What a cell said.

    Raises:
        ValueError: it is not as it was said. StoreError: the store does not give it.
    """
    name = attempt.word(place)
    said = json.loads(folder.get(name))
    if said["seal"] != seal(said):
        raise ValueError(f"{folder.where(name)}: is not as it was written")
    return dict(said)
