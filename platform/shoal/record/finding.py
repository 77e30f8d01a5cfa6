"""Which runs there are, and where: in a storage, here, and those that were started from this machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from shoal.record import index, layout
from shoal.record.place import local_record
from shoal_core.errors import StoreError, UserError
from shoal_core.store import join, local_folder, open_store

__all__ = ["HOME", "Address", "active", "find_run", "runs"]

HOME = "runs"
"""Where runs are looked for when no storage is named, beside those that this user started (`shoal.record.index`)."""
Address = str | os.PathLike[str]


def runs(storage: Address | None, unread: Callable[[StoreError], None] | None = None) -> list[Path]:
    """The directories of the runs in `storage` (`place.local_record`), the one last active first; None: in `runs` here,
    and all that this user's drivers started elsewhere, of which `unread` is told those whose store does not answer.

    Raises:
        StoreError: the store does not answer. UserError: a record on it is damaged.
    """
    found = {path.resolve(): path for path in _within(HOME if storage is None else storage)}
    for address in index.known() if storage is None else ():
        try:
            if (path := _run_at(address)) is not None:
                found.setdefault(path.resolve(), path)
        except StoreError as error:
            if unread is None:
                raise
            unread(error)
    return sorted(found.values(), key=active, reverse=True)


def active(path: Path) -> float:
    """When the run directory `path` was last written to (unix seconds); 0.0 if that is not known."""
    try:
        return (path / layout.EVENTS).stat().st_mtime
    except OSError:
        return 0.0


def find_run(run: Address | None, storage: Address | None) -> Path:
    """The directory of a run given by its id in `storage` or by its address; of the run last active if None. `storage`
    None: as in `runs`.

    Raises:
        UserError: there is none; names the runs that exist. StoreError: the store does not answer.
    """
    if run is not None:
        named = os.fspath(run)
        home = HOME if storage is None else storage
        elsewhere = index.find(named) if storage is None else None
        for address in (_under(home, named), named, elsewhere):
            if address is not None and (path := _run_at(address)) is not None:
                return path
    found = runs(storage, lambda error: None)
    if run is None and found:
        return found[0]
    listing = ", ".join(path.name for path in found[:10]) + (", ..." if len(found) > 10 else "")
    where = f"in {storage}" if storage is not None else "here or among those started from this machine"
    problem = f"no run {str(run)!r} {where}" if run is not None else f"no runs {where}"
    raise UserError(problem, f"one of {listing}" if found else "name the storage with --storage or SHOAL_STORAGE")


def _within(storage: Address) -> list[Path]:
    folder = local_folder(storage)
    if folder is not None:
        return [path for path in folder.glob("*/") if _is_run(path)]
    names = open_store(storage).folders()
    return [path for name in names if (path := _run_at(join(storage, name))) is not None]


def _under(home: Address, run: str) -> str | None:
    """The address of what is called `run` in a storage; None: nothing can be called that there."""
    folder = local_folder(home)
    if folder is not None:
        return str(folder / run) if local_folder(run) is not None else None
    try:
        return join(home, run)
    except ValueError:
        return None


def _run_at(address: Address) -> Path | None:
    path = local_record(address)
    return path if _is_run(path) else None


def _is_run(path: Path) -> bool:
    try:
        return (path / layout.EVENTS).is_file()
    except OSError:  # a folder that is not ours to look into
        return False
