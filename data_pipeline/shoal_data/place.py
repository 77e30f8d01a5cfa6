"""Where a job writes: a path on this machine, or a place on a store, which it uses alike."""

from __future__ import annotations

import fnmatch
import io
import posixpath
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

from shoal_core.errors import UserError
from shoal_core.store import Store, exists, join, open_store

__all__ = ["Place", "Remote", "address_of", "is_address", "place_at"]


class Remote:
    """An object on a store, or what stands under its name, with as much of `pathlib.Path` as jobs use. There are no
    folders to make, and nothing that is half written is seen. What the store does not give is StoreError; what is not
    there FileNotFoundError, as on a disk.

    Args:
        root: the address of a bucket, with its options.
        path: names in it, with `/` between them; none: the bucket itself.
    """

    def __init__(self, root: str, path: str) -> None:
        self.root, self.path = root, path
        self.store = _opened(root)

    def __truediv__(self, name: str) -> Remote:
        return Remote(self.root, f"{self.path}/{name}" if self.path else name)

    def __str__(self) -> str:
        return self.store.where(self.path).rstrip("/")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and (self.root, self.path) == (other.root, other.path)

    def __hash__(self) -> int:
        return hash((self.root, self.path))

    @property
    def name(self) -> str:
        return posixpath.basename(self.path)

    @property
    def parent(self) -> Remote:
        return Remote(self.root, posixpath.dirname(self.path))

    @property
    def size(self) -> int:
        """Bytes of the object."""
        return self.store.stat(self.path).bytes

    def exists(self) -> bool:
        """Whether there is an object of this name."""
        return exists(self.store, self.path)

    def is_file(self) -> bool:
        return self.exists()

    def read_bytes(self) -> bytes:
        return self.store.get(self.path)

    def write_bytes(self, content: bytes | memoryview) -> None:
        """Whole or not at all."""
        self.store.put(self.path, content)

    def touch(self) -> None:
        self.write_bytes(b"")

    def unlink(self, missing_ok: bool = True) -> None:
        self.store.delete([self.path])

    def iterdir(self) -> Iterator[Remote]:
        """What stands right under this name, each once."""
        seen = set()
        for path in self._under():
            name = path.partition("/")[0]
            if name not in seen:
                seen.add(name)
                yield self / name

    def glob(self, pattern: str) -> Iterator[Remote]:
        """Objects under this name; `*` stays between two slashes."""
        wanted = pattern.split("/")
        for path in self._under():
            names = path.split("/")
            if len(names) == len(wanted) and all(map(fnmatch.fnmatchcase, names, wanted)):
                yield self / path

    def open(self) -> io.RawIOBase:
        """Its bytes, read by range where they are asked for."""
        return _Ranges(self)

    def _under(self) -> Iterator[str]:
        start = f"{self.path}/" if self.path else ""
        return (entry.name[len(start) :] for entry in self.store.list(start))


Place: TypeAlias = Path | Remote


class _Ranges(io.RawIOBase):
    """An object as a file that is read."""

    def __init__(self, place: Remote) -> None:
        self._place, self._size, self._at = place, place.size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, count: int = -1) -> bytes:
        end = self._size if count < 0 else min(self._at + count, self._size)
        if end <= self._at:
            return b""
        content = self._place.store.get(self._place.path, range(self._at, end))
        self._at = end
        return content


def is_address(text: str) -> bool:
    """Whether it names a store by a URL, and not a path."""
    return "://" in text


def place_at(address: str | Path) -> Place:
    """The place that the user names: a path, or a URL. Nothing is asked of a store yet.

    Raises:
        UserError: the URL makes no sense, or its kind of store is not known.
    """
    text = str(address)
    if not is_address(text):
        return Path(text).expanduser()
    where, question, options = text.partition("?")
    scheme, _, rest = where.partition("://")
    bucket, _, path = rest.partition("/")
    place = Remote(f"{scheme}://{bucket}{question}{options}", path.strip("/"))
    if any(part in ("", ".", "..") for part in place.path.split("/")) and place.path:
        raise UserError(f"{text}: a part of it is empty, . or ..", "write s3://bucket/prefix")
    return place


def address_of(place: Place) -> str:
    """What names it in other processes: `place_at` gives it back."""
    if isinstance(place, Path):
        return str(place.absolute())
    return join(place.root, place.path) if place.path else place.root


@lru_cache(maxsize=16)
def _opened(root: str) -> Store:
    """The store, whose client takes a second to make."""
    return open_store(root)
