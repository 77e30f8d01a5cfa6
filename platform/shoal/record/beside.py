"""What lies beside the record of a run: stacks of workers that were fenced, and profiles.

Each is a file in the run's directory on the node of whoever wrote it. Where a run lies on a store that may be another
directory than the controller's, so whoever wrote it brings it to the run's address, under the same name.
"""

from __future__ import annotations

from pathlib import Path

from shoal_core.store import Entry, Store, get_small, local_folder, open_store

__all__ = ["PROFILES", "STACKS", "bring_stacks", "profiles", "publish"]

STACKS, PROFILES = "stacks", "profiles"
"""Names of the folders."""
_LARGEST = 16 << 20
"""Bytes of the stacks of one worker."""
_BLOCK = 16 << 20


def publish(place: str, folder: Path, name: str) -> None:
    """Bring a file of the run's directory `folder` on this node to the run's address, if that is another.

    Raises:
        StoreError: the store does not take it. OSError: the file cannot be read.
    """
    if local_folder(place) is not None:
        return
    with (folder / name).open("rb") as file, open_store(place).writer(name) as writer:
        while block := file.read(_BLOCK):
            writer.write(block)


def bring_stacks(store: Store, folder: Path) -> None:
    """Bring the stacks at a run's address into a directory of this machine, but for those that are there.

    Raises:
        StoreError: the store does not give them. OSError: they cannot be written.
    """
    for entry in store.list(f"{STACKS}/"):
        path = folder / entry.name
        if not path.exists() and entry.bytes <= _LARGEST:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(get_small(store, entry.name, _LARGEST))


def profiles(place: str) -> list[Entry]:
    """Those that lie at a run's address, oldest first. Raises StoreError: it cannot be told."""
    return sorted(open_store(place).list(f"{PROFILES}/"), key=lambda entry: entry.modified)
