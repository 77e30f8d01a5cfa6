"""A checkpoint that is opened: its marker and its index, held against each other and against what lies beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shoal_core.ckpt.errors import Damaged
from shoal_core.ckpt.folder import Folder
from shoal_core.ckpt.index import Index
from shoal_core.ckpt.marker import MARKER, parse
from shoal_core.ckpt.read import check
from shoal_core.store import split, unmounted

__all__ = ["Checkpoint", "read_marker"]


@dataclass(frozen=True)
class Checkpoint:
    """What its marker and its index say of it. What they say is as it was written; whether the files are is seen by
    whoever reads them (`shoal_core.ckpt.read`)."""

    folder: Folder
    marker: Mapping[str, Any]
    index: Index

    @property
    def steps(self) -> int:
        return int(self.marker["steps"])

    @property
    def bytes(self) -> int:
        """Of all its files."""
        return sum(self.marker["files"].values())

    @classmethod
    def open(cls, folder: Folder, *, files: bool = True) -> Checkpoint:
        """The checkpoint in `folder`; its files are looked at for their sizes, unless they may be had elsewhere too
        (`files`).

        Raises:
            Damaged: there is none, or it is not as it was committed.
            Earlier: it is of the format before this one.
            StoreError: the store does not answer.
        """
        marker = read_marker(folder)
        remedy = f"remove or restore {folder.address} to go on from an older checkpoint"
        if folder.steps is not None and folder.steps != marker["steps"]:
            raise Damaged(f"{folder.address}: holds a checkpoint of {marker['steps']} steps", remedy)
        about = marker["index"]
        wanted = {about["file"]: about["bytes"], **(marker["files"] if files else {})}
        if (lacking := folder.lacking(wanted)) is not None:
            name, size = lacking
            why = "is missing" if size is None else f"has {size} bytes, {wanted[name]} were committed"
            raise Damaged(f"{folder.where(name)}: {why}", remedy)
        return cls(folder, marker, read_index(folder, about, marker["files"], remedy))

    def verify(self) -> None:
        """Read every byte of its files.

        Raises:
            Damaged: one is not as it was committed. StoreError: the store does not answer.
        """
        check(self.folder, self.index)


def read_marker(folder: Folder) -> dict[str, Any]:
    """What the marker in `folder` says.

    Raises:
        Damaged: there is none, or none that could have been written. Earlier: it is of the format before this one.
        StoreError: the store does not answer.
    """
    try:
        return parse(folder.get(MARKER), folder.where(MARKER))
    except (FileNotFoundError, ValueError) as error:
        why: object = error
        if isinstance(error, FileNotFoundError):
            nothing = unmounted(split(folder.address)[0])
            why = "there is none" if nothing is None else f"there is none, {nothing}"
        remedy = "name a folder like RUN/checkpoints/step-00000100 that holds COMMITTED.json"
        raise Damaged(f"{folder.address}: is no finished checkpoint ({MARKER}: {why})", remedy) from error


def read_index(folder: Folder, about: Mapping[str, Any], files: Mapping[str, int], remedy: str) -> Index:
    """The index that a marker speaks of. files: bytes of each, by the marker.

    Raises:
        Damaged: it is another.
    """
    where = folder.where(about["file"])
    try:
        content = folder.get(about["file"])
    except FileNotFoundError as error:
        raise Damaged(f"{where}: is missing", remedy) from error
    except ValueError as error:
        raise Damaged(f"{where}: {error}", remedy) from error
    if hashlib.sha256(content).hexdigest() != about["sha256"]:
        raise Damaged(f"{where}: differs from what was committed", remedy)
    try:
        index = Index.parse(content)
        if {name: file.bytes for name, file in index.files.items()} != dict(files):
            raise ValueError("it is of other files than the marker names")
    except ValueError as error:
        raise Damaged(f"{where}: is no index of tensors ({error})", remedy) from error
    return index
