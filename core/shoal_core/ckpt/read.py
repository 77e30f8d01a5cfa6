"""Reads what was planned, and believes no byte of it before its SHA-256 is that of the index."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

from shoal_core.ckpt.boxes import whole
from shoal_core.ckpt.errors import Damaged
from shoal_core.ckpt.index import Block, File, Index
from shoal_core.ckpt.plan import Copy, Part, Read, Want, plan, read_of
from shoal_core.ckpt.state import bytes_of, room
from shoal_core.errors import StoreError

if TYPE_CHECKING:
    import torch

__all__ = ["Source", "check", "fetch", "fetch_from"]

READERS = 4
"""Reads that are under way at once."""


class Source(Protocol):
    """Where the files of a checkpoint lie: a folder of a store, or whatever else has ranges of bytes by name."""

    def where(self, name: str) -> str:
        """A file's address, for messages."""

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from byte `offset` on.

        Raises:
            FileNotFoundError: there is no such file. EOFError: it ends before that. StoreError: it does not answer.
        """


def fetch(source: Source, reads: Sequence[Read], targets: Mapping[str, Sequence[torch.Tensor]]) -> int:
    """Fill `targets`, the destinations of each tensor that was planned for. Returns the bytes that were read.

    Raises:
        Damaged: a block is not what was committed; targets hold anything then. StoreError: the source fails.
    """
    (size,) = fetch_from([source], reads, targets)
    return size


def fetch_from(
    sources: Sequence[Source], reads: Sequence[Read], targets: Mapping[str, Sequence[torch.Tensor]]
) -> list[int]:
    """The same, each block from the first of `sources` that has it as it was committed. Returns the bytes that are of
    each.

    Raises: as `fetch`, of the last of them.
    """
    counts: list[list[int]] = [[] for _ in sources]

    def one(read: Read) -> None:
        direct = straight(read, targets)
        buffer = room(read.bytes) if direct is None else direct
        missing = [read]
        for source, count in zip(sources, counts, strict=True):
            asked, missing = missing, lacking(source, missing, buffer, read.at, last=source is sources[-1])
            count.append(sum(one.bytes for one in asked) - sum(one.bytes for one in missing))
        if direct is None:
            for part in read.parts:
                place(part, buffer[part.block.at - read.at :][: part.block.bytes], targets)

    in_parallel(one, reads)
    return [sum(count) for count in counts]


def lacking(source: Source, reads: Sequence[Read], buffer: memoryview, start: int, *, last: bool) -> list[Read]:
    """Read what is to be read of a source into `buffer`, which begins at the byte `start` of the file. Returns what it
    does not have as it was committed.

    Raises: as `fetch`, if it is the last that could have it.
    """
    missing = []
    for read in reads:
        try:
            fill(source, read.file, read.at, buffer[read.at - start :][: read.bytes])
        except (Damaged, StoreError):
            if last:
                raise
            missing.append(read)
            continue
        for part in read.parts:
            try:
                believe(source, part.name, part.block, buffer[part.block.at - start :][: part.block.bytes])
            except Damaged:
                if last:
                    raise
                missing.append(read_of([part]))
    return missing


def check(source: Source, index: Index) -> None:
    """Read every byte of the files of an index.

    Raises: as `fetch`.
    """
    for name, file in index.files.items():
        header_of(source, name, file)
    wanted = {name: Want(tensor.dtype, tensor.shape, (whole(tensor.shape),)) for name, tensor in index.tensors.items()}
    in_parallel(lambda read: believed(source, read), plan(index, wanted, ""))


def in_parallel(work: Callable[[Read], object], reads: Iterable[Read]) -> None:
    """Do `work` for each; the first that fails ends it."""
    with ThreadPoolExecutor(READERS, thread_name_prefix="checkpoint-read") as pool:
        waiting = [pool.submit(work, read) for read in reads]
        try:
            for one in waiting:
                one.result()
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
    name, copy = read.parts[0].name, read.parts[0].copies[0]
    target = targets[name][copy.target]
    if target.device.type != "cpu" or not target.is_contiguous():
        return None
    start = place_of(read.parts[0], copy)
    end = start
    for part in read.parts:
        if part.name != name or [one.target for one in part.copies] != [copy.target]:
            return None
        if end is None or place_of(part, part.copies[0]) != end:
            return None
        end += part.block.bytes
    return bytes_of(target)[start:end]


def place_of(part: Part, copy: Copy) -> int | None:
    """Where the bytes of a block begin in a contiguous destination, if all of it lies there in one piece."""
    block, into = part.block, copy.into
    if copy.box != block.box or block.box.lengths[1:] != into.lengths[1:]:
        return None
    return (block.box.offsets[0] - into.offsets[0]) * (block.bytes // block.box.lengths[0]) if into.lengths else 0
