"""Checks that a corpus is what its manifest says, wherever it lies."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shoal_core.errors import UserError
from shoal_data.reading.manifest import Manifest
from shoal_data.reading.store import Store, open_store

__all__ = ["verify"]


def verify(address: str | Path, *, full: bool, progress: Callable[[int, int], None] | None = None) -> Manifest:
    """Check the corpus at `address`: every file is there with the size (and, if `full`, the SHA-256) of the manifest.

    Args:
        address: its folder or `s3://bucket/prefix`.
        full: read every byte; without it, only the small files are read, and sizes compared: milliseconds in a folder,
            a request for each 1,000 shards on S3.
        progress: called with (bytes checked, bytes in all) as shards are done.

    Raises:
        UserError: the first file that is missing or different, and what to do.
    """
    store, manifest, _ = open_store(address)
    for entry in manifest.files.values():
        _compare(store, entry["file"], _digest(store, entry["file"]), entry["sha256"])
    shards, sizes = manifest.shards, store.sizes(manifest)
    names = [name.decode() for name in shards.file.tolist()]
    for name, size in zip(names, shards.size.tolist(), strict=True):
        if name not in sizes:
            raise UserError(f"{store.where(name)}: this shard is missing", store.remedy(name))
        if sizes[name] != size:
            raise UserError(f"{store.where(name)}: {sizes[name]} bytes, the manifest says {size}", store.remedy(name))
    if full:
        total, done = int(shards.size.sum()), 0
        pool = ThreadPoolExecutor(store.at_once)
        try:
            for index, found in enumerate(pool.map(lambda name: _digest(store, name), names)):
                _compare(store, names[index], found, shards.sha256[index].decode())
                done += int(shards.size[index])
                if progress is not None:
                    progress(done, total)
        finally:
            pool.shutdown(cancel_futures=True)
    return manifest


def _digest(store: Store, name: str) -> str:
    try:
        return store.digest(name)
    except FileNotFoundError as error:
        raise UserError(f"{store.where(name)}: missing", store.remedy(name)) from error


def _compare(store: Store, name: str, found: str, expected: str) -> None:
    if found != expected and (found := _digest(store, name)) != expected:  # else it was spoilt on its way
        raise UserError(f"{store.where(name)}: SHA-256 is {found}, the manifest says {expected}", store.remedy(name))
