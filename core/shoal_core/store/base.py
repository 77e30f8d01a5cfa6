"""What a store is, whatever it lies on.

Names of objects are relative, with `/` between their parts, and taken as they are: nothing in them is decoded. All
methods may be called from many threads at once. What a store does not give raises `StoreError`, which names the
object and the remedy; what is not there is `FileNotFoundError`, what is shorter than was asked for `EOFError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

__all__ = ["Entry", "Stat", "Store", "Writer", "checked_name", "is_name"]


@dataclass(frozen=True)
class Stat:
    """An object as it is now.

    Attributes:
        bytes: its size.
        version: another one for other content, whoever writes it; for `Store.swap`, and to see that an object was
            replaced.
        modified: when it was written, in seconds since 1970 by the store's clock.
    """

    bytes: int
    version: str
    modified: float


@dataclass(frozen=True, order=True)
class Entry:
    """An object in a listing: its name, size, and when it was written (seconds since 1970, the store's clock)."""

    name: str
    bytes: int
    modified: float


class Writer(Protocol):
    """Writes one object as a stream. Nobody sees any of it before `close`. One thread at a time.

    As a context manager it closes at the end, and aborts if an exception ends it.
    """

    def write(self, content: bytes | memoryview) -> None:
        """Append; the buffer may be used again as soon as this returns.

        Raises:
            StoreError: the store does not take it.
        """

    def write_all(self, contents: Sequence[memoryview]) -> None:
        """Append all, in as few calls of the system as it takes. Raises: as `write`."""
        for content in contents:
            self.write(content)

    def close(self) -> None:
        """Make the object whole, in the place of what had its name.

        Raises:
            StoreError: the store did not take it all; nothing is left of it.
        """

    def abort(self) -> None:
        """Leave nothing of it. After `close`: do nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


class Store(Protocol):
    """A folder-like space of named objects.

    Attributes:
        address: as the user wrote it; it holds no secret, and opens the same store elsewhere.
        conditional: whether this kind of store has `create` and `swap`.
    """

    address: str
    conditional: bool

    def where(self, name: str) -> str:
        """An object's own address, for messages."""

    def put(self, name: str, content: bytes | memoryview) -> None:
        """Write an object whole or not at all, in the place of what had its name.

        Raises:
            StoreError: the store does not take it.
        """

    def create(self, name: str, content: bytes | memoryview) -> bool:
        """Write an object where there is none; False: there is one, and it was not touched. Of several that try at
        once, on any machines, one gets True.

        Raises:
            StoreError: the store does not take it.
            UserError: this kind of store cannot promise that.
        """

    def swap(self, name: str, content: bytes | memoryview, version: str | None) -> str | None:
        """Replace the object that `stat` gave `version` of (None: there is none), and return the new version; None:
        it is another one by now, and was not touched. Of several that try at once, one wins. An object that is
        swapped is to be written by `swap` and `create` alone.

        Raises:
            StoreError: the store does not take it.
            UserError: this kind of store cannot promise that.
        """

    def get(self, name: str, span: range | None = None) -> bytes:
        """An object, or exactly the bytes of it in `span` (whose step is 1).

        Raises:
            FileNotFoundError: there is none.
            EOFError: it ends before `span` does.
            StoreError: it cannot be read.
        """

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes from `offset` on. Raises as `get`; what the buffer holds then is undefined."""

    def stat(self, name: str) -> Stat:
        """What is known of an object without reading it.

        Raises:
            FileNotFoundError: there is none.
            StoreError: it cannot be told.
        """

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """The objects whose names begin with `prefix`, in no promised order. Objects that are being written are not
        among them, nor is what another program gave a name that none has here (`is_name`).

        Raises:
            StoreError: it cannot be listed.
        """

    def folders(self, within: str = "") -> Sequence[str]:
        """Names, sorted, of what `/` divides right under `within` (a name, "" for the store itself), however many
        objects lie there.

        Raises:
            StoreError: it cannot be listed.
        """

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects; what is not there is no error.

        Raises:
            StoreError: the store keeps one; it is named. Others may be gone.
        """

    def drop_unfinished(self, folder: str) -> int:
        """Remove what writers that were killed left of objects under `folder` ("": anywhere), which no listing shows;
        to be called when nobody writes there. Returns of how many objects.

        Raises:
            StoreError: the store does not say what there is, or keeps it.
        """

    def writer(self, name: str) -> Writer:
        """Write an object as a stream, in bounded memory.

        Raises:
            StoreError: the store does not take it.
        """


def checked_name(name: str) -> str:
    """`name`, if it is one of an object.

    Raises:
        ValueError: it is empty, begins or ends with `/`, or has an empty part, `.` or `..` in it.

    >>> checked_name("step-1/index.json")
    'step-1/index.json'
    """
    if not is_name(name):
        raise ValueError(f"{name!r} is no name of an object in a store")
    return name


def is_name(name: str) -> bool:
    """Whether `name` is one of an object: relative, and of no path that leads elsewhere.

    >>> is_name("a/b"), is_name("../a"), is_name("/a"), is_name("a//b")
    (True, False, False, False)
    """
    return "\0" not in name and all(part not in ("", ".", "..") for part in name.split("/"))
