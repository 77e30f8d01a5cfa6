"""Files of this machine to a store, and back, in bounded memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from shoal_core.errors import StoreError
from shoal_core.store.base import Store

__all__ = ["bring", "send"]

#: bytes in memory at once; a store may read them in several ranges at once
_BLOCK = 64 << 20


def send(folder: Path, store: Store, last: str) -> int:
    """Copy the files right in `folder`; the one called `last` comes last, so that who sees it sees all. Returns their
    bytes.

    Raises:
        StoreError: the store does not take one. Those that it took are removed again, as far as it lets them go.
        OSError: a file cannot be read. Likewise.
    """
    names = sorted((path.name for path in folder.iterdir()), key=lambda name: (name == last, name))
    sent: list[str] = []
    try:
        for name in names:
            sent.append(name)
            with (folder / name).open("rb") as file, store.writer(name) as writer:
                while block := file.read(_BLOCK):
                    writer.write(block)
    except BaseException:
        with contextlib.suppress(StoreError):  # what failed first is told
            store.delete(sent)
        raise
    return sum((folder / name).stat().st_size for name in names)


def bring(store: Store, folder: Path, wanted: Callable[[str], bool]) -> None:
    """Copy the objects whose names are `wanted` to files of `folder`, which is made.

    Raises:
        StoreError: the store does not give one, or this machine's disk does not take it.
    """
    for entry in [entry for entry in store.list() if wanted(entry.name)]:
        path = folder / entry.name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                for start in range(0, entry.bytes, _BLOCK):
                    file.write(store.get(entry.name, range(start, min(start + _BLOCK, entry.bytes))))
        except (EOFError, FileNotFoundError) as error:
            raise StoreError(
                f"{store.where(entry.name)}: it was replaced while it was read", "read it again"
            ) from error
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}", "free some space there, or set TMPDIR") from error
