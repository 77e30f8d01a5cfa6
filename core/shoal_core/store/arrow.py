"""A store on what `pyarrow.fs` reads and writes: Google's (`gs://`), Azure's (`abfss://`), Hadoop's (`hdfs://`).

An object is written under a name that begins with a dot and ends in `.tmp`, and brought to its place when it is whole:
Azure shows what is being written, and a stream that breaks leaves half of it on Google's. pyarrow writes on no
condition, so that `create` and `swap` are refused.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from shoal_core.errors import StoreError, UserError
from shoal_core.files import TEMPORARY
from shoal_core.store.base import Entry, Stat, Writer, checked_name, is_name

__all__ = ["ArrowStore", "Place"]

#: objects that are deleted at once
_AT_ONCE = 16


@dataclass(frozen=True)
class Place:
    """Where a store of pyarrow's lies.

    Attributes:
        root: the path there, its bucket or container first.
        files: makes the `pyarrow.fs.FileSystem`, which may take a connection.
        shown: what stands before `root` in messages, such as `gs://`.
        folders: whether it has folders, which must be there before their files, and can rename a file.
        remedy: what the user can do about an error.
    """

    root: str
    files: Callable[[], Any]
    shown: str
    folders: bool
    remedy: str


class ArrowStore:
    """The objects in a place. Names are taken as they are.

    Args:
        address: as the user wrote it, without secrets.
        place: what it names.
    """

    conditional = False

    def __init__(self, address: str, place: Place) -> None:
        self.address, self._place, self._root = address, place, place.root.rstrip("/")

    def where(self, name: str) -> str:
        return f"{self._place.shown}{self._root}/{name}"

    def put(self, name: str, content: bytes | memoryview) -> None:
        with self.writer(name) as writer:
            writer.write(content)

    def create(self, name: str, content: bytes | memoryview) -> bool:
        raise self._unconditional(name)

    def swap(self, name: str, content: bytes | memoryview, version: str | None) -> str | None:
        raise self._unconditional(name)

    def get(self, name: str, span: range | None = None) -> bytes:
        with self._reading(name) as file:
            if span is None:
                span = range(file.size())
            self._begin(name, file, span.start, len(span))
            content: bytes = file.read(len(span))
        if len(content) < len(span):
            raise self._too_short(name, span.start + len(content), span.stop)
        return content

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        view = buffer.cast("B")
        with self._reading(name) as file:
            self._begin(name, file, offset, len(view))
            done = 0
            while done < len(view):
                if not (count := file.readinto(view[done:])):
                    raise self._too_short(name, offset + done, offset + len(view))
                done += count

    def stat(self, name: str) -> Stat:
        with self._explained(name):
            found = self._files.get_file_info(self._path(name))
            if not found.is_file:
                raise FileNotFoundError(name)
        return Stat(found.size, f"{_modified(found):x}-{found.size:x}", _modified(found) / 1e9)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        from pyarrow.fs import FileSelector

        folder = prefix.rpartition("/")[0]
        base = f"{self._root}/{folder}" if folder else self._root
        with self._explained(prefix):
            found = self._files.get_file_info(FileSelector(base, recursive=True, allow_not_found=True))
            if not found and (missing := self._no_bucket(prefix)):
                raise missing
        for one in found:
            name = one.path[len(self._root) + 1 :]
            if one.is_file and name.startswith(prefix) and is_name(name) and not _is_temporary(one.base_name):
                yield Entry(name, one.size, _modified(one) / 1e9)

    def folders(self, within: str = "") -> Sequence[str]:
        start = f"{within}/" if within else ""
        names = (entry.name[len(start) :] for entry in self.list(start))  # asked for alone, Google's are not told
        return sorted({name.partition("/")[0] for name in names if "/" in name})

    def delete(self, names: Iterable[str]) -> None:
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="delete") as pool:
            for _ in pool.map(self._delete, names):
                pass

    def drop_unfinished(self, folder: str) -> int:
        from pyarrow.fs import FileSelector

        with self._explained(folder):
            there = FileSelector(self._path(folder) if folder else self._root, allow_not_found=True, recursive=True)
            found = [info for info in self._files.get_file_info(there) if info.is_file]
            left = [
                info.path for info in found if info.base_name.startswith(".") and info.base_name.endswith(TEMPORARY)
            ]
            for path in left:
                with contextlib.suppress(FileNotFoundError):
                    self._files.delete_file(path)
        return len(left)

    def writer(self, name: str) -> ArrowWriter:
        return ArrowWriter(self._files, self._path(name), self.where(name), self._place)

    @cached_property
    def _files(self) -> Any:
        with self._explained(""):
            return self._place.files()

    def _path(self, name: str) -> str:
        return f"{self._root}/{checked_name(name)}"

    def _delete(self, name: str) -> None:
        with self._explained(name), contextlib.suppress(FileNotFoundError):
            self._files.delete_file(self._path(name))

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[Any]:
        path = self._path(name)
        with self._explained(name):
            try:
                file = self._files.open_input_file(path)
            except OSError as error:
                if self._place.folders and not self._files.get_file_info(path).is_file:
                    raise FileNotFoundError(path) from error  # it may be a folder, or stand under a file
                raise
            with file:
                yield file

    def _begin(self, name: str, file: Any, offset: int, count: int) -> None:
        """Go to where `count` bytes are to be read."""
        size = file.size()
        if offset + count > size:
            raise self._too_short(name, size, offset + count)
        file.seek(offset)

    def _too_short(self, name: str, size: int, end: int) -> EOFError:
        return EOFError(f"{self.where(name)}: it ends at byte {size}, before {end}")

    @contextlib.contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        """pyarrow's errors as the store's. What is not there is looked for no further than to its bucket."""
        try:
            yield
        except FileNotFoundError as error:
            raise (self._no_bucket(name) or FileNotFoundError(self.where(name))) from error
        except _errors() as error:
            raise _explained(error, self.where(name), self._place) from error

    def _no_bucket(self, name: str) -> StoreError | None:
        """What to say where the bucket or container is missing; None if it is there."""
        from pyarrow.fs import FileType

        if self._place.folders:
            return None
        with contextlib.suppress(*_errors()):
            if self._files.get_file_info(self._root.partition("/")[0]).type == FileType.NotFound:
                return _bucket_missing(self.where(name), self._place)
        return None

    def _unconditional(self, name: str) -> UserError:
        return UserError(
            f"{self.where(name)}: this kind of store has no conditional writes here, so that two could both write it",
            "name a storage that has them for runs: a folder, or s3:// (AWS, MinIO, R2, Ceph)",
        )


class ArrowWriter(Writer):
    """An object that is being written under a temporary name.

    Args:
        files: the file system.
        path: where the object belongs there.
        where: its address, for messages.
        place: the store's.

    Raises:
        StoreError: it cannot be made.
    """

    def __init__(self, files: Any, path: str, where: str, place: Place) -> None:
        self._files, self._path, self._where, self._place = files, path, where, place
        folder, _, name = path.rpartition("/")
        self._temporary = f"{folder}/.{name}.{secrets.token_hex(6)}{TEMPORARY}"
        self._stream: Any = None
        with self._failing():
            if place.folders:
                files.create_dir(folder, recursive=True)
            self._stream = files.open_output_stream(self._temporary)

    def write(self, content: bytes | memoryview) -> None:
        with self._failing():
            self._stream.write(memoryview(content).cast("B"))

    def close(self) -> None:
        if self._stream is None:
            return
        with self._failing():
            self._stream.close()
            if self._place.folders:
                self._files.move(self._temporary, self._path)
            else:
                self._files.copy_file(self._temporary, self._path)
                self._files.delete_file(self._temporary)
            self._stream = None

    def abort(self) -> None:
        if self._stream is None:
            return
        stream, self._stream = self._stream, None
        with contextlib.suppress(*_errors()):  # what went wrong is told already
            stream.close()
        with contextlib.suppress(*_errors()):
            self._files.delete_file(self._temporary)

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Nothing is left of an object that could not be written, and pyarrow's errors are the store's."""
        try:
            yield
        except FileNotFoundError as error:
            self.abort()
            raise _bucket_missing(self._where, self._place) from error
        except _errors() as error:
            self.abort()
            raise _explained(error, self._where, self._place) from error


def _errors() -> tuple[type[Exception], ...]:
    """What pyarrow raises when a store does not do what it is asked for."""
    import pyarrow

    return OSError, pyarrow.ArrowException


def _explained(error: Exception, where: str, place: Place) -> StoreError:
    words = str(getattr(error, "strerror", None) or error)
    said = next(iter(words.splitlines()), type(error).__name__)
    return StoreError(f"{where}: {said.partition(' error_info=')[0]}", place.remedy)


def _bucket_missing(where: str, place: Place) -> StoreError:
    return StoreError(f"{where}: there is no such bucket, container or folder", place.remedy)


def _modified(found: Any) -> int:
    """When a file was written, in nanoseconds since 1970."""
    return int(found.mtime_ns or 0)


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(TEMPORARY)
