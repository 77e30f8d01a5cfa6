"""Checkpoints from place to place, and from format to format."""

from __future__ import annotations

import contextlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shoal_core.ckpt import alone, earlier
from shoal_core.ckpt.among import reading
from shoal_core.ckpt.boxes import whole
from shoal_core.ckpt.folder import Folder
from shoal_core.ckpt.index import File
from shoal_core.ckpt.marker import MARKER
from shoal_core.ckpt.plan import Read, Want, plan
from shoal_core.ckpt.read import READERS, believed, header_of
from shoal_core.ckpt.together import Uncommitted
from shoal_core.ckpt.whole import Checkpoint
from shoal_core.ckpt.zeros import stored
from shoal_core.errors import StoreError, UserError
from shoal_core.store import local_folder

__all__ = ["convert", "copy", "copy_file", "to_dcp"]


def copy(source: Checkpoint, target: Folder) -> int:
    """Copy a checkpoint, verifying every byte on its way. Returns its bytes.

    Raises:
        Damaged: it is not what was committed. UserError: there is one at `target`, or it has another step's name.
        StoreError: a store fails. After any of them nothing is left at `target`.
    """
    check_free(target, source.steps)
    tensors = source.index.tensors
    wanted = {name: Want(tensor.dtype, tensor.shape, (whole(tensor.shape),)) for name, tensor in tensors.items()}
    reads: dict[str, list[Read]] = {name: [] for name in source.index.files}
    for read in plan(source.index, stored(tensors, wanted), source.folder.address):
        reads[read.file].append(read)
    about = source.marker["index"]
    try:
        with reading(source.folder), ThreadPoolExecutor(READERS) as pool:
            files = source.index.files
            for one in [
                pool.submit(copy_file, source.folder, target, name, files[name], parts) for name, parts in reads.items()
            ]:
                one.result()
        target.put(about["file"], source.folder.get(about["file"]))
        if not target.create(MARKER, json.dumps(source.marker, indent=1).encode()):
            raise UserError(f"{target.address}: another was put there meanwhile", "name another place")
    except BaseException:
        with contextlib.suppress(StoreError):  # what failed first is told
            if not target.has(MARKER):
                target.delete([*reads, about["file"]])
        raise
    return source.bytes


def copy_file(source: Folder, target: Folder, name: str, file: File, parts: list[Read]) -> None:
    """Copy a file, which `parts` fill behind its header, verifying every byte on its way.

    Raises: as `copy`; nothing is left of it then.
    """
    head = header_of(source, name, file)
    with target.writer(name) as writer:
        writer.write(head)
        for read in parts:
            writer.write(believed(source, read))


def check_free(target: Folder, steps: int) -> None:
    """Whether a checkpoint of so many steps may be put there.

    Raises:
        UserError: there is something, or its name says other steps.
    """
    if target.steps not in (None, steps):
        raise UserError(f"{target.address}: is the name of another step's checkpoint", "name it after its own step")
    if target.sizes():
        raise UserError(f"{target.address}: is not empty", "name a new folder")


def convert(folder: Folder) -> int:
    """Write the checkpoint of the format before this one in `folder`, on this machine, anew in its place. Returns its
    bytes. At any time one of the two is whole; the old one is gone once the new one is. All of it has to fit in memory.

    Raises:
        Damaged: it is not what was committed. UserError: it lies elsewhere, or the new one cannot be written; then the
            old one is whole still.
    """
    path = local_folder(folder.address)
    if path is None:
        raise UserError(f"{folder.address}: is not on this machine", "copy its folder here, and convert that")
    marker, state = earlier.read(path)
    about = {key: value for key, value in marker.items() if key not in ("version", "seal", "files", "time")}
    try:
        size = alone.write(folder, state, about, replace=True)
    except Uncommitted as error:
        raise UserError(
            f"{folder.address}: cannot be converted ({error.problem})", error.remedy or "make room there"
        ) from error
    folder.delete(marker["files"])
    return size


def to_dcp(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint in torch's own format to the new folder `path`; all of it has to fit in memory.

    Raises:
        UserError: there is something, or it cannot be written. Damaged: the checkpoint is not what was committed.
    """
    if path.exists():
        raise UserError(f"{path}: exists", "name a new folder")
    state = alone.read(checkpoint)
    try:
        earlier.write(state, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error})", "make room, or name another place") from error
