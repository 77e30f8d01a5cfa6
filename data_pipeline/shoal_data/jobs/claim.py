"""Whose folder `--out` is: where a job may write, and whether the work that lies there is its own."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shoal_core.errors import UserError
from shoal_core.files import parse_json
from shoal_core.passing import own_cluster, passing
from shoal_data.files import write_json
from shoal_data.jobs.lock import LOCK
from shoal_data.place import Place, is_address, place_at

__all__ = ["FORMAT", "as_recorded", "belongs", "check_out", "claim", "difference"]

#: of `job/job.json`; jobs of another format are not gone on with
FORMAT = 2
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_NAMED = 3  # files that a message names before it counts the rest


def check_out(out: str | Path) -> Place:
    """`out` as a path or a place on a store, after a look at it that changes nothing.

    Raises:
        UserError: an address that names none, a file, below a file, read-only, or within a folder of Ray's that is
            deleted.
        StoreError: the store does not say what is there.
    """
    address = str(out)
    if _ADDRESS.match(address):
        if not is_address(address) or address.startswith("file:"):
            raise UserError(f"--out {address}: this names no store", "write s3://bucket/prefix, or a path alone")
        place = place_at(address)
        belongs(place)  # asks the store, so that a wrong address is told before any work
        return place
    if not address or "\0" in address:
        raise UserError(f"--out {address!r}: no folder's name", "name a folder")
    path = Path(out)
    whole = path.absolute()
    if why := passing(whole, own_cluster()):
        raise UserError(
            f"--out {address}: {whole} lies in {why}",
            "give the whole path of a folder that all nodes share, such as /shared/corpus",
        )
    there = whole
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise UserError(f"--out {address}: {there} is a file", "name a folder that is new, or empty")
    if not os.access(there, os.W_OK | os.X_OK) and not belongs(path):
        raise UserError(f"--out {address}: {there} cannot be written to", "name a folder that this user may write to")
    return path


def belongs(folder: Place) -> bool:
    """Whether a job has begun in `folder`."""
    return (folder / "job" / "job.json").exists()


def as_recorded(options: Any) -> dict[str, Any]:
    """A dataclass of options as plain values, without `join` and `split` where they are left out: the records of jobs
    that began before there were such options hold neither.
    """
    later = ("join", "split")
    return {name: value for name, value in asdict(options).items() if value is not None or name not in later}


def claim(folder: Place, job: dict[str, Any], results: Sequence[str]) -> None:
    """Make `folder` this job's, or see that it already is. Call it with the folder's lock held.

    Args:
        job: what the job is, in plain values: `format, options, parts`, and `tokenizer` where there is one.
        results: patterns of what such jobs make; another job that has made nothing yet (its column was mistyped, say)
            gives way.

    Raises:
        UserError: other things lie there, or another job's work; it says what is different.
    """
    path = folder / "job" / "job.json"
    if not belongs(folder):
        if any(other.name != "job" for other in folder.iterdir()):
            raise UserError(f"{folder}: a folder with other things in it", "choose an empty or new folder for --out")
        if any(other.name != LOCK for other in path.parent.iterdir()):
            raise UserError(f"{path.parent}: what lies here has no job.json", "choose another --out, or delete it")
        write_json(path, job)
        return
    try:
        before = parse_json(path.read_bytes())
        found = difference(before, job)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: damaged ({type(error).__name__}: {error})", "choose another --out, or delete this folder"
        ) from error
    if not found:
        return
    if any(True for pattern in results for _ in folder.glob(pattern)):
        raise UserError(
            f"{folder}: it belongs to another job: {found}", "choose another --out, or delete this folder, or undo that"
        )
    for left in path.parent.iterdir():
        if left.name != LOCK:
            left.unlink(missing_ok=True)
    write_json(path, job)


def difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What sets two jobs apart, in words; empty if they are the same."""
    if before == now:
        return ""
    if before.get("format") != FORMAT:
        return "an older version of Shoal began it, which kept no record of its inputs' state"
    if before.get("tokenizer") != now.get("tokenizer"):
        digests = [str(job.get("tokenizer"))[:12] for job in (before, now)]
        return f"its tokenizer had the SHA-256 {digests[0]}..., this one has {digests[1]}..."
    old, new = (_flat(job["options"]) for job in (before, now))
    changed = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    if changed:
        one = [f"--{name.replace('_', '-')} was {_said(old.get(name))}, is {_said(new.get(name))}" for name in changed]
        return "; ".join(one)
    return _files_apart(_stamps(before["parts"]), _stamps(now["parts"]))


def _files_apart(old: dict[str, str], new: dict[str, str]) -> str:
    """How the files that two jobs read differ."""
    words = []
    for what, files in (
        ("changed since it was begun", [path for path in old if path in new and old[path] != new[path]]),
        ("is no longer among the inputs", [path for path in old if path not in new]),
        ("was not among the inputs", [path for path in new if path not in old]),
    ):
        if files:
            more = f" and {len(files) - _NAMED:,} more" if len(files) > _NAMED else ""
            words.append(f"{', '.join(files[:_NAMED])}{more}: {what}")
    return "; ".join(words) or "its inputs were cut into other parts, or have other sources"


def _flat(options: dict[str, Any]) -> dict[str, Any]:
    """Options by their names at the command line, those of the recipe beside the others."""
    recipe = dict(options.get("recipe") or {})
    recipe["mixture"] = recipe.pop("weights", None)
    return {name: value for name, value in {**options, **recipe}.items() if name != "recipe"}


def _said(value: Any) -> str:
    return "left out" if value is None or value is False else "given" if value is True else str(value)


def _stamps(parts: list[dict[str, Any]]) -> dict[str, str]:
    return {piece["path"]: piece["stamp"] for part in parts for piece in part["pieces"]}
