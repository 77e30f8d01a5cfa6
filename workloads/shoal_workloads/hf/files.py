"""The safetensors files of a checkpoint that others wrote, in a folder or on a store, of which any part can be read.

Headers are read when it is opened and held against the files' sizes and the index; of the tensors nothing is read but
what is asked for, by ranges of bytes and not through a map of the file, so that what was read once takes no memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from shoal_core.ckpt.boxes import Box, whole
from shoal_core.ckpt.cutting import offset
from shoal_core.ckpt.dtypes import SAFETENSORS, itemsize
from shoal_core.ckpt.state import bytes_of
from shoal_core.errors import UserError
from shoal_core.store import Entry, Store, exists, get_small, local_folder, open_store

__all__ = ["INDEX", "Files", "Stored", "read_json"]

INDEX = "model.safetensors.index.json"
SUFFIX = ".safetensors"
LONGEST_HEADER = 100_000_000
"""Bytes; what safetensors' own library takes."""
MOST = 1 << 28
"""Bytes of an index or a configuration."""
AGAIN = "copy the checkpoint again"
DTYPES = {theirs: ours for ours, theirs in SAFETENSORS.items()}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file. `dtype`: safetensors' name; `at`: where its bytes begin in the file."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    at: int
    bytes: int


@dataclass(frozen=True)
class Files:
    """`tensors`: by their names; `sizes`: bytes of each file that holds any."""

    store: Store
    tensors: Mapping[str, Stored]
    sizes: Mapping[str, int]

    @classmethod
    def open(cls, address: str | os.PathLike[str]) -> Files:
        """The files at `address`: those that its `model.safetensors.index.json` names, or without one all.

        Raises:
            UserError: there is none, one is missing, cut off, no file or no safetensors, a tensor is in two of them or
                not where the index has it. StoreError: the store does not answer.
        """
        store = open_store(address)
        entries = {one.name: one for one in store.list() if "/" not in one.name and one.name.endswith(SUFFIX)}
        placed = _index(store)
        folder = local_folder(address) if placed is None else None
        for path in () if folder is None else sorted(folder.glob(f"*{SUFFIX}")):
            if not path.is_file():  # which the store does not list
                raise UserError(f"{path}: is no file, nor a link to one", f"{AGAIN}, or leave it out")
        names = sorted(entries) if placed is None else sorted(set(placed.values()))
        if not names:
            remedy = "name a folder with config.json and safetensors"
            raise UserError(f"{store.address}: holds no *{SUFFIX}", remedy)
        tensors: dict[str, Stored] = {}
        for name in names:
            if name not in entries:
                raise UserError(f"{store.where(name)}: is missing, and {INDEX} names it", AGAIN)
            for tensor, stored in _header(store, entries[name]):
                if placed is not None and placed.get(tensor, name) != name:
                    continue  # the index has it elsewhere
                if tensor in tensors:
                    raise UserError(
                        f"{store.where(name)}: holds {tensor}, as another file does ({tensors[tensor].file})",
                        "leave one of the two out",
                    )
                tensors[tensor] = stored
        for tensor, name in (placed or {}).items():
            if tensor not in tensors:
                raise UserError(f"{store.where(name)}: holds no tensor {tensor}, and {INDEX} says so", AGAIN)
        return cls(store, tensors, {name: entries[name].bytes for name in names})

    def where(self, tensor: str) -> str:
        """A tensor with its file, for messages."""
        return f"{self.store.where(self.tensors[tensor].file)}: {tensor}"

    def read(self, name: str, box: Box | None = None) -> torch.Tensor:
        """A part of a tensor, or all of it, as it lies there. Rows are read alone; of other dimensions all, and cut.

        Raises:
            UserError: the file has changed since it was opened. StoreError: the store does not answer.
        """
        stored = self.tensors[name]
        full = whole(stored.shape)
        wanted = full if box is None else box
        begin = offset(wanted, full) if wanted.numel else 0
        read = wanted
        if begin is None:  # it does not lie in a piece: its rows do
            read = Box((wanted.offsets[0], *full.offsets[1:]), (wanted.lengths[0], *full.lengths[1:]))
            begin = offset(read, full)
            assert begin is not None
        found = torch.empty(read.lengths, dtype=getattr(torch, DTYPES[stored.dtype]))
        try:
            if found.nbytes:
                self.store.read_into(stored.file, stored.at + begin * found.itemsize, bytes_of(found))
        except (EOFError, FileNotFoundError) as error:
            raise UserError(f"{self.where(name)}: was replaced while it was read", "read it again") from error
        return found if read is wanted else found[wanted.inside(read)]


def read_json(store: Store, name: str, remedy: str) -> dict[str, Any]:
    """An object that a file of `store` holds.

    Raises:
        UserError: there is no such file, or it is none. StoreError: the store does not answer.
    """
    try:
        found = json.loads(get_small(store, name, MOST))
    except (FileNotFoundError, ValueError, RecursionError) as error:
        why = "there is none" if isinstance(error, FileNotFoundError) else error
        raise UserError(f"{store.where(name)}: cannot be read ({why})", remedy) from error
    if not isinstance(found, dict):
        raise UserError(f"{store.where(name)}: is no object but {type(found).__name__}", remedy)
    return found


def _index(store: Store) -> dict[str, str] | None:
    """Which file each tensor is in, if an index says it."""
    if not exists(store, INDEX):
        return None
    placed = read_json(store, INDEX, AGAIN).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(file, str) for file in placed.values()):
        raise UserError(f"{store.where(INDEX)}: has no weight_map of names to files", AGAIN)
    return placed


def _header(store: Store, entry: Entry) -> Iterator[tuple[str, Stored]]:
    """The tensors of a file, by its first bytes.

    Raises:
        UserError: it is no file of safetensors, or not all of one. StoreError: the store does not answer.
    """
    where = store.where(entry.name)
    try:
        length = int.from_bytes(store.get(entry.name, range(8)), "little")
        if length > LONGEST_HEADER:
            raise ValueError(f"its header would have {length:,} bytes")
        said = json.loads(store.get(entry.name, range(8, 8 + length)))
        said.pop("__metadata__", None)
        found = [(name, _stored(entry.name, 8 + length, one)) for name, one in said.items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, EOFError, FileNotFoundError) as error:
        raise UserError(f"{where}: cannot be read as safetensors ({error})", AGAIN) from error
    last, end = "its header", 8 + length
    for name, one in sorted(found, key=lambda each: (each[1].at, each[1].bytes)):
        if one.at != end:
            what = "overlap" if one.at < end else "have bytes between them that are no tensor's"
            raise UserError(f"{where}: cannot be read as safetensors ({last} and {name} {what})", AGAIN)
        last, end = name, end + one.bytes
    if end != entry.bytes:
        what = "is cut off" if end > entry.bytes else "has bytes after its last tensor"
        raise UserError(f"{where}: {what}: {last} ends at byte {end:,} and the file at {entry.bytes:,}", AGAIN)
    return iter(found)


def _stored(file: str, start: int, said: Mapping[str, Any]) -> Stored:
    """A tensor as a header tells of it; start: where the bytes of the first begin.

    Raises:
        ValueError: it contradicts itself, and what comes of another form.
    """
    dtype, shape, (first, end) = said["dtype"], tuple(said["shape"]), said["data_offsets"]
    if not isinstance(dtype, str) or not all(type(size) is int and size >= 0 for size in (*shape, first, end)):
        raise ValueError("a tensor's dtype, shape or place is none")
    size = end - first
    if size < 0 or (dtype in DTYPES and size != whole(shape).numel * itemsize(DTYPES[dtype])):
        raise ValueError(f"{size} bytes for a tensor of {list(shape)} {dtype}")
    return Stored(file, dtype, shape, start + first, size)
