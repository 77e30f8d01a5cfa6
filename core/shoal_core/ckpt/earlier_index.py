"""torch's distributed checkpoint, which the format before this one was, read without trusting it.

Its index, `.metadata`, is a pickle: here it may name torch's own descriptions of tensors and nothing else, and what it
says must fit the files beside it. A state is made of plain tensors: an entry that would be unpickled is refused.
"""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    Metadata,
    StorageMeta,
    TensorStorageMetadata,
)

from shoal_core.ckpt.errors import Damaged

__all__ = ["INDEX", "Reader", "read_index"]

INDEX = ".metadata"
KNOWN = {
    *(
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    ),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("pathlib", "PosixPath"),
}
"""What the index of a checkpoint of tensors is made of, beside torch's dtypes."""


class Unpickler(pickle.Unpickler):
    """Finds what `KNOWN` names, dtypes, and members of one enumeration, which older Pythons take by `getattr`."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return member
        if (module, name) in KNOWN or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in it")


def member(of: Any, name: str) -> Any:
    """Stands for `getattr`: a way of lying in memory, by its name.

    Raises:
        UnpicklingError: anything else is asked for.
    """
    if of is not _MEM_FORMAT_ENCODING:
        raise pickle.UnpicklingError(f"{name} of {of} has no place in it")
    return _MEM_FORMAT_ENCODING[name]


def read_index(path: Path) -> Metadata:
    """The index of the checkpoint folder `path`, whose files were verified.

    Raises:
        Damaged: it is none of tensors in files of this folder.
    """
    try:
        with (path / INDEX).open("rb") as file:
            index = Unpickler(file).load()
        check(index, path)
    except Exception as error:  # whatever a pickle of somebody else's making comes to
        raise Damaged(f"{path / INDEX}: is no index of tensors ({error})", "use another checkpoint") from error
    return index


def check(index: Any, path: Path) -> None:
    """Hold an index against the files.

    Raises:
        ValueError: it does not fit them.
    """
    if not isinstance(index, Metadata) or not isinstance(index.storage_data, dict):
        raise ValueError("it describes no tensors")
    sizes = {file.name: file.stat().st_size for file in path.iterdir() if file.is_file()}
    for info in index.storage_data.values():
        if not isinstance(info, _StorageInfo) or info.relative_path not in sizes or info.transform_descriptors:
            raise ValueError("it leads to data that are not in its folder")
        if not 0 <= info.offset <= info.offset + info.length <= sizes[info.relative_path]:
            raise ValueError(f"it leads beyond the end of {info.relative_path}")
    for name, entry in index.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata) or not isinstance(entry.properties.dtype, torch.dtype):
            raise ValueError(f"{name} is no tensor")
        if math.prod(entry.size) * entry.properties.dtype.itemsize > sum(sizes.values()):
            raise ValueError(f"{name} has shape {list(entry.size)}, more than its files hold")


class Reader(FileSystemReader):
    """Reads a checkpoint whose files were verified, by `read_index`."""

    def read_metadata(self) -> Metadata:  # without torch's `rank`: there is one index
        index = read_index(Path(self.path))
        index.storage_meta = StorageMeta(load_id=self.load_id)
        return index
