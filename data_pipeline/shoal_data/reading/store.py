"""Where a corpus lies: in a folder of this machine, or on a store. Here alone the two are told apart."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from shoal_core import store as core
from shoal_core.errors import UserError
from shoal_core.store import local_folder
from shoal_data.reading.block_cache import Stalls
from shoal_data.reading.far_store import FarStore
from shoal_data.reading.local_store import LocalStore
from shoal_data.reading.manifest import MANIFEST, Manifest
from shoal_data.reading.manifest_check import parse_manifest

__all__ = ["FarStore", "LocalStore", "Store", "open_store", "read_manifest", "store_at"]

Tokens = npt.NDArray[np.unsignedinteger]
Ints = npt.NDArray[np.int64]

#: what `Path` makes of a URL, or who forgets a slash
_HALF = re.compile(r"(s3|gs|abfss|hdfs|file):(?!//)", re.IGNORECASE)


class Store(Protocol):
    """The files of one corpus: token values by shard and range, and whatever is read whole.

    Attributes:
        address: folder or URL of the corpus, as errors name it.
        at_once: how many files are best read at the same time.
        ahead: how many blocks `prefetch` may have asked for that are not read yet, for all of them to be kept.
        stalls: how often and how long readers waited.
    """

    address: str
    at_once: int
    ahead: int
    stalls: Stalls

    def attach(self, manifest: Manifest) -> None:
        """Serve the shards of `manifest`."""

    def where(self, name: str) -> str:
        """What to call file `name` of the corpus in errors."""

    def remedy(self, name: str) -> str:
        """What mends file `name` when it is missing or not what the manifest says."""

    def no_corpus(self) -> str:
        """What to do when there is no manifest."""

    def small(self, name: str) -> bytes:
        """The whole of a small file. Raises FileNotFoundError if there is none."""

    def sizes(self, manifest: Manifest) -> dict[str, int]:
        """Bytes of each file of a shard that is there, by its name in the manifest."""

    def digest(self, name: str) -> str:
        """Hex SHA-256 of a file, with bounded memory. Raises FileNotFoundError if there is none."""

    def shard(self, index: int) -> memoryview:
        """The whole file of a shard."""

    def tokens(self, shard: int, first: int, last: int) -> Tokens:
        """Token values `first` to `last` (half open) of a shard."""

    def gather(self, shard: Ints, first: Ints, width: int) -> Tokens:
        """`width` token values from `first` on of each `shard` (both (n,)), all inside it: (n, width)."""

    def prefetch(self, shard: int, first: int, last: int) -> int:
        """Begin to read what `tokens` will be asked for. Returns how many blocks hold it; 0: none need be asked for."""


def store_at(address: str | Path) -> LocalStore | FarStore:
    """The store of the corpus at a path, or at a URL such as `s3://bucket/prefix`. Nothing is read.

    Raises:
        UserError: the URL makes no sense, or its kind of store is not known.
    """
    text = str(address)
    if _HALF.match(text):
        raise UserError(f"{text}: no address of a corpus", "give a local folder or s3://bucket/prefix")
    folder = local_folder(text)
    return FarStore(core.open_store(text)) if folder is None else LocalStore(folder)


def open_store(address: str | Path) -> tuple[LocalStore | FarStore, Manifest, str]:
    """The store of the corpus at `address`, its manifest, and the manifest's digest.

    Raises:
        UserError: no finished corpus there, or it cannot be reached.
    """
    store = store_at(address)
    return store, *read_manifest(store)


def read_manifest(store: Store) -> tuple[Manifest, str]:
    """The manifest of a corpus and its digest; the store serves its shards from then on.

    Raises:
        UserError: no finished corpus there, or its manifest is damaged.
    """
    where = store.where(MANIFEST)
    try:
        content = store.small(MANIFEST)
    except FileNotFoundError as error:
        raise UserError(f"{where}: no corpus here", store.no_corpus()) from error
    manifest, digest = parse_manifest(content, where, store.remedy(MANIFEST))
    store.attach(manifest)
    return manifest, digest
