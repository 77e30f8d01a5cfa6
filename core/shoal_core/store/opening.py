"""From an address to the store that it names."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from shoal_core.errors import UserError
from shoal_core.store.address import KNOWN, join, parsed
from shoal_core.store.arrow import ArrowStore
from shoal_core.store.arrow_places import PLACES
from shoal_core.store.base import Stat, Store
from shoal_core.store.local import LocalStore
from shoal_core.store.s3 import S3Store
from shoal_core.store.s3_calls import Calls

__all__ = ["PAUSES", "create_alone", "exists", "get_small", "local_folder", "open_store", "open_under", "unmounted"]

PAUSES = (1.0, 4.0, 16.0)
"""Seconds after which a store that failed over something large, a checkpoint say, is asked for it again; each time it
is asked as often as it is itself patient for."""


def open_store(address: str | os.PathLike[str], within: str | os.PathLike[str] | None = None) -> Store:
    """The store at `address`: a path (`~` is the home folder) or a URL. Nothing of a path is decoded. Nothing is asked
    of the store yet, so that one which does not answer shows at its first use. within: the address of what it lies in
    and is there already, if it is a folder: should that vanish, the store fails, and is not taken for an empty one.

    Raises:
        UserError: the address makes no sense, or its kind of store is not known.
    """
    text = os.fspath(address)
    if not text:
        raise UserError("the address of a store is empty", f"write {KNOWN}")
    if (folder := local_folder(text)) is not None:
        base = None if within is None else local_folder(within)
        return LocalStore(text, folder.absolute(), None if base is None else base.absolute())
    scheme = text.partition("://")[0]
    if scheme == "s3":
        found = parsed(text)
        calls = Calls(f"s3://{found.root}/{found.path}", found.endpoint, found.options.get("region"))
        return S3Store(text, found.root, found.path, calls)
    if scheme in PLACES:
        return ArrowStore(text, PLACES[scheme](parsed(text)))
    raise UserError(f"{scheme}://: this kind of store is not known", f"write {KNOWN}")


def open_under(store: Store, name: str) -> Store:
    """The store at `join(store.address, name)`, where that is cheaper than to open it anew: a client takes a second."""
    return store.under(name) if isinstance(store, S3Store) else open_store(join(store.address, name))


def local_folder(address: str | os.PathLike[str]) -> Path | None:
    """The folder of this machine that an address names; None: it names a store elsewhere.

    Raises:
        UserError: a `file://` that names no path from the root.

    >>> local_folder("file:///runs"), local_folder("runs/a"), local_folder("s3://bucket/runs")
    (PosixPath('/runs'), PosixPath('runs/a'), None)
    """
    text = os.fspath(address)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return Path(text).expanduser()
    if scheme != "file":
        return None
    if not rest.startswith("/"):
        raise UserError(f"{text}: names no path from the root", "write file:///folder, or the path alone")
    return Path(rest)


def unmounted(address: str | os.PathLike[str]) -> str | None:
    """What may be the matter where something is not found at an address, in words: a folder on the way there is not
    there, or holds nothing, as where a disk is not mounted. None: neither, or it is no folder's."""
    if (folder := local_folder(address)) is None:
        return None
    folder = folder.absolute()
    missing = next((one for one in reversed([folder, *folder.parents]) if not os.path.lexists(one)), None)
    there = folder if missing is None else missing.parent
    with contextlib.suppress(OSError):
        if there != there.parent and not any(there.iterdir()):
            return f"and {there} is empty: is its disk mounted?"
    return None if missing is None else f"and {missing} is not there: is its disk mounted?"


def create_alone(store: Store, name: str, content: bytes | memoryview) -> bool:
    """`Store.create`, also on stores that have no conditional writes, for a writer that has none beside it: of two at
    once there, both might get True.
    """
    if store.conditional:
        return store.create(name, content)
    if exists(store, name):
        return False
    store.put(name, content)
    return True


def get_small(store: Store, name: str, most: int, known: Stat | None = None) -> bytes:
    """An object that others may write too, if it has no more than `most` bytes: a larger one would cost the memory of
    this process. known: what `Store.stat` said of it just now.

    Raises:
        FileNotFoundError: there is none. ValueError: it is larger.
        StoreError: it cannot be read.
    """
    if (size := (known or store.stat(name)).bytes) > most:
        raise ValueError(f"it has {size:,} bytes, where no more than {most:,} can be right")
    return store.get(name)


def exists(store: Store, name: str) -> bool:
    """Whether there is an object of this name.

    Raises:
        StoreError: it cannot be told.
    """
    try:
        store.stat(name)
    except FileNotFoundError:
        return False
    return True
