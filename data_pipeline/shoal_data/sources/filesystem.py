"""Finding input files where they lie: on this machine, on S3 (`s3://`), or in a Hugging Face dataset (`hf://datasets/...`)."""

from __future__ import annotations

import os
from collections.abc import Callable

from shoal_core.errors import UserError
from shoal_data.sources import hub_files, local_files, s3_files
from shoal_data.sources.found import Found, Listing, refuse

__all__ = ["Found", "find_files", "is_local", "list_files", "reads_are_conditional", "scheme_of", "stamp_of"]

_ELSEWHERE = {
    "s3a": "write s3://",
    "s3n": "write s3://",
    "file": "write the path alone",
    "http": "download it first",
    "https": "download it first; hf:// reads datasets of the Hub",
}


def is_local(path: str) -> bool:
    """Whether it is on a file system of this machine."""
    return "://" not in path


def list_files(pattern: str, said: Callable[[int], None] = lambda count: None) -> Listing:
    """What a glob names; `~` is the home folder, and a path that exists as it is written is taken as such.

    Args:
        pattern: local, or with a scheme.
        said: called with how many more entries were looked at.

    Raises:
        UserError: the kind of store is not known.
        StoreError: the store cannot be listed.
    """
    if is_local(pattern):
        return local_files.find(os.path.expanduser(pattern), said)
    return s3_files.find(pattern, said) if scheme_of(pattern) == "s3" else hub_files.find(pattern)


def find_files(pattern: str) -> list[Found]:
    """The files a glob names (`**` for any depth), sorted by path.

    Raises:
        UserError: some of them cannot be read, or the kind of store is not known.
        StoreError: the store cannot be listed.
    """
    listing = list_files(pattern)
    refuse(listing.problems)
    return listing.files


def reads_are_conditional(path: str) -> bool:
    """Whether a file opened with its stamp gives bytes of that content and no other, so that nobody need ask again."""
    return path.startswith(("s3://", "dataset://"))  # the latter name a commit


def stamp_of(path: str) -> str:
    """The stamp of a file of `find_files` as it is now.

    Raises:
        StoreError: it is not there any more, or the store does not say.
    """
    if is_local(path):
        return local_files.stamp(path)
    return s3_files.stamp(path) if scheme_of(path) == "s3" else hub_files.stamp(path)


def scheme_of(path: str) -> str:
    """The kind of store of a path that is not local: `s3` or `hf`.

    Raises:
        UserError: it is not known.
    """
    scheme = path.partition("://")[0]
    if scheme not in ("s3", "hf"):
        remedy = _ELSEWHERE.get(scheme, "use local files, s3:// or hf://")
        raise UserError(f"--input {scheme}://...: this kind of store is not known", remedy)
    return scheme
