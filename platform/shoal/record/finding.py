"""Which runs there are, and where: in a storage, here, and those that were started from this machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from shoal.record import grip, index, layout
from shoal.record.fetch import one_file
from shoal.record.manifest import Manifest
from shoal.record.place import local_record, storage_of_address
from shoal.record.status import aged, snapshot
from shoal_core.errors import UserError
from shoal_core.store import Store, join, local_folder, open_store, open_under, split

__all__ = ["HOME", "Address", "Found", "find", "find_run", "key", "runs"]

HOME = "runs"
"""Where runs are looked for when no storage is named, beside those that this user started (`shoal.record.index`)."""
Address = str | os.PathLike[str]
Unread = Callable[[UserError], None]


@dataclass(frozen=True)
class Found:
    """A run that is there. `active`: when its record was last written to, unix seconds, 0.0 if that is not known;
    `published`: where its record is on a store and the manifest of it, from which nothing else was read yet."""

    address: str
    active: float
    published: tuple[Store, Manifest] | None = None

    @property
    def name(self) -> str:
        return split(self.address)[1]

    @property
    def storage(self) -> str:
        return storage_of_address(self.address)

    def status(self) -> dict[str, Any]:
        """How it is doing (`snapshot`), with as little of its record brought as that takes.

        Raises:
            UserError: the record is damaged. StoreError: the store does not answer.
        """
        if self.published is not None:
            store, manifest = self.published
            if (content := one_file(store, manifest, layout.STATUS)) is not None:
                return aged(content, store.where(layout.STATUS))
        return snapshot(local_record(self.address))


def runs(storage: Address | None, unread: Unread | None = None) -> list[Found]:
    """The runs in `storage`, the one last active first; None: in `runs` here, and all that this user's drivers started
    elsewhere. `unread`: is told what is wrong with one of them, which is left out then, as are those of this user whose
    store does not answer.

    Raises:
        StoreError: the storage does not answer. UserError: there is no such folder; one run is damaged, and nobody
            wants to be told (`unread`).
    """
    folder = None if storage is None else local_folder(storage)
    if folder is not None and not folder.is_dir():
        raise UserError(f"storage: {storage}: there is no such folder", "name the one that runs were started with")
    found = {key(one.address): one for one in _within(HOME if storage is None else storage, unread)}
    for address in index.known() if storage is None else ():
        if (one := _told_of(partial(_run_at, address), unread)) is not None:
            found.setdefault(key(one.address), one)
    return sorted(found.values(), key=lambda one: one.active, reverse=True)


def find(run: Address | None, storage: Address | None) -> Found:
    """The run given by its id in `storage` or by its address; the one last active if None. `storage` None: as in
    `runs`.

    Raises:
        UserError: there is none; names the runs that exist, or says that there is no such storage. StoreError: the
            store does not answer.
    """
    if run is not None:
        named = os.fspath(run)
        home = HOME if storage is None else storage
        elsewhere = index.find(named) if storage is None else None
        for address in (_under(home, named), named, elsewhere):
            if address is not None and (one := _run_at(address)) is not None:
                return one
    found = runs(storage, lambda error: None)
    if run is None and found:
        return found[0]
    listing = ", ".join(one.name for one in found[:10]) + (", ..." if len(found) > 10 else "")
    where = f"in {storage}" if storage is not None else "here or among those started from this machine"
    problem = f"no run {str(run)!r} {where}" if run is not None else f"no runs {where}"
    raise UserError(problem, f"one of {listing}" if found else "name the storage with --storage or SHOAL_STORAGE")


def find_run(run: Address | None, storage: Address | None) -> Path:
    """The directory of a run (`place.local_record`) that is given as in `find`, with all of its record. Raises: as
    `find`; UserError: the record is damaged."""
    return local_record(find(run, storage).address)


def key(address: str) -> str:
    """The same for the same place."""
    folder = local_folder(address)
    return address if folder is None else str(folder.resolve())


def _within(storage: Address, unread: Unread | None) -> Iterator[Found]:
    folder = local_folder(storage)
    if folder is not None:
        yield from (one for path in folder.glob("*/") if (one := _run_at(path)) is not None)
        return
    store = open_store(storage)
    for name in store.folders():
        if (one := _told_of(partial(_published, open_under(store, name)), unread)) is not None:
            yield one


def _told_of(look: Callable[[], Found | None], unread: Unread | None) -> Found | None:
    """The run that a look finds, unless something is wrong with it, which is told."""
    try:
        return look()
    except UserError as error:
        if unread is None:
            raise
        unread(error)
        return None


def _under(home: Address, run: str) -> str | None:
    """The address of what is called `run` in a storage; None: nothing can be called that there."""
    folder = local_folder(home)
    if folder is not None:
        return str(folder / run) if local_folder(run) is not None else None
    try:
        return join(home, run)
    except ValueError:
        return None


def _run_at(address: Address) -> Found | None:
    folder = local_folder(address)
    if folder is None:
        return _published(open_store(address))
    journal = folder / layout.EVENTS
    try:
        return Found(os.fspath(folder), journal.stat().st_mtime) if journal.is_file() else None
    except OSError:  # a folder that is not ours to look into
        return None


def _published(store: Store) -> Found | None:
    manifest, _ = grip.read(store)
    return Found(store.address, manifest.written, (store, manifest)) if layout.EVENTS in manifest.files else None
