"""Where shards are read from: a local folder, or S3."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from shoal_data.errors import InputError
from shoal_data.local_store import LocalStore
from shoal_data.manifest import MANIFEST, Manifest
from shoal_data.s3_store import S3Store

__all__ = ["LocalStore", "S3Store", "Store", "open_store", "read_manifest"]

Tokens = npt.NDArray[np.unsignedinteger]
Ints = npt.NDArray[np.int64]


class Store(Protocol):
    """Token values by shard and range."""

    def small(self, name: str) -> bytes:
        """The whole of a small file."""

    def tokens(self, shard: int, first: int, last: int) -> Tokens:
        """Token values `first` to `last` (half open) of a shard."""

    def gather(self, shard: Ints, first: Ints, width: int) -> Tokens:
        """`width` token values from `first` on of each `shard` (both (n,)), all inside it: (n, width)."""

    def prefetch(self, shard: int, first: int, last: int) -> None:
        """Begin to read what `tokens` will be asked for."""


def open_store(path: str | Path) -> tuple[LocalStore | S3Store, Manifest, str]:
    """The store at a folder or `s3://` URL, its manifest, and the manifest's digest.

    Raises:
        InputError: no finished corpus there.
    """
    if str(path).startswith("s3://"):
        store = S3Store(str(path))
        manifest, digest = read_manifest(store)
        return store, manifest, digest
    local = LocalStore(Path(path))
    manifest, digest = Manifest.load(local.folder)
    local.attach(manifest)
    return local, manifest, digest


def read_manifest(store: S3Store) -> tuple[Manifest, str]:
    """The manifest of an S3 corpus and its digest; the store serves its shards from then on.

    Raises:
        InputError: no finished corpus there.
    """
    where = f"{store.url}/{MANIFEST}"
    try:
        manifest, digest = Manifest.parse(store.small(MANIFEST), where)
    except FileNotFoundError as error:
        raise InputError(f"{where}: no corpus here", "upload the whole folder of a finished corpus") from error
    store.attach(manifest)
    return manifest, digest
