"""The format before this one, read once, to be converted: torch's distributed checkpoint in a folder of this machine,
with a marker that names every file with its SHA-256.

Nothing in the folder is believed, and nothing unpickled, before every byte of it is known to be what was committed.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal_core.ckpt.errors import Damaged
from shoal_core.ckpt.marker import MARKER, seal

if TYPE_CHECKING:
    import torch

__all__ = ["read", "read_marker", "write"]

READERS = 4
"""Files that are hashed at once."""


def read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What the marker of the checkpoint in the folder `path` says, and its tensors, whole, in the CPU's memory.

    Raises:
        Damaged: it is not what was committed.
    """
    import torch
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    from shoal_core.ckpt.earlier_index import Reader, read_index

    marker = verify(path)
    held = read_index(path).state_dict_metadata
    tensors = {name: entry for name, entry in held.items() if isinstance(entry, TensorStorageMetadata)}
    state: dict[str, Any] = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in tensors.items()
    }
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(state, storage_reader=Reader(path), no_dist=True)
    except CheckpointException as error:  # which is no Exception
        raise Damaged(f"{path}: cannot be read ({error})", "use another checkpoint") from error
    return marker, state


def write(state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write torch's own format, without a marker, to the new folder `path`.

    Raises:
        OSError: it cannot be written.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.save(dict(state), checkpoint_id=path, no_dist=True)
    except CheckpointException as error:  # which is no Exception
        raise OSError(f"{path}: {error}") from error


def verify(path: Path) -> dict[str, Any]:
    """Check a checkpoint, every byte of it, against its marker and return the marker.

    Raises:
        Damaged: the folder does not hold exactly the files that the marker names, or one differs.
    """
    marker = read_marker(path)
    remedy = f"restore {path}, or convert an older checkpoint"
    files: dict[str, Any] = marker["files"]
    try:
        there = set(os.listdir(path)) - {MARKER}
        for name in sorted(files.keys() ^ there):
            what = "is missing" if name in files else "is none of the files that were committed"
            raise Damaged(f"{path / name}: {what}", remedy)
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
    """The marker of a checkpoint of that format.

    Raises:
        Damaged: there is none, or none that could have been written.
    """
    try:
        marker = json.loads((path / MARKER).read_text())
        steps, files = marker["steps"], marker["files"]
        if ("version" in marker or "seal" in marker) and marker.get("seal") != seal(marker):
            raise ValueError("it is not as it was written")
        if marker.get("version", 1) not in (1, 2):
            raise ValueError(f"it is of version {marker['version']!r}")
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
        raise Damaged(f"{path}: is no finished checkpoint ({MARKER}: {error})", "name another folder") from error
    return dict(marker)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
