"""A folder that `datasets` wrote with `save_to_disk`: which files are its rows, and in which order."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from typing import Any

from shoal_core.errors import UserError
from shoal_data.sources.filesystem import Found, is_local, list_files, stamp_of
from shoal_data.sources.found import Problem
from shoal_data.sources.opening import open_file

__all__ = ["MAPPED", "SavedDataset", "data_files", "mapped_stamp", "open_saved"]

#: the format of a saved dataset whose rows are picked by another file, its indices
MAPPED = "mapped"
_STATE, _SPLITS = "state.json", "dataset_dict.json"


@dataclass
class SavedDataset:
    """What a folder of `save_to_disk` holds.

    Attributes:
        name: of the source, if the user gives none.
        files: in the order of the rows.
        problems: files that belong to it and cannot be read.
        chosen: whether it is one of several splits, chosen by its name.
    """

    name: str
    files: list[Found] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    chosen: bool = False


def open_saved(folder: str, split: str | None) -> SavedDataset | None:
    """The dataset in `folder`, or None if `save_to_disk` did not write it.

    Args:
        folder: a path or URL.
        split: which of the datasets in it, where it holds several.

    Raises:
        UserError: there are several splits and none of them is named, or its notes are damaged.
        StoreError: the store does not give its notes.
    """
    folder = os.path.abspath(folder) if folder in (".", "..") else folder.rstrip("/")
    name = folder.rpartition("/")[2]
    if (listed := _noted(folder, _SPLITS)) is not None:
        splits = listed.get("splits")
        if not isinstance(splits, list) or not all(isinstance(one, str) for one in splits):
            raise _damaged(folder, _SPLITS, "it lists no splits")
        there = ", ".join(splits)
        if split is None:
            remedy = f"choose one with --split, or write {folder}/{splits[0] if splits else 'SPLIT'}"
            raise UserError(f"--input {folder!r}: it holds a dataset of {len(splits)} splits: {there}", remedy)
        if split not in splits:
            raise UserError(f"--split {split!r}: {folder} has no such split", f"choose one of {there}")
        folder = f"{folder}/{split}"
    elif _is_split(folder):
        name = folder.split("/")[-2]
    state = _noted(folder, _STATE)
    if state is None:
        return None if listed is None else _absent(folder, name, _STATE)
    found = SavedDataset(name, chosen=listed is not None)
    for path in data_files(folder, state):
        _add(found, folder, path)
    indices = _names(folder, state, "_indices_data_files") if state.get("_indices_data_files") else []
    if indices and not found.problems:
        found.files = [_mapped(folder, found.files, indices)]
    return found


def _is_split(folder: str) -> bool:
    above, _, name = folder.rpartition("/")
    splits = (_noted(above, _SPLITS) or {}).get("splits") if above.rpartition("/")[2] else None
    return isinstance(splits, list) and name in splits


def data_files(folder: str, state: dict[str, Any] | None = None) -> list[str]:
    """The paths of the Arrow files of a saved dataset, in order. `state`: what its state.json says, if it is known.

    Raises:
        UserError: its state.json is gone or damaged.
    """
    state = _noted(folder, _STATE) if state is None else state
    return [f"{folder}/{name}" for name in _names(folder, state or {}, "_data_files")]


def _names(folder: str, state: dict[str, Any], key: str) -> list[str]:
    """The names of files that a state.json lists. Raises UserError: it does not."""
    try:
        return [str(entry["filename"]) for entry in state[key]]
    except (KeyError, TypeError) as error:
        raise _damaged(folder, _STATE, f"{key} names no files") from error


def mapped_stamp(indices: str) -> str:
    """The stamp of all files that a dataset with indices consists of."""
    paths = [indices, *data_files(indices.rpartition("/")[0])]
    return hashlib.sha256("\n".join(f"{path} {stamp_of(path)}" for path in paths).encode()).hexdigest()


def _mapped(folder: str, files: list[Found], indices: list[str]) -> Found:
    """The file of indices, which stands for the rows that they pick.

    Raises:
        UserError: indices in several files, or on a store: old versions of `datasets` wrote one file, on a disk.
    """
    if len(indices) != 1 or not is_local(folder):
        raise UserError(
            f"--input {folder!r}: its rows are picked by {len(indices)} files of indices, which an old version of "
            "datasets wrote",
            "copy it to this machine, load it with that version, call flatten_indices() and save it again",
        )
    path = f"{folder}/{indices[0].rpartition('/')[2]}"
    listing = list_files(path)
    if not listing.files:
        raise UserError(f"{path}: {folder}/{_STATE} names it, and it is not there", "fetch the whole folder again")
    size = sum(file.size for file in files)
    return Found(path, size, mapped_stamp(path), listing.files[0].identity, MAPPED)


def _add(found: SavedDataset, folder: str, path: str) -> None:
    if "/../" in f"{path}/" or not path.startswith(f"{folder}/"):
        raise _damaged(folder, _STATE, "it names files outside of the folder")
    listing = list_files(path)
    found.files += listing.files
    found.problems += listing.problems
    if not listing.files and not listing.problems:
        cause = f"{folder}/{_STATE} names it, and it is not there"
        found.problems.append(Problem(path, cause, "fetch the whole folder again"))


def _absent(folder: str, name: str, what: str) -> SavedDataset:
    cause = f"the split has no {what}"
    remedy = "fetch the whole folder again, or choose another split"
    return SavedDataset(name, problems=[Problem(folder, cause, remedy)], chosen=True)


def _noted(folder: str, name: str) -> dict[str, Any] | None:
    """What `datasets` noted in a JSON file of the folder; None if there is no such file.

    Raises:
        UserError: it is damaged.
    """
    path = f"{folder}/{name}"
    if not list_files(path).files:
        return None
    with open_file(path) as file:
        content = file.read()
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _damaged(folder, name, str(error)) from error
    if not isinstance(value, dict):
        raise _damaged(folder, name, "it is no object")
    return value


def _damaged(folder: str, name: str, why: str) -> UserError:
    return UserError(f"{folder}/{name}: damaged: {why}", "fetch it again, or write a pattern for the files: *.arrow")
