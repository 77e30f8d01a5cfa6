"""Where shards are read from: a local folder, memory-mapped, or S3, by range into a bounded local cache.

S3 reads are made in blocks, each with a CRC-32 of its own in the corpus's file `blocks`; a block that fails, is cut
short or does not match is asked for again with backoff. A slow object slows its reader and no other.
"""

from __future__ import annotations

import itertools
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

from shoal_data.errors import InputError
from shoal_data.manifest import BLOCK_BYTES, MANIFEST, Manifest
from shoal_data.verify import check_shard

__all__ = ["LocalStore", "S3Store", "Store", "open_store"]

Tokens = npt.NDArray[np.unsignedinteger]
Ints = npt.NDArray[np.int64]

#: mapped shards before all are given up and mapped anew as they are read: Linux allows a process 65,530 mappings
_MOST_MAPPED = 1 << 14


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


class _Mapped:
    """Shards that are mapped; never changed, so that threads may share it.

    All lie in one address space, so one strided view that begins at the lowest of them spans them all.

    Attributes:
        values: token values by shard.
        base: (shards,) where each begins in that view; -1 if it is not mapped.
    """

    def __init__(self, values: dict[int, Tokens], shards: int) -> None:
        self.values = values
        self.base = np.full(shards, -1, np.int64)
        self._rows: dict[int, Tokens] = {}
        if values:
            address = np.array([one.ctypes.data for one in values.values()])
            self._lowest = next(itertools.islice(values.values(), int(address.argmin()), None))
            size = self._lowest.itemsize
            self.base[list(values)] = (address - address.min()) // size
            ends = address + size * np.array([len(one) for one in values.values()])
            self._span = int(ends.max() - address.min()) // size

    def rows(self, width: int) -> Tokens:
        """The view as overlapping rows: row i is the `width` token values from place i on. (span - width + 1, width).

        Rows outside of shards must not be asked for."""
        if width not in self._rows:
            shape, stride = (max(0, self._span - width + 1), width), self._lowest.itemsize
            self._rows[width] = as_strided(self._lowest, shape, (stride, stride), writeable=False)
        return self._rows[width]


class LocalStore:
    """A corpus folder on this machine; every shard is mapped when it is first read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._manifest: Manifest | None = None
        self._mapped = _Mapped({}, 0)
        self._lock = threading.Lock()

    def attach(self, manifest: Manifest) -> None:
        """Serve the shards of `manifest`."""
        self._manifest, self._mapped = manifest, _Mapped({}, len(manifest.shards))

    def small(self, name: str) -> bytes:
        """The whole of a file in the corpus folder."""
        return (self.folder / name).read_bytes()

    def tokens(self, shard: int, first: int, last: int) -> Tokens:
        """A view into the mapped shard.

        Raises:
            InputError: the file is missing or has another size than the manifest says.
        """
        values = self._mapped.values.get(shard)
        return (self._map([shard]).values[shard] if values is None else values)[first:last]

    def gather(self, shard: Ints, first: Ints, width: int) -> Tokens:
        """Copies of stretches, made by one indexing call: a loop in Python costs more than the copying.

        Raises:
            InputError: a file is missing or has another size than the manifest says.
        """
        mapped = self._mapped
        base = mapped.base[shard]
        if base.min(initial=0) < 0:
            mapped = self._map(shard.tolist())
            base = mapped.base[shard]
        return mapped.rows(width)[base + first] if len(shard) else np.empty((0, width), self._dtype())

    def _map(self, shards: Iterable[int]) -> _Mapped:
        """What is mapped, with each of `shards` among it."""
        assert self._manifest is not None
        table = self._manifest.shards
        with self._lock:
            values = dict(self._mapped.values) if len(self._mapped.values) < _MOST_MAPPED else {}
            for shard in shards:
                if shard not in values:
                    path, size = check_shard(self.folder, table, shard), int(table.tokens[shard])
                    offset = int(table.offset[shard])
                    mapped = np.memmap(path, dtype=self._dtype(), mode="r", offset=offset, shape=(size,))
                    values[shard] = mapped.view(np.ndarray)
            self._mapped = _Mapped(values, len(table))
            return self._mapped

    def _dtype(self) -> np.dtype[Any]:
        assert self._manifest is not None
        return np.dtype(self._manifest.dtype).newbyteorder("<")

    def prefetch(self, shard: int, first: int, last: int) -> None:
        """Nothing: the page cache does it."""


@dataclass
class Stalls:
    """How often and how long readers waited for S3, and how many answers had to be asked for again."""

    waits: int = 0
    seconds: float = 0.0
    retries: int = 0


class S3Store:
    """A corpus under an `s3://bucket/prefix`, read by range.

    Args:
        url: `s3://bucket/prefix`.
        client: a boto3 S3 client; made from the environment if None.
        cache_bytes: memory for blocks; the least recently used go first.
        attempts: how often a block is asked for before the reader gives up.
        wait: called with seconds between attempts (tests pass their own).
    """

    def __init__(
        self,
        url: str,
        client: Any = None,
        cache_bytes: int = 256 << 20,
        attempts: int = 8,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        self.url, self.bucket, self.prefix = url, bucket, prefix.rstrip("/")
        self._client = client or _client()
        self._blocks: OrderedDict[tuple[int, int], Future[bytes]] = OrderedDict()
        self._room = max(4, cache_bytes // BLOCK_BYTES)
        self._attempts, self._wait = attempts, wait
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(max_workers=8, thread_name_prefix="shoal-s3")
        self._manifest: Manifest | None = None
        self.stalls = Stalls()

    def attach(self, manifest: Manifest) -> None:
        """Serve the shards of `manifest`.

        Raises:
            InputError: the manifest names no checksums of blocks.
        """
        if "blocks" not in manifest.files:
            raise InputError(f"{self.url}: files.blocks is missing", "build the corpus with `shoal data tokenize`")
        self._manifest = manifest
        counts = -(-manifest.shards.size // BLOCK_BYTES)
        self._first_block = np.concatenate(([0], np.cumsum(counts)))

    def small(self, name: str) -> bytes:
        """The whole of an object.

        Raises:
            FileNotFoundError: there is none.
        """
        return self._get(name, "")

    def tokens(self, shard: int, first: int, last: int) -> Tokens:
        """Token values from the blocks that hold them.

        Raises:
            InputError: an object cannot be had after all attempts, or has another size than the manifest says.
        """
        begin, end, dtype = self._range(shard, first, last)
        parts = []
        for block in range(begin // BLOCK_BYTES, (end - 1) // BLOCK_BYTES + 1):
            content = self._wait_for(self._ask(shard, block))
            base = block * BLOCK_BYTES
            parts.append(content[max(0, begin - base) : end - base])
        return np.frombuffer(b"".join(parts), dtype)

    def gather(self, shard: Ints, first: Ints, width: int) -> Tokens:
        """Stretches of token values; their blocks are all asked for before the first is waited for.

        Raises:
            InputError: as `tokens`.
        """
        places = list(zip(shard.tolist(), first.tolist(), strict=True))
        for one, begin in places:
            self.prefetch(one, begin, begin + width)
        assert self._manifest is not None
        found = np.empty((len(places), width), self._manifest.dtype)
        for row, (one, begin) in zip(found, places, strict=True):
            row[:] = self.tokens(one, begin, begin + width)
        return found

    def prefetch(self, shard: int, first: int, last: int) -> None:
        """Ask for the blocks in the background."""
        begin, end, _ = self._range(shard, first, last)
        for block in range(begin // BLOCK_BYTES, (end - 1) // BLOCK_BYTES + 1):
            self._ask(shard, block)

    def _range(self, shard: int, first: int, last: int) -> tuple[int, int, np.dtype[Any]]:
        assert self._manifest is not None
        dtype = np.dtype(self._manifest.dtype).newbyteorder("<")
        offset = int(self._manifest.shards.offset[shard])
        return offset + first * dtype.itemsize, offset + last * dtype.itemsize, dtype

    def _ask(self, shard: int, block: int) -> Future[bytes]:
        key = (shard, block)
        with self._lock:
            found = self._blocks.get(key)
            if found is None or (found.done() and found.exception() is not None):
                found = self._pool.submit(self._read_block, shard, block)
                self._blocks[key] = found
            self._blocks.move_to_end(key)
            while len(self._blocks) > self._room:
                self._blocks.popitem(last=False)
        return found

    def _wait_for(self, block: Future[bytes]) -> bytes:
        if block.done():
            return block.result()
        start = time.monotonic()
        try:
            return block.result()
        finally:
            self.stalls.waits += 1
            self.stalls.seconds += time.monotonic() - start

    def _read_block(self, shard: int, block: int) -> bytes:
        assert self._manifest is not None
        name = self._manifest.shards.file[shard].decode()
        size = int(self._manifest.shards.size[shard])
        begin = block * BLOCK_BYTES
        at = 4 * (int(self._first_block[shard]) + block)
        for attempt in range(self._attempts):
            if attempt:
                self._again(attempt)
            listed = self._get(self._manifest.files["blocks"]["file"], f"bytes={at}-{at + 3}")
            content = self._get(name, f"bytes={begin}-{min(begin + BLOCK_BYTES, size) - 1}")
            if zlib.crc32(content) == int.from_bytes(listed, "little"):
                return content
        raise InputError(
            f"{self.url}/{name}: block {block} does not match its CRC-32 in the corpus's file `blocks`",
            "check with `shoal data verify` the folder that was uploaded, and upload this shard again",
        )

    def _again(self, attempt: int) -> None:
        with self._lock:
            self.stalls.retries += 1
        self._wait(min(8.0, 0.05 * 2**attempt))

    def _get(self, name: str, span: str) -> bytes:
        """An object, or a range of it, asked for until it arrives whole."""
        from botocore.exceptions import BotoCoreError, ClientError

        where = f"{self.url}/{name}"
        request = {"Bucket": self.bucket, "Key": f"{self.prefix}/{name}" if self.prefix else name}
        if span:
            request["Range"] = span
        problem: Exception | None = None
        for attempt in range(self._attempts):
            if attempt:
                self._again(attempt)
            try:
                answer = self._client.get_object(**request)
                content: bytes = answer["Body"].read()
                if len(content) == answer["ContentLength"]:
                    return content
                problem = OSError(f"{len(content)} of {answer['ContentLength']} bytes came")
            except ClientError as error:
                code = str(error.response.get("Error", {}).get("Code"))
                if code in ("NoSuchKey", "404", "NoSuchBucket"):
                    raise FileNotFoundError(where) from error
                if code in ("AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
                    raise InputError(
                        f"{where}: {error}", "check the AWS credentials and the bucket's policy"
                    ) from error
                problem = error
            except (BotoCoreError, OSError) as error:
                problem = error
        raise InputError(
            f"{where}: not read after {self._attempts} attempts ({problem})",
            "check the network, the object store and, with `shoal data verify`, the folder that was uploaded",
        ) from problem


def _client() -> Any:
    import boto3
    from botocore.config import Config

    # Retries are counted here, so that they show; a request that hangs is given up after a minute.
    config = Config(retries={"total_max_attempts": 1}, connect_timeout=10, read_timeout=60, max_pool_connections=16)
    return boto3.client("s3", config=config)


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
