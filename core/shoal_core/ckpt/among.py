"""The checkpoints of a run, beside each other in one store: which are whole, which are kept, what is left over."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass

from shoal_core.ckpt.errors import Damaged, Earlier
from shoal_core.ckpt.folder import STEP, Folder
from shoal_core.ckpt.marker import MARKER
from shoal_core.ckpt.retention import Keep, Saved, staying
from shoal_core.ckpt.whole import read_marker
from shoal_core.errors import StoreError, UserError
from shoal_core.store import Store

__all__ = [
    "Whole",
    "delete",
    "folders",
    "half_written",
    "last_whole",
    "prune",
    "reading",
    "remove",
    "saved",
    "set_aside",
    "sweep",
    "whole",
]

logger = logging.getLogger(__name__)

OWN = re.compile(
    r"COMMITTED\.json|ASIDE-[0-9a-f]+\.json|g\d+-[0-9a-f]+(\.index\.json|-part-\d+\.json|-\d+(-\d+)?\.safetensors)"
    r"|READING-[0-9a-f]+\.json|\.metadata|__\d+_\d+\.distcp"
)
"""What checkpoints are made of, the last two in the format before this one."""

ASIDE = "ASIDE-"
"""Begins the name of what a marker becomes when nobody is to use its checkpoint."""
READING = "READING-"
"""Begins the name of what somebody puts beside a checkpoint that is not to be removed meanwhile."""
READING_FOR = 3600.0
"""Seconds for which that is heeded: who reads may have died."""


@dataclass(frozen=True)
class Whole:
    """A finished checkpoint. `steps`: committed steps its state stands for."""

    steps: int
    folder: Folder


def whole(root: Store) -> list[Whole]:
    """The finished checkpoints in `root`, oldest first, by their names alone. Half-written ones are not seen."""
    return [Whole(steps, folder) for steps, folder in folders(root) if folder.has(MARKER)]


def last_whole(root: Store) -> Whole | None:
    found = whole(root)
    return found[-1] if found else None


def folders(root: Store) -> list[tuple[int, Folder]]:
    """All that have the name of a checkpoint, oldest first."""
    named = [(name, STEP.fullmatch(name)) for name in root.folders()]
    return sorted(((int(found[1]), Folder(root, name)) for name, found in named if found), key=lambda one: one[0])


def prune(
    root: Store,
    keep: Keep,
    used: Collection[int] = (),
    known: MutableMapping[int, Saved] | None = None,
    stay: Callable[[Sequence[Saved]], None] = lambda those: None,
) -> None:
    """Remove the checkpoints that do not stay, but for what is being read and what was set aside, and what older
    attempts left half-written; to be called once one has become whole. used: steps of those that stay whatever `keep`
    says; known: what was read of markers before, and is now; stay: is told which stay before any other is removed.
    """
    found = whole(root)
    known = {} if known is None else known
    fresh = {one.steps for one in found if one.steps not in known} | {one.steps for one in found[-2:]}
    for one in found:
        if one.steps not in known:
            known[one.steps] = saved(one)
    kept = staying([known[one.steps] for one in found], keep, used)
    stay([known[one.steps] for one in found if one.steps in kept])
    newest = [entry for one in found[-1:] for entry in root.list(f"{one.folder.prefix}/{MARKER}")]
    now = max((entry.modified for entry in newest), default=0.0)
    for steps, folder in folders(root):
        if found and steps <= found[-1].steps:
            if steps not in kept and not being_read(folder, now):
                remove(folder, marker=True)
            elif steps < found[-1].steps and steps in fresh:
                remove(folder, marker=False)


def saved(one: Whole) -> Saved:
    """What decides over whether a checkpoint stays. One whose marker cannot be read is no healthy one."""
    try:
        marker = read_marker(one.folder)
    except (Damaged, Earlier):
        return Saved(one.steps, finite=False)
    told = {**(marker.get("metrics") or {}), "bpb": marker.get("bpb")}
    metrics = {name: float(figure) for name, figure in told.items() if isinstance(figure, int | float)}
    return Saved(one.steps, bool(marker.get("finite", True)), metrics)


@contextlib.contextmanager
def reading(folder: Folder) -> Iterator[None]:
    """While it lasts no run removes the checkpoint in `folder`, for `READING_FOR` seconds at most. Where nothing may be
    written nobody is told."""
    name = f"{READING}{secrets.token_hex(6)}.json"
    with contextlib.suppress(UserError):
        folder.put(name, b"{}")
    try:
        yield
    finally:
        with contextlib.suppress(UserError):
            folder.delete([name])


def being_read(folder: Folder, now: float) -> bool:
    """Whether somebody said so, and not long before `now` (seconds since 1970), both by the store's clock."""
    said = folder.store.list(f"{folder.prefix}/{READING}")
    return any(entry.modified > now - READING_FOR for entry in said)


def sweep(root: Store) -> list[Folder]:
    """Remove what saves left half-written, when nobody saves. Returns where there was some."""
    found = [folder for _, folder in folders(root) if remove(folder, marker=False)]
    drop_unfinished(root, "")  # where nothing else lies no folder is listed
    return found


def delete(folder: Folder) -> int:
    """Remove a checkpoint, whole or not, of this format or the one before, and what was set aside there; other files
    stay. Its marker goes first: who reads meanwhile sees none. Returns the bytes that were removed.

    Raises:
        StoreError: the store keeps some of it.
    """
    own = {name: size for name, size in folder.sizes().items() if OWN.fullmatch(name)}
    folder.delete([name for name in own if name == MARKER])
    folder.delete(own)
    return sum(own.values())


def remove(folder: Folder, *, marker: bool) -> bool:
    """Remove what saves wrote to a folder, where none is under way, but for what was set aside there and, unless
    `marker`, the finished checkpoint; of a marker that cannot be read nothing is removed. Whether there was any."""
    unfinished = drop_unfinished(folder.store, folder.prefix)
    there = folder.sizes()
    kept: set[str] = set()
    for name in there:
        if name.startswith(ASIDE):
            kept |= {name, *aside_files(folder, name, there)}
        elif name.startswith(READING) and not marker:
            kept.add(name)
    if MARKER in there and not marker:
        try:
            said = read_marker(folder)
        except (Damaged, Earlier):
            return bool(unfinished)
        kept |= {MARKER, said["index"]["file"], *said["files"]}
    gone = {name for name in there.keys() - kept if OWN.fullmatch(name)}
    if MARKER in gone:
        folder.delete([MARKER])
    folder.delete(sorted(gone - {MARKER}))
    return bool(gone or unfinished)


def half_written(folder: Folder) -> bool:
    """Whether nothing lies in a folder but what a save, if any, has left that did not come to its end."""
    return all(OWN.fullmatch(name) and name != MARKER and not name.startswith(ASIDE) for name in folder.sizes())


def drop_unfinished(store: Store, within: str) -> int:
    """See `Store`. Who may not list what is unfinished leaves it to the store's own rule (docs/storage.md)."""
    try:
        return store.drop_unfinished(within)
    except StoreError as error:
        logger.info("what killed saves left unfinished is not removed: %s", error.problem)
        return 0


def set_aside(folder: Folder) -> str:
    """Have nobody look for a checkpoint that is not to be used: its marker becomes another object, which lists the
    files that stay for its owner. The same step can be saved again beside them. Returns the address of that object,
    or of the folder if it is empty.

    Raises:
        StoreError: the store does not take it.
    """
    if not folder.sizes():
        return folder.address
    content = b""
    with contextlib.suppress(FileNotFoundError, ValueError):
        content = folder.get(MARKER)
    name = f"{ASIDE}{hashlib.sha256(content).hexdigest()[:12]}.json"
    files = sorted(name for name in folder.sizes() if name != MARKER and not name.startswith(ASIDE))
    said = {"marker": content.decode(errors="replace"), "files": files}
    folder.put(name, json.dumps(said, indent=1).encode())
    folder.delete([MARKER])
    return folder.where(name)


def aside_files(folder: Folder, name: str, there: Iterable[str]) -> set[str]:
    """The files that were set aside by `name`; all that are there, if it cannot be read."""
    try:
        return set(json.loads(folder.get(name))["files"])
    except (ValueError, KeyError, TypeError, RecursionError, FileNotFoundError):
        return set(there)
