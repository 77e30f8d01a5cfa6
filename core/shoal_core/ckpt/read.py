"""Reads what was planned, and believes no byte of it before its SHA-256 is that of the index, or before who has it has
summed it on its way."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

from shoal_core.ckpt.boxes import whole
from shoal_core.ckpt.cutting import offset
from shoal_core.ckpt.errors import Damaged
from shoal_core.ckpt.index import Block, File, Index
from shoal_core.ckpt.plan import Part, Read, Want, plan, read_of
from shoal_core.ckpt.state import bytes_of, room
from shoal_core.ckpt.zeros import stored

if TYPE_CHECKING:
    import torch

__all__ = ["READERS", "Scattered", "Source", "believed", "check", "fetch", "header_of", "in_parallel", "take"]

T = TypeVar("T")

READERS = 8
"""Reads that are under way at once: so many times `plan.AT_ONCE` is all that is held beside what is read into."""


class Source(Protocol):
    """Where the files of a checkpoint lie: a folder of a store, or whatever else has ranges of bytes by name."""

    def where(self, name: str) -> str:
        """A file's address, for messages."""

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from byte `offset` on.

        Raises:
            FileNotFoundError: there is no such file. EOFError: it ends before that. StoreError: it does not answer.
        """


@runtime_checkable
class Scattered(Protocol):
    """A source that gives many ranges at once, and has them summed on their way: their blocks have no SHA-256."""

    def where(self, name: str) -> str:
        """As `Source`."""

    def read_each(self, name: str, ranges: Sequence[tuple[int, memoryview]]) -> None:
        """Fill each buffer from its byte on.

        Raises:
            FileNotFoundError: there is no such file. Damaged: what arrived is not what was sent. StoreError: who has it
                does not answer.
        """


def fetch(source: Source, reads: Sequence[Read], targets: Mapping[str, Sequence[torch.Tensor]]) -> int:
    """Fill `targets`, the destinations of each tensor that was planned for. Returns the bytes that were read.

    Raises:
        Damaged: a block is not what was committed; targets hold anything then. StoreError: the source fails.
    """
    in_parallel(lambda read: take(source, read, targets), reads)
    return sum(read.bytes for read in reads)


def take(
    source: Source | Scattered,
    read: Read,
    targets: Mapping[str, Sequence[torch.Tensor]],
    *,
    all_or_nothing: bool = True,
) -> dict[Part, Damaged]:
    """Do a read, straight into where it belongs if that can be. Returns the parts that are not what was committed,
    unless one is enough to give up.

    Raises:
        Damaged: that is so, or the file lacks something. StoreError: the source fails.
    """
    if isinstance(source, Scattered):
        take_each(source, read, targets)
        return {}
    direct = straight(read, targets)
    buffer = room(read.bytes) if direct is None else direct
    fill(source, read.file, read.at, buffer)
    wrong = {}
    for part in read.parts:
        content = buffer[part.block.at - read.at :][: part.block.bytes]
        try:
            believe(source, part.name, part.block, content)
        except Damaged as error:
            if all_or_nothing:
                raise
            wrong[part] = error
            continue
        if direct is None:
            place(part, content, targets)
    return wrong


def take_each(source: Scattered, read: Read, targets: Mapping[str, Sequence[torch.Tensor]]) -> None:
    """Do a read of ranges. Raises: as `take`."""
    direct = [straight(read_of([part]), targets) for part in read.parts]
    rest = room(sum(part.block.bytes for part, view in zip(read.parts, direct, strict=True) if view is None))
    ranges, indirect = [], []
    for part, view in zip(read.parts, direct, strict=True):
        if view is None:
            view, rest = rest[: part.block.bytes], rest[part.block.bytes :]
            indirect.append((part, view))
        ranges.append((part.block.at, view))
    try:
        source.read_each(read.file, ranges)
    except FileNotFoundError as error:
        raise Damaged(f"{source.where(read.file)}: is not held any more", "go on from a checkpoint") from error
    for part, view in indirect:
        place(part, view, targets)


def check(source: Source, index: Index) -> None:
    """Read every byte of the files of an index.

    Raises: as `fetch`.
    """
    for name, file in index.files.items():
        header_of(source, name, file)
    wanted = {name: Want(tensor.dtype, tensor.shape, (whole(tensor.shape),)) for name, tensor in index.tensors.items()}
    in_parallel(lambda read: believed(source, read), plan(index, stored(index.tensors, wanted), ""))


def in_parallel(work: Callable[[Read], T], reads: Iterable[Read]) -> list[T]:
    """What `work` returns for each; the first that fails ends it."""
    with ThreadPoolExecutor(READERS, thread_name_prefix="checkpoint-read") as pool:
        waiting = [pool.submit(work, read) for read in reads]
        try:
            return [one.result() for one in waiting]
        finally:
            pool.shutdown(cancel_futures=True)


def fill(source: Source, file: str, at: int, buffer: memoryview) -> None:
    """Read a range of a file.

    Raises:
        Damaged: the file does not have it.
    """
    try:
        source.read_into(file, at, buffer)
    except FileNotFoundError as error:
        raise Damaged(f"{source.where(file)}: is missing", remedy_of(source, file)) from error
    except EOFError as error:
        problem = f"{source.where(file)}: ends before byte {at + len(buffer)}"
        raise Damaged(problem, remedy_of(source, file)) from error


def header_of(source: Source, name: str, file: File) -> memoryview:
    """The bytes of a file before its first tensor.

    Raises:
        Damaged: they are not what was committed. StoreError: the source fails.
    """
    found = room(file.header)
    fill(source, name, 0, found)
    if hashlib.sha256(found).hexdigest() != file.sha256:
        raise Damaged(f"{source.where(name)}: its header differs from what was committed", remedy_of(source, name))
    return found


def believed(source: Source, read: Read) -> memoryview:
    """All bytes of a read. Raises: as `header_of`."""
    found = room(read.bytes)
    fill(source, read.file, read.at, found)
    for part in read.parts:
        believe(source, part.name, part.block, found[part.block.at - read.at :][: part.block.bytes])
    return found


def believe(source: Source, name: str, block: Block, content: memoryview) -> None:
    """Hold a block against its hash.

    Raises:
        Damaged: it differs.
    """
    found = hashlib.sha256(content).hexdigest()
    if found != block.sha256:
        first = f"{name} from {list(block.box.offsets)}, bytes {block.at} to {block.at + block.bytes}"
        problem = f"{source.where(block.file)}: differs from what was committed ({first}: SHA-256 {found[:12]}"
        raise Damaged(f"{problem}, {block.sha256[:12]} was committed)", remedy_of(source, block.file))


def remedy_of(source: Source, file: str) -> str:
    folder = source.where(file).rpartition("/")[0]
    return f"remove or restore {folder} to go on from an older checkpoint"


def place(part: Part, content: memoryview, targets: Mapping[str, Sequence[torch.Tensor]]) -> None:
    """Copy what is wanted of a block to where it belongs."""
    import torch

    box = part.block.box
    for copy in part.copies:
        target = targets[part.name][copy.target]
        values = torch.frombuffer(content, dtype=target.dtype).view(box.lengths)
        target[copy.box.inside(copy.into)].copy_(values[copy.box.inside(box)])


def straight(read: Read, targets: Mapping[str, Sequence[torch.Tensor]]) -> memoryview | None:
    """The memory that a read belongs in, if that is one piece of one destination: then nothing need be copied."""
    name, first = read.parts[0].name, read.parts[0].copies[0]
    target = targets[name][first.target]
    if target.device.type != "cpu" or not target.is_contiguous():
        return None
    start = end = place_of(read.parts[0])
    for part in read.parts:
        if start is None or part.name != name or part.copies[0].target != first.target or place_of(part) != end:
            return None
        end = start + part.block.at + part.block.bytes - read.at
    return bytes_of(target)[start:end]


def place_of(part: Part) -> int | None:
    """Where the bytes of a block begin in its only destination, if all of it lies there in one piece."""
    block, (copy, *others) = part.block, part.copies
    if others or copy.box != block.box:
        return None
    before = offset(block.box, copy.into)
    return None if before is None else before * (block.bytes // block.box.numel)
