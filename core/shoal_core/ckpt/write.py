"""Writes what a rank has been dealt, hashing each block while it goes out, and commits what all ranks have written."""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from shoal_core.ckpt.boxes import Box, rows
from shoal_core.ckpt.errors import Earlier
from shoal_core.ckpt.folder import Folder
from shoal_core.ckpt.index import Block, Described, File, Index, Tensor
from shoal_core.ckpt.marker import MARKER, made, parse
from shoal_core.ckpt.pieces import Piece
from shoal_core.ckpt.safetensors import header, parts
from shoal_core.errors import StoreError

__all__ = ["Attempt", "Written", "commit", "committed", "in_order", "write"]

PART = 5_000_000_000
"""Bytes of tensors in a file, which object stores and their tools still like."""
AT_ONCE = 1 << 24
"""Bytes of blocks that are hashed one after the other by one thread, and written meanwhile."""
HASHERS = 2
"""Threads that hash a file's blocks."""
BEHIND = 4
"""Times `AT_ONCE` that may wait for them: who makes content as it is written keeps no more of it."""
FILE = re.compile(r"-(\d+)(-\d+)?\.safetensors")
"""Ends the name of a rank's file."""


@dataclass(frozen=True)
class Attempt:
    """To write a checkpoint: no two have files of one name. `token`: hexadecimal, another each time. Where several
    cells write it, `ranks` is how many each has, and `place` that of this one among them."""

    generation: int
    token: str
    place: int = 0
    ranks: int = 0

    @property
    def prefix(self) -> str:
        """Begins the names of its files, and of no others."""
        return f"g{self.generation}-{self.token}"

    @property
    def index(self) -> str:
        return f"{self.prefix}.index.json"

    def file(self, rank: int, part: int) -> str:
        """The name of a file of a rank of this cell; most have one."""
        return f"{self.prefix}-{self.place * self.ranks + rank:05d}{f'-{part}' if part else ''}.safetensors"

    def word(self, place: int) -> str:
        """The name of what the cell at `place` says of it in the store, for the others."""
        return f"{self.prefix}-part-{place:05d}.json"

    def wrote(self, names: Iterable[str]) -> list[str]:
        """Of the names of files those that this cell wrote."""
        own = [name for name in names if name.startswith(self.prefix)]
        if not self.ranks:
            return own
        mine = range(self.place * self.ranks, (self.place + 1) * self.ranks)
        files = [(name, FILE.fullmatch(name.removeprefix(self.prefix))) for name in own]
        index = [self.index] if self.index in own and not self.place else []
        return [name for name, found in files if found and int(found[1]) in mine] + index


@dataclass
class Written:
    """What a rank wrote: its files, and where the blocks of which tensors lie in them."""

    files: dict[str, File] = field(default_factory=dict)
    blocks: list[tuple[str, Block]] = field(default_factory=list)

    def told(self) -> dict[str, Any]:
        """For other ranks, in JSON."""
        files = {name: [file.bytes, file.header, file.sha256] for name, file in self.files.items()}
        blocks = [[name, *block.box, block.file, block.at, block.bytes, block.sha256] for name, block in self.blocks]
        return {"files": files, "blocks": blocks}

    @classmethod
    def heard(cls, said: Mapping[str, Any]) -> Written:
        blocks = [
            (name, Block(Box(tuple(offsets), tuple(lengths)), file, at, size, sha))
            for name, offsets, lengths, file, at, size, sha in said["blocks"]
        ]
        return cls({name: File(*file) for name, file in said["files"].items()}, blocks)


def write(
    folder: Folder,
    attempt: Attempt,
    rank: int,
    pieces: Sequence[Piece],
    content: Callable[[Piece], memoryview],
    block: int,
) -> Written:
    """Write a rank's `pieces`. content: the bytes of one. block: bytes that are hashed together.

    Raises:
        StoreError: the store does not take them; files that were finished before are left.
    """
    written = Written()
    for number, part in enumerate(parts(pieces, PART)):
        write_file(folder, attempt.file(rank, number), part, content, block, written)
    return written


def in_order(pieces: Sequence[Piece]) -> list[Piece]:
    """`pieces` as `write` asks for their content."""
    return [piece for part in parts(pieces, PART) for piece in part]


def write_file(
    folder: Folder,
    name: str,
    pieces: Sequence[Piece],
    content: Callable[[Piece], memoryview],
    limit: int,
    written: Written,
) -> None:
    head = header(pieces, {"format": "pt"})
    at = len(head)
    waiting: deque[Future[list[tuple[str, Block]]]] = deque()
    with ThreadPoolExecutor(HASHERS, thread_name_prefix="checkpoint-hash") as pool:
        with folder.writer(name) as writer:
            writer.write(head)
            for batch in batches(pieces, content, limit):
                waiting.append(pool.submit(hashed, batch, name, at))
                writer.write_all([part.content for part in batch])
                at += sum(len(part.content) for part in batch)
                if len(waiting) > BEHIND:
                    written.blocks += waiting.popleft().result()
        for blocks in waiting:
            written.blocks += blocks.result()
    written.files[name] = File(at, len(head), digest(head))


class Unhashed(NamedTuple):
    """The bytes of a block of a tensor."""

    tensor: str
    box: Box
    content: memoryview


def batches(pieces: Iterable[Piece], content: Callable[[Piece], memoryview], limit: int) -> Iterator[list[Unhashed]]:
    """The blocks of all pieces, one after the other; so many at a time as are hashed and written in one go."""
    batch: list[Unhashed] = []
    size = 0
    for piece in pieces:
        whole = content(piece)
        for box, start in rows(piece.box, piece.itemsize, limit):
            part = whole[start:][: box.numel * piece.itemsize]
            batch.append(Unhashed(piece.name, box, part))
            size += len(part)
            if size >= AT_ONCE:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def hashed(batch: Sequence[Unhashed], file: str, at: int) -> list[tuple[str, Block]]:
    """Those blocks, which lie in a file from the byte `at` on."""
    found = []
    for name, box, content in batch:
        found.append((name, Block(box, file, at, len(content), digest(content))))
        at += len(content)
    return found


def commit(
    folder: Folder,
    attempt: Attempt,
    pieces: Sequence[Piece],
    written: Sequence[Written],
    about: Mapping[str, Any],
    *,
    replace: bool,
    zeros: Described | None = None,
) -> int | None:
    """Make a checkpoint of what all ranks have written. pieces: all that they wrote; about: what its marker says,
    `steps` among it; zeros: tensors that hold nothing else, which nobody wrote. Returns its bytes; none if there is a
    whole one by now, which stays unless `replace`.

    Raises:
        StoreError: the store does not take it, or has lost a file.
    """
    kinds = {piece.name: piece for piece in pieces}
    files = {name: file for one in written for name, file in one.files.items()}
    blocks: dict[str, list[Block]] = {}
    for one in written:
        for name, block in one.blocks:
            blocks.setdefault(name, []).append(block)
    tensors = {
        name: Tensor(kinds[name].dtype, kinds[name].shape, tuple(sorted(found, key=lambda block: block.box)))
        for name, found in blocks.items()
    }
    tensors |= {name: Tensor(dtype, shape, ()) for name, (shape, dtype) in (zeros or {}).items()}
    content = Index(files, tensors).written()
    folder.put(attempt.index, content)
    index = {"file": attempt.index, "bytes": len(content), "sha256": digest(content)}
    sizes = {name: file.bytes for name, file in sorted(files.items())}
    if (lacking := folder.lacking(sizes)) is not None:
        raise StoreError(f"{folder.where(lacking[0])}: was written, and is not there", "see who deletes there")
    marker = made({**about, "generation": attempt.generation}, index, sizes)
    if replace:
        folder.put(MARKER, marker)
    elif not folder.create(MARKER, marker) and not committed(folder, attempt):
        folder.delete([attempt.index])
        check_marker(folder)
        return None
    return sum(sizes.values())


def committed(folder: Folder, attempt: Attempt) -> bool:
    """Whether the marker that is there is of this attempt.

    Raises:
        StoreError: the store does not say.
    """
    try:
        return bool(parse(folder.get(MARKER), folder.where(MARKER))["index"]["file"] == attempt.index)
    except (FileNotFoundError, ValueError, Earlier):
        return False


def check_marker(folder: Folder) -> None:
    """Whether the marker that stands there is one: nothing is whole beside what cannot be read.

    Raises:
        StoreError: it is none, or the store does not say.
    """
    where = folder.where(MARKER)
    try:
        parse(folder.get(MARKER), where)
    except (FileNotFoundError, ValueError, Earlier) as error:
        raise StoreError(f"{where}: stands in the way, and is no marker ({error})", f"remove {where}") from error


def digest(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()
