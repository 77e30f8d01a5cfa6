"""`index.json`: of each tensor its dtype, its shape, and in which file every part of it lies, with the SHA-256 of that
part: who reads a part of a checkpoint verifies what it reads."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from shoal_core.ckpt.boxes import Box, tile
from shoal_core.ckpt.dtypes import itemsize

__all__ = ["INDEX", "Block", "Described", "File", "Index", "Tensor", "digest", "is_name", "number"]

INDEX = "index.json"
VERSION, SPARSE = 3, 4
"""The second has tensors of zeros, of which nothing lies in the files."""
NAME = re.compile(r"g\d+-[0-9a-f]+-\d+(-\d+)?\.safetensors")
"""Of a file of tensors: generation, attempt, rank, part."""
LARGEST = 1 << 62
"""No number is larger: torch counts in 64 bits."""
SHA256 = re.compile("[0-9a-f]{64}")

Described = dict[str, tuple[tuple[int, ...], str]]
"""Shape and dtype of every tensor of a state, by name."""


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a tensor that was hashed by itself. `at`: where its bytes begin in the file."""

    box: Box
    file: str
    at: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Tensor:
    """`shape`: of the whole, which `blocks` tile. In an index, without any block it is all zero."""

    dtype: str
    shape: tuple[int, ...]
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class File:
    """`header`: bytes before the first tensor's; `sha256`: of them. Blocks follow upon them without a gap."""

    bytes: int
    header: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """Files and tensors by their names."""

    files: Mapping[str, File]
    tensors: Mapping[str, Tensor]

    @property
    def described(self) -> Described:
        return {name: (tensor.shape, tensor.dtype) for name, tensor in self.tensors.items()}

    def blocks(self) -> Iterator[tuple[str, Block]]:
        """All, with the names of their tensors."""
        return ((name, block) for name, tensor in self.tensors.items() for block in tensor.blocks)

    def written(self) -> bytes:
        """As JSON."""
        files = {
            name: {"bytes": file.bytes, "header": file.header, "sha256": file.sha256}
            for name, file in sorted(self.files.items())
        }
        tensors = {
            name: {
                "dtype": tensor.dtype,
                "shape": tensor.shape,
                "blocks": [
                    {
                        "offsets": block.box.offsets,
                        "lengths": block.box.lengths,
                        "file": block.file,
                        "at": block.at,
                        "bytes": block.bytes,
                        "sha256": block.sha256,
                    }
                    for block in tensor.blocks
                ],
            }
            for name, tensor in sorted(self.tensors.items())
        }
        version = VERSION if all(tensor.blocks for tensor in self.tensors.values()) else SPARSE
        said = {"version": version, "files": files, "tensors": tensors}
        return json.dumps(said, separators=(",", ":")).encode()

    @classmethod
    def parse(cls, content: bytes) -> Index:
        """What `written` made.

        Raises:
            ValueError: it is none: it leads outside its files, its blocks do not tile its tensors or its files, or it
                is of another version.
        """
        try:
            said = json.loads(content)
            if said["version"] not in (VERSION, SPARSE):
                raise ValueError(f"it is of version {said['version']!r}")
            sparse = said["version"] == SPARSE
            files = {name: parse_file(name, file) for name, file in said["files"].items()}
            tensors = {name: parse_tensor(name, one, files, sparse=sparse) for name, one in said["tensors"].items()}
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"it is not of the form of one ({type(error).__name__}: {error})") from error
        index = cls(files, tensors)
        index.check_files()
        return index

    def check_files(self) -> None:
        """Blocks fill their files.

        Raises:
            ValueError: they overlap, or leave bytes that nobody hashed.
        """
        ends = {name: file.header for name, file in self.files.items()}
        for name, block in sorted(self.blocks(), key=lambda found: (found[1].file, found[1].at, found[1].bytes)):
            if block.at != ends[block.file]:
                raise ValueError(f"{name} does not follow upon what lies before it in {block.file}")
            ends[block.file] += block.bytes
        for name, file in self.files.items():
            if ends[name] != file.bytes:
                raise ValueError(f"{name} has {file.bytes} bytes, its tensors end at {ends[name]}")


def is_name(name: str) -> bool:
    """Whether `name` is one of a file of tensors, which lies where its index does."""
    return NAME.fullmatch(name) is not None


def parse_file(name: str, said: Mapping[str, Any]) -> File:
    """A file as the index tells of it. Raises: as `Index.parse`, and what comes of another form."""
    if not is_name(name):
        raise ValueError(f"{name!r} is no file of a checkpoint")
    size, header = number(said["bytes"]), number(said["header"])
    if header > size:
        raise ValueError(f"the header of {name} is longer than the file")
    return File(size, header, digest(said["sha256"]))


def parse_tensor(name: str, said: Mapping[str, Any], files: Mapping[str, File], *, sparse: bool) -> Tensor:
    """A tensor as the index tells of it. sparse: it may be one of zeros. Raises: as `parse_file`."""
    dtype, shape = said["dtype"], tuple(map(number, said["shape"]))
    size = itemsize(dtype)
    blocks = tuple(parse_block(block, size, files) for block in said["blocks"])
    if not (sparse and not blocks) and not tile(shape, [block.box for block in blocks]):
        raise ValueError(f"the blocks of {name} are not the tensor of shape {list(shape)}")
    return Tensor(dtype, shape, blocks)


def parse_block(said: Mapping[str, Any], size: int, files: Mapping[str, File]) -> Block:
    """A block as the index tells of it. size: bytes of an element. Raises: as `parse_file`."""
    box = Box(tuple(map(number, said["offsets"])), tuple(map(number, said["lengths"])))
    at, length, file = number(said["at"]), number(said["bytes"]), said["file"]
    if length != math.prod(box.lengths) * size:
        raise ValueError(f"a block of {list(box.lengths)} elements has {length} bytes")
    if not files[file].header <= at <= at + length <= files[file].bytes:
        raise ValueError(f"a block lies outside of {file}")
    return Block(box, file, at, length, digest(said["sha256"]))


def number(said: object) -> int:
    """`said`, if it can be how many bytes, elements or steps there are.

    Raises:
        ValueError: it cannot.
    """
    if type(said) is not int or not 0 <= said < LARGEST:
        raise ValueError(f"{str(said)[:80]} is no number of bytes, elements or steps")
    return said


def digest(said: object) -> str:
    """`said`, if it can be a SHA-256 in hexadecimal.

    Raises:
        ValueError: it cannot.
    """
    if not isinstance(said, str) or not SHA256.fullmatch(said):
        raise ValueError(f"{str(said)[:80]!r} is no SHA-256")
    return said
