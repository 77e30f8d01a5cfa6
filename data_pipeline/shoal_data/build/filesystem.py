"""Input files where they lie: on this machine, on S3 (`s3://`), or in a Hugging Face dataset (`hf://datasets/...`)."""

from __future__ import annotations

import fnmatch
import glob
import os
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO, cast

import pyarrow.fs

from shoal_data.errors import InputError, StoreError

__all__ = ["Found", "find_files", "open_file", "stamp_of"]


@dataclass(frozen=True)
class Found:
    """A file where it lies.

    Attributes:
        path: as `open_file` takes it.
        size: in bytes.
        stamp: what tells its content from what it was before or is later: its size, and its time or its etag.
    """

    path: str
    size: int
    stamp: str


def find_files(pattern: str) -> list[Found]:
    """The files a glob names (`**` for any depth), sorted.

    Raises:
        InputError: the store cannot be listed.
    """
    if "://" not in pattern:
        paths = [path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)]
        return [_found(path) for path in sorted(paths)]
    scheme, _, rest = pattern.partition("://")
    fixed = rest
    for special in "*?[":
        fixed = fixed.partition(special)[0]
    folder = fixed if fixed == rest else fixed.rpartition("/")[0]
    selector = pyarrow.fs.FileSelector(folder, recursive=True, allow_not_found=True)
    try:
        store = _store(scheme)
        found = store.get_file_info([rest]) if folder == rest else store.get_file_info(selector)
    except (OSError, ValueError) as error:
        raise InputError(f"--input {pattern!r}: {error}", "check the address and the credentials") from error
    files = [info for info in found if info.type == pyarrow.fs.FileType.File and _matches(info.path, rest)]
    return sorted((_remote(scheme, info) for info in files), key=lambda found: found.path)


def stamp_of(path: str) -> str:
    """The stamp of a file of `find_files` as it is now.

    Raises:
        StoreError: the store does not say.
    """
    scheme, colon, rest = path.partition("://")
    try:
        if not colon:
            return _found(path).stamp
        return _remote(scheme, _store(scheme).get_file_info([rest])[0]).stamp
    except OSError as error:
        raise StoreError(f"{path}: {error}", "see that it is there and can be read") from error


def _found(path: str) -> Found:
    status = os.stat(path)
    return Found(path, status.st_size, f"{status.st_size}:{status.st_mtime_ns}")


def _remote(scheme: str, info: pyarrow.fs.FileInfo) -> Found:
    return Found(f"{scheme}://{info.path}", int(info.size or 0), f"{info.size}:{info.mtime_ns}")


def open_file(path: str) -> BinaryIO:
    """A file of `find_files`, for reading at any place.

    Raises:
        StoreError: it cannot be read; its `read` and `seek` raise the same.
    """
    scheme, colon, rest = path.partition("://")
    try:
        return cast(BinaryIO, _store(scheme).open_input_file(rest)) if colon else open(path, "rb")
    except OSError as error:
        raise StoreError(f"{path}: {error}", "see that it is there and can be read") from error


def _matches(path: str, pattern: str) -> bool:
    """As the shell would have it: `*` stays within a folder, `**` does not."""
    names, wanted = path.split("/"), pattern.split("/")

    def match(name: int, want: int) -> bool:
        if want == len(wanted):
            return name == len(names)
        if wanted[want] == "**":
            return any(match(later, want + 1) for later in range(name, len(names) + 1))
        return name < len(names) and fnmatch.fnmatchcase(names[name], wanted[want]) and match(name + 1, want + 1)

    return match(0, 0)


@lru_cache(maxsize=4)
def _store(scheme: str) -> pyarrow.fs.FileSystem:
    if scheme == "s3":
        return pyarrow.fs.S3FileSystem(endpoint_override=os.environ.get("AWS_ENDPOINT_URL"))
    if scheme == "hf":
        from huggingface_hub import HfFileSystem

        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(HfFileSystem()))
    raise InputError(f"--input {scheme}://...: this kind of store is not known", "use local files, s3:// or hf://")
