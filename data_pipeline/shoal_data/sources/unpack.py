"""The bytes of an input file as UTF-8 in blocks: plain, gzip or zstd, from UTF-8, UTF-16 or UTF-32.

What can be read comes out before the error that says what cannot.
"""

from __future__ import annotations

import codecs
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import zstandard

from shoal_core.errors import UserError
from shoal_data.sources.columns import words
from shoal_data.sources.formats import is_packed
from shoal_data.sources.opening import open_file
from shoal_data.sources.parts import Piece

__all__ = ["Damage", "blocks", "changed"]

_BLOCK = 1 << 30  # bytes of a plain file at a time
_READ = 1 << 20  # bytes of a packed file at a time
# Bytes unpacked at a time: 16 KiB hold at most half a GiB of zeros, and few lines are lost with a step that fails.
_STEP = 16 << 10
_SAMPLE = 4 << 10
_WINDOW = 1 << 31  # zstd's largest window: as much memory is taken as the file says it needs
# UTF-32 before UTF-16, whose mark it begins with.
_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class Damage(Exception):
    """The bytes of a file prove that it is broken from some place on.

    Attributes:
        cause: what is wrong.
        unsure: so many of the bytes that came last belong to something whose checksum is wrong.
        complete: nothing is missing from what came before, not even the end of its last line.
        rest: what follows the broken bytes, if it can be told.
    """

    def __init__(
        self, cause: str, *, unsure: int = 0, complete: bool = False, rest: Iterator[bytes] | None = None
    ) -> None:
        super().__init__(cause)
        self.cause, self.unsure, self.complete, self.rest = cause, unsure, complete, rest


def changed(path: str) -> UserError:
    """The error about a file that is not what it was when the work was planned."""
    return UserError(
        f"{path}: the file changed while the job ran",
        "run again when nobody writes to it; with a new --out if the job was begun with the file as it was",
    )


def blocks(piece: Piece) -> Iterator[bytes]:
    """The content of `piece` in UTF-8, without a byte order mark.

    Raises:
        Damage: it is not readable from there on.
        StoreError: its store does not give it.
        UserError: it is shorter than it was.
    """
    if is_packed(piece.path):
        kind = _GZIP if piece.path.lower().endswith(".gz") else _ZSTD
        yield from _in_utf8(_unpacked(piece, kind), at_start=True)
    else:
        yield from _in_utf8(_plain(piece), at_start=piece.first == 0)


def _plain(piece: Piece) -> Iterator[bytes]:
    left = piece.last - piece.first if piece.last else None
    with open_file(piece.path, piece.stamp) as file:
        file.seek(piece.first)
        while left is None or left > 0:
            block = file.read(_BLOCK if left is None else min(left, _BLOCK))
            if not block:
                if left:
                    raise changed(piece.path)
                return
            left = None if left is None else left - len(block)
            yield block


@dataclass(frozen=True)
class _Format:
    """A format of compressed files: a file holds any number of members, each with its own checksum."""

    name: str
    magic: tuple[bytes, ...]

    def member(self) -> Any:
        if self.name == "gzip":
            return zlib.decompressobj(wbits=31)
        return zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompressobj()

    def begins(self, content: bytes) -> bool:
        """Whether a member may begin so; `content` may hold less than its first bytes."""
        return any(magic.startswith(content[: len(magic)]) for magic in self.magic)


_GZIP = _Format("gzip", (b"\x1f\x8b",))
_SKIPPABLE = tuple(bytes([number]) + b"\x2a\x4d\x18" for number in range(0x50, 0x60))
_ZSTD = _Format("zstd", (b"\x28\xb5\x2f\xfd", *_SKIPPABLE))


def _unpacked(piece: Piece, kind: _Format, place: int = 0) -> Iterator[bytes]:
    """The content of a compressed file from byte `place` on, where a member begins or the file ends.

    Zero bytes between and after members are padding and are passed over.
    """
    member: Any = None  # the one that is being read
    begun = given = 0  # where it begins, and how many bytes it gave
    with open_file(piece.path, piece.stamp) as file:
        file.seek(place)
        while block := file.read(_READ):
            rest = memoryview(block)
            while rest:
                if member is None:
                    if place and not rest[0]:
                        padding = len(rest) - len(bytes(rest).lstrip(b"\0"))
                        place, rest = place + padding, rest[padding:]
                    if not rest:
                        break
                    if not kind.begins(bytes(rest[:4])):
                        raise _no_member(kind, bytes(rest[:4]), place)
                    member, begun, given = kind.member(), place, 0
                step = rest[:_STEP]
                try:
                    content = member.decompress(step)
                except (zlib.error, zstandard.ZstdError, MemoryError) as error:
                    content, end = _until_it_breaks(file, kind, begun, place)
                    yield content
                    raise _damage(piece, kind, error, end, given + len(content)) from error
                if content:
                    given += len(content)
                    yield content
                used = len(step) - len(member.unused_data) if member.eof else len(step)
                place, rest = place + used, rest[used:]
                if member.eof:
                    member = None
    if member is not None:
        raise Damage(f"truncated or corrupt: it ends within its {kind.name} data")


def _no_member(kind: _Format, content: bytes, place: int) -> Damage:
    if place:
        what = f"truncated or corrupt: from byte {place} on it is not {kind.name}; what is before is kept"
        return Damage(what, complete=True)
    return Damage(f"truncated or corrupt: it is not {kind.name} (it begins with {content!r})")


def _damage(piece: Piece, kind: _Format, error: Exception, end: int, given: int) -> Damage:
    """What an error at byte `end` says of a member that gave `given` bytes before it."""
    says = words(error).removeprefix("Error -3 while decompressing data: ").removeprefix("zstd decompressor error: ")
    if "Dictionary mismatch" in says:
        return Damage("the file may be whole, but was packed with a dictionary of its own: unpack it with zstd -D")
    if "too much memory" in says or isinstance(error, MemoryError):
        return Damage("the file may be whole, but its window takes more memory than there is: pack it without --long")
    if says.endswith(("incorrect data check", "incorrect length check", "match checksum")):
        # The member is over, and what it says of its content is wrong; gzip's length follows its CRC.
        rest = _unpacked(piece, kind, end + 4 * says.endswith("data check"))
        cause = f"truncated or corrupt: the checksum of its {kind.name} data up to byte {end} is wrong"
        return Damage(cause, unsure=given, rest=rest)
    return Damage(f"truncated or corrupt: {kind.name} data at byte {end}: {says}")


def _until_it_breaks(file: BinaryIO, kind: _Format, begun: int, place: int) -> tuple[bytes, int]:
    """What the member at byte `begun` gives from byte `place` on, fed a byte at a time, and after which it breaks."""
    file.seek(begun)
    member = kind.member()
    while begun < place and (step := file.read(min(_READ, place - begun))):
        for first in range(0, len(step), _STEP):
            member.decompress(step[first : first + _STEP])
        begun += len(step)
    given: list[bytes] = []
    for number, value in enumerate(file.read(_STEP), start=1):
        try:
            given.append(member.decompress(bytes([value])))
        except (zlib.error, zstandard.ZstdError, MemoryError):
            return b"".join(given), place + number
    return b"".join(given), place


def _in_utf8(content: Iterator[bytes], *, at_start: bool) -> Iterator[bytes]:
    """`content` decoded by its byte order mark, which is taken off; without one it is taken for UTF-8 as it is."""
    first, damage = b"", None
    while len(first) < _SAMPLE:
        try:
            first += next(content)
        except StopIteration:
            break
        except Damage as error:
            damage = error
            break

    def all_of_it() -> Iterator[bytes]:
        yield first
        if damage:
            raise damage
        yield from content

    mark = next((mark for mark in _MARKS if first.startswith(mark)), b"") if at_start else b""
    if mark and mark != codecs.BOM_UTF8:
        yield from _decoded(all_of_it(), _MARKS[mark])
        return
    if cause := _in_disguise(first, at_start=at_start):
        raise Damage(cause)
    first = first[len(mark) :] if mark else first
    yield from all_of_it()


def _decoded(content: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """UTF-16 or UTF-32 as UTF-8; lone surrogates become bytes that are no UTF-8, so that their row alone is lost."""
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
    try:
        for block in content:
            yield decoder.decode(block).encode("utf-8", "surrogatepass")
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise Damage(f"truncated or corrupt: no {encoding.upper()}: {error.reason}") from error
    except Damage as damage:
        # Two bytes of UTF-16 become up to three; where characters begin after a gap is not known.
        raise Damage(damage.cause, unsure=2 * damage.unsure, complete=damage.complete) from damage


def _in_disguise(content: bytes, *, at_start: bool) -> str | None:
    """What content that looks like something else than UTF-8 text is, from its first block."""
    if at_start:
        for kind, name in ((_GZIP, ".gz"), (_ZSTD, ".zst")):
            if len(content) >= 4 and content.startswith(kind.magic):
                return f"what it holds is {kind.name}-compressed: unpack it, or let its name end in {name}"
    name = _wide(content[:_SAMPLE])
    # To its end, or it is one line that does: that is lost, and no other.
    if name and name == _wide(content[max(0, len(content) - _SAMPLE) // 4 * 4 :]):
        return f"it looks like {name} without a byte order mark: convert it (iconv -f {name} -t UTF-8)"
    return None


def _wide(sample: bytes) -> str:
    """The encoding of wide characters that a sample seems to have; empty if none."""
    for unit, name in ((4, "UTF-32"), (2, "UTF-16")):
        zeros = [sample[at::unit].count(0) for at in range(unit)]
        # The high half lies first or last, and is mostly zero; a hole has zeros at all places.
        first, last = min(zeros[: unit // 2]), min(zeros[unit // 2 :])
        low, high = sorted((first, last))
        share = high / max(1, len(sample) // unit)
        enough = share >= 1 if unit == 4 else share >= 0.5 or (share >= 0.05 and high >= 16)
        if enough and high >= 4 and low * 8 <= high:
            return name + ("LE" if high == last else "BE")
    return ""
