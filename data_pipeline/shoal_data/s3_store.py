"""Shards on S3, read by range into a bounded cache of memory.

Reads are made in blocks, each with a CRC-32 of its own in the corpus's file `blocks`; a block that fails, is cut short
or does not match is asked for again with backoff. A slow object slows its reader and no other.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal_data.errors import InputError
from shoal_data.manifest import BLOCK_BYTES, Manifest

__all__ = ["S3Store", "Stalls"]

Tokens = npt.NDArray[np.unsignedinteger]
Ints = npt.NDArray[np.int64]

#: shards whose checksums are kept, 4 bytes for each MiB of them
_MOST_CHECKSUMS = 1 << 16


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
        self._checksums: dict[int, bytes] = {}
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
        for attempt in range(self._attempts):
            if attempt:
                self._again(attempt)
            listed = self._checksums_of(shard, anew=attempt > 0)
            content = self._get(name, f"bytes={begin}-{min(begin + BLOCK_BYTES, size) - 1}")
            if zlib.crc32(content) == int.from_bytes(listed[4 * block : 4 * block + 4], "little"):
                return content
        raise InputError(
            f"{self.url}/{name}: block {block} does not match its CRC-32 in the corpus's file `blocks`",
            "check with `shoal data verify` the folder that was uploaded, and upload this shard again",
        )

    def _checksums_of(self, shard: int, *, anew: bool) -> bytes:
        """CRC-32 of each block of a shard, four bytes each; asked for `anew` when they may be what was spoilt."""
        assert self._manifest is not None
        with self._lock:
            found = None if anew else self._checksums.get(shard)
        if found is None:
            first, last = (4 * int(self._first_block[at]) for at in (shard, shard + 1))
            found = self._get(self._manifest.files["blocks"]["file"], f"bytes={first}-{last - 1}")
            with self._lock:
                if len(self._checksums) >= _MOST_CHECKSUMS:
                    self._checksums.clear()
                self._checksums[shard] = found
        return found

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
