"""What makes a folder a whole checkpoint: `COMMITTED.json`, written last, which names every file with its SHA-256.

All who read a checkpoint (restoring workers, `--resume`, evaluation, export) read it by `verify`: nothing in the folder
is believed, and nothing unpickled, before every byte of it is known to be what was committed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal_core.errors import UserError

__all__ = ["MARKER", "Damaged", "Whole", "commit", "last_whole", "prune", "set_aside", "sweep", "verify", "whole"]

MARKER = "COMMITTED.json"
VERSION = 2
"""Of the marker: since 2 it is sealed."""
FOLDER = re.compile(r"step-(\d{8})")
ANY = re.compile(r"\.?step-(\d{8})(-\d+)?")
"""Of a checkpoint, finished or not."""
READERS = 4
"""Files that are hashed at once."""


class Damaged(UserError):
    """A checkpoint is not what was committed."""


@dataclass(frozen=True)
class Whole:
    """A finished checkpoint. `steps`: committed steps its state stands for."""

    steps: int
    path: Path


def whole(root: Path) -> list[Whole]:
    """The finished checkpoints under `root`, oldest first, by their names alone. Half-written ones are not seen."""
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


def commit(folder: Path, final: Path, about: Mapping[str, Any]) -> int:
    """Mark `folder` whole and give it its final name. Returns its bytes. `about`: what the marker says besides, `steps`
    among it."""
    names = sorted(os.listdir(folder))
    with ThreadPoolExecutor(READERS) as pool:
        sums = list(pool.map(lambda name: digest(folder / name), names))
    sizes = [(folder / name).stat().st_size for name in names]
    files = {name: {"bytes": size, "sha256": sha} for name, size, sha in zip(names, sizes, sums, strict=True)}
    marker = folder / MARKER
    said = {**about, "time": time.time(), "version": VERSION, "files": files}
    with marker.with_suffix(".tmp").open("w") as out:
        json.dump({**said, "seal": seal(said)}, out, indent=1)
        out.flush()
        os.fsync(out.fileno())
    marker.with_suffix(".tmp").replace(marker)
    if (final / MARKER).is_file():  # another cell saved the same step: what is whole is never taken away
        shutil.rmtree(folder)
    else:
        shutil.rmtree(final, ignore_errors=True)
        folder.rename(final)
    return sum(sizes)


def verify(path: Path) -> dict[str, Any]:
    """Check a checkpoint, every byte of it, against its marker and return the marker.

    The folder holds exactly the files that the marker names, and stands for the steps that its name says.

    Raises:
        Damaged: it does not, or a file differs from what was committed.
    """
    remedy = f"remove or restore {path} to go on from an older checkpoint"
    marker = read_marker(path)
    named = FOLDER.fullmatch(path.name)
    if named and int(named[1]) != marker["steps"]:
        raise Damaged(f"{path}: holds a checkpoint of {marker['steps']} steps", remedy)
    files: dict[str, Any] = marker["files"]
    try:
        there = set(os.listdir(path)) - {MARKER}
        for name in sorted(files.keys() - there):
            raise Damaged(f"{path / name}: is missing", remedy)
        for name in sorted(there - files.keys()):
            raise Damaged(f"{path / name}: is none of the files that were committed", remedy)
        for name, expected in files.items():
            found = os.lstat(path / name)
            if not stat.S_ISREG(found.st_mode) or found.st_size != expected["bytes"]:
                raise Damaged(
                    f"{path / name}: is not the file of {expected['bytes']} bytes it was committed as", remedy
                )
        with ThreadPoolExecutor(READERS) as pool:
            sums = list(pool.map(lambda name: digest(path / name), files))
    except OSError as error:
        raise Damaged(f"{path}: cannot be read ({error})", remedy) from error
    for (name, expected), sha in zip(files.items(), sums, strict=True):
        if sha != expected["sha256"]:
            raise Damaged(f"{path / name}: differs from what was committed", remedy)
    return marker


def read_marker(path: Path) -> dict[str, Any]:
    """The marker of a checkpoint, well formed: `steps`, `files` and what else it says.

    Raises:
        Damaged: there is none, or none that could have been written by `commit`.
    """
    remedy = "name a folder like RUN/checkpoints/step-00000100 that holds COMMITTED.json"
    try:
        marker = json.loads((path / MARKER).read_text())
        steps, files = marker["steps"], marker["files"]
        if ("version" in marker or "seal" in marker) and marker.get("seal") != seal(marker):
            raise ValueError("it is not as it was written")
        if type(steps) is not int or steps < 0:
            raise ValueError(f"steps is {steps!r}")
        if not isinstance(files, dict) or not files:
            raise ValueError("it names no files")
        for name, expected in files.items():
            if name != os.path.basename(name) or name in ("", ".", "..", MARKER):
                raise ValueError(f"{name!r} is no file of a checkpoint")
            if type(expected["bytes"]) is not int or not isinstance(expected["sha256"], str):
                raise ValueError(f"no size and checksum of {name}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"{path}: is no finished checkpoint ({MARKER}: {error})", remedy) from error
    return dict(marker)


def seal(marker: Mapping[str, Any]) -> str:
    """SHA-256 of what a marker says but for the seal itself: a bit that flips in it is seen too."""
    said = {key: value for key, value in marker.items() if key != "seal"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def prune(root: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and what older attempts left half-written.

    One that was saved after a step that was not finite does not count, and only the newest of them stays: it never
    takes the place of a healthy one.
    """
    found = whole(root)
    healthy = [one for one in found if is_finite(one.path)]
    kept = {one.path for one in [*healthy[-keep:], *found[-1:]]}
    for child in root.iterdir():
        name = ANY.fullmatch(child.name)
        if name and child not in kept and found and int(name[1]) <= found[-1].steps:
            shutil.rmtree(child, ignore_errors=True)


def is_finite(path: Path) -> bool:
    """Whether a checkpoint was saved after a step that was a number."""
    try:
        return bool(read_marker(path).get("finite", True))
    except Damaged:
        return False


def sweep(root: Path) -> None:
    """Remove what saves left half-written, when nobody saves."""
    for child in root.iterdir() if root.is_dir() else ():
        if child.name.startswith(".") and ANY.fullmatch(child.name):
            shutil.rmtree(child, ignore_errors=True)


def set_aside(path: Path) -> Path:
    """Give a checkpoint that is not to be used a name under which nobody looks for one; it stays for its owner."""
    number, target = 0, path.with_name(f"aside-{path.name}")
    while target.exists():
        number += 1
        target = path.with_name(f"aside-{path.name}-{number}")
    path.rename(target)
    return target
