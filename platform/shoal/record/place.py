"""Where a run's record is. Its address is its storage's and its id; that of a folder is where it is written and read.

On a store it has a folder on every machine that has to do with it: the controller writes into one of its own, which is
published from there (`record.publish`), and readers bring what is new into another (`record.fetch`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from shoal.record import layout
from shoal.record.beside import bring_stacks
from shoal.record.fetch import Copy
from shoal_core.errors import StoreError, UserError
from shoal_core.files import replace_file
from shoal_core.store import Store, join, local_folder, open_store

__all__ = [
    "address_of",
    "checkpoints_in",
    "checkpoints_of",
    "followed",
    "from_root",
    "local_record",
    "own_folder",
    "sign",
    "storage_of",
    "storage_of_address",
]

ADDRESS = ".address"
"""File in a folder here that says of what store it holds a record."""
PERIOD = 1.0
"""Seconds between two looks at a store for what is new."""


def from_root(address: str | os.PathLike[str]) -> str:
    """The same address wherever a process runs: a folder's from the root."""
    folder = local_folder(address)
    return os.fspath(address) if folder is None else str(folder.absolute())


def own_folder(address: str) -> Path:
    """Where on this machine a controller writes the record of a run whose address is a store's:
    `$XDG_STATE_HOME/shoal/records`."""
    return _here("XDG_STATE_HOME", ".local/state", address)


def local_record(address: str | os.PathLike[str]) -> Path:
    """The run directory that readers read: the folder itself, or one of this machine with all that the store has now.
    It holds nothing if there is no record.

    Raises:
        UserError: the record on the store is damaged, or cannot be brought. StoreError: the store does not answer.
    """
    folder = local_folder(address)
    if folder is not None:
        return folder
    here = _here("XDG_CACHE_HOME", ".cache", os.fspath(address))
    store = open_store(address)
    copy = Copy(store, here)
    try:
        if copy.bring():
            sign(here, os.fspath(address))
            with contextlib.suppress(OSError, StoreError, FileNotFoundError, ValueError):  # the record does without
                bring_stacks(store, here)
            with contextlib.suppress(OSError):  # a run is as old as what was published last
                os.utime(here / layout.EVENTS, (copy.manifest.written, copy.manifest.written))
        else:
            shutil.rmtree(here, ignore_errors=True)
    finally:
        copy.close()
    return here


def address_of(path: Path) -> str:
    """The address of the record in a run directory: where it is published, if that is not where it lies."""
    try:
        return (path / ADDRESS).read_text(encoding="utf-8")
    except OSError:
        return str(path)


def storage_of(path: Path) -> str:
    """The storage of the record in a run directory."""
    return storage_of_address(address_of(path))


def storage_of_address(address: str) -> str:
    """The storage of the run at an address."""
    folder = local_folder(address)
    if folder is not None:
        return str(folder.parent)
    place, question, options = address.partition("?")
    return place.rstrip("/").rpartition("/")[0] + question + options


def checkpoints_of(path: Path) -> str:
    """The address of the checkpoints of the run in a run directory."""
    return join(address_of(path), layout.CHECKPOINTS)


def checkpoints_in(path: Path) -> Store:
    """The store of the checkpoints of the run in a run directory, which is there."""
    return open_store(checkpoints_of(path), within=address_of(path))


def sign(path: Path, address: str) -> None:
    """Note in a folder of this machine whose record it holds. Raises OSError: it cannot be written."""
    replace_file(path / ADDRESS, address, durable=False)


@contextlib.contextmanager
def followed(path: Path, told: Callable[[str], None], place: str | None = None) -> Iterator[None]:
    """While this lasts, what is new of a record on a store comes into its folder `path` here. `told`: is told once, in
    a thread, that the store does not answer; `place`: its address, if there may be no record yet. A record that lies in
    a folder is followed by reading it."""
    address = place or address_of(path)
    if local_folder(address) is not None:
        yield
        return
    over = threading.Event()

    def bring() -> None:
        copy, failed = Copy(open_store(address), path), False
        while not over.wait(PERIOD):
            try:
                copy.bring()
                failed = False
            except UserError as error:
                if not failed:
                    told(f"what is shown may be old: {error}")
                failed = True
        copy.close()

    thread = threading.Thread(target=bring, daemon=True, name="record-brought")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(PERIOD)


def _here(variable: str, otherwise: str, address: str) -> Path:
    base = Path(os.environ.get(variable) or Path.home() / otherwise)
    digest = hashlib.sha256(address.encode(errors="surrogateescape")).hexdigest()[:16]
    return base / "shoal" / "records" / digest / address.partition("?")[0].rstrip("/").rpartition("/")[2]
