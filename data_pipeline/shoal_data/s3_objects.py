"""Objects under an `s3://bucket/prefix`, asked for until they come whole, or given up with what the user can do."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from shoal_core.errors import StoreError
from shoal_core.s3_client import connect
from shoal_core.s3_errors import final_error, is_answer, told
from shoal_core.store.address import parsed

__all__ = ["CONNECTIONS", "Objects", "Stalls"]

Result = TypeVar("Result")

#: how often a store that never answered is asked: its address is likelier wrong than the store down
_FIRST_ATTEMPTS = 2
_CHUNK_BYTES = 1 << 20

CONNECTIONS = 16
"""At most so many requests of one corpus at once."""

_ENDPOINT = "check AWS_ENDPOINT_URL or AWS_ENDPOINT_URL_S3, AWS_DEFAULT_REGION and this machine's network"


@dataclass
class Stalls:
    """How often and how long readers waited for S3, and how many answers had to be asked for again."""

    waits: int = 0
    seconds: float = 0.0
    retries: int = 0


class Objects:
    """Reads the objects of one corpus.

    Args:
        url: `s3://bucket/prefix`, with options as any store's; the prefix is taken as it is, nothing in it is decoded.
        client: a boto3 S3 client; made from the environment if None.
        attempts: how often an object is asked for before it is given up.
        wait: called with seconds between attempts.

    Raises:
        UserError: `url` names no bucket, or there are no credentials.
    """

    def __init__(self, url: str, client: Any, attempts: int, wait: Callable[[float], None]) -> None:
        found = parsed(url)
        prefix = found.path.strip("/")
        self.url, self._bucket = f"s3://{found.root}/{prefix}".rstrip("/"), found.root
        self._root = f"{prefix}/" if prefix else ""
        self._client = client or connect(
            self.url, CONNECTIONS, endpoint=found.endpoint, region=found.options.get("region")
        )
        self._attempts, self._wait = attempts, wait
        self._answered, self._lock = False, threading.Lock()
        self.stalls = Stalls()

    def where(self, name: str) -> str:
        """The URL of an object."""
        return f"{self.url}/{name}"

    def get(self, name: str, span: range | None = None) -> tuple[bytes, int]:
        """An object, or the bytes of it in `span`, and how many bytes the whole object has.

        Raises:
            FileNotFoundError: there is none.
            EOFError: it ends before `span` begins.
            StoreError: it is not to be had.
        """
        request = {"Bucket": self._bucket, "Key": self._root + name}
        if span is not None:
            request["Range"] = f"bytes={span.start}-{span.stop - 1}"

        def ask() -> tuple[bytes, int]:
            answer = self._client.get_object(**request)
            content: bytes = answer["Body"].read()
            _whole(len(content), answer)
            return content, int(answer.get("ContentRange", "").rpartition("/")[2] or len(content))

        return self._ask(name, ask)

    def digest(self, name: str) -> str:
        """Hex SHA-256 of an object, which is never in memory whole.

        Raises:
            FileNotFoundError: there is none.
            StoreError: it is not to be had.
        """

        def ask() -> str:
            answer = self._client.get_object(Bucket=self._bucket, Key=self._root + name)
            digest, size = hashlib.sha256(), 0
            for chunk in answer["Body"].iter_chunks(_CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
            _whole(size, answer)
            return digest.hexdigest()

        return self._ask(name, ask)

    def sizes(self, start: str) -> dict[str, int]:
        """Bytes of each object whose name begins with `start`, by name: a request for each 1,000.

        Raises:
            StoreError: the bucket cannot be listed.
        """
        request = {"Bucket": self._bucket, "Prefix": self._root + start}
        found: dict[str, int] = {}
        while True:
            page = self._ask(start, partial(self._client.list_objects_v2, **request))
            found |= {entry["Key"][len(self._root) :]: int(entry["Size"]) for entry in page.get("Contents", ())}
            if not page.get("IsTruncated"):
                return found
            request["ContinuationToken"] = page["NextContinuationToken"]

    def pause(self, attempt: int) -> None:
        """Wait before attempt number `attempt` (from 1 on), and count it."""
        with self._lock:
            self.stalls.retries += 1
        self._wait(min(8.0, 0.05 * 2**attempt))

    def _ask(self, name: str, ask: Callable[[], Result]) -> Result:
        from botocore.exceptions import BotoCoreError, ClientError

        where = self.where(name)
        problem: Exception | None = None
        attempt = 0
        while attempt < (self._attempts if self._answered else _FIRST_ATTEMPTS):
            if attempt:
                self.pause(attempt)
            attempt += 1
            try:
                result = ask()
            except (BotoCoreError, ClientError, OSError) as error:
                self._answered = self._answered or is_answer(error)
                if (final := final_error(error, where, again=self._answered)) is not None:
                    raise final from error
                problem = error
            else:
                self._answered = True
                return result
        if not self._answered:
            endpoint = self._client.meta.endpoint_url
            raise StoreError(f"{where}: nobody answers at {endpoint} ({told(problem)})", _ENDPOINT) from problem
        raise StoreError(
            f"{where}: not read after {self._attempts} attempts ({told(problem)})",
            "check the network and the object store, and start again when it answers",
        ) from problem


def _whole(size: int, answer: dict[str, Any]) -> None:
    if size != answer["ContentLength"]:
        raise OSError(f"{size} of {answer['ContentLength']} bytes came")
