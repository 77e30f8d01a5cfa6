"""A store on S3, or on what speaks its language: AWS, MinIO, Ceph, R2.

`create` and `swap` are conditional writes (`If-None-Match`, `If-Match`), which the store must keep. Large objects go
in parts and come in ranges, several at once.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any

from shoal_core.errors import StoreError
from shoal_core.store.address import join
from shoal_core.store.base import Entry, Stat, checked_name, is_name
from shoal_core.store.s3_calls import CONNECTIONS, Calls
from shoal_core.store.s3_conditions import ConditionalWrites
from shoal_core.store.s3_writer import S3Writer

__all__ = ["S3Store"]

#: bytes of the ranges into which reads are split
_RANGE_BYTES = 16 << 20
#: objects that one request deletes
_BATCH = 1000


class S3Store:
    """The objects under `s3://bucket/prefix`. The prefix and names are taken as they are, nothing in them is decoded.

    Args:
        address: as the user wrote it, without secrets.
        bucket, prefix: what it names.
        calls: how the store is asked.
    """

    conditional = True

    def __init__(self, address: str, bucket: str, prefix: str, calls: Calls) -> None:
        self.address, self._bucket, self._calls = address, bucket, calls
        self._conditional = ConditionalWrites(calls)
        self._root = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._lock = threading.Lock()
        self._threads: Executor | None = None

    def under(self, name: str) -> S3Store:
        """The store of what lies under `name` here, asked by the same client."""
        return S3Store(join(self.address, name), self._bucket, f"{self._root}{name}", self._calls)

    def where(self, name: str) -> str:
        return f"s3://{self._bucket}/{self._root}{name}"

    def put(self, name: str, content: bytes | memoryview) -> None:
        with self.writer(name) as writer:
            writer.write(content)

    def create(self, name: str, content: bytes | memoryview) -> bool:
        return self._conditional.create(self._place(name), self.where(name), content) is not None

    def swap(self, name: str, content: bytes | memoryview, version: str | None) -> str | None:
        if version is None:
            return self._conditional.create(self._place(name), self.where(name), content)
        return self._conditional.swap(self._place(name), self.where(name), content, version)

    def get(self, name: str, span: range | None = None) -> bytes:
        if span is not None:
            content = bytearray(len(span))
            self.read_into(name, span.start, memoryview(content))
            return bytes(content)
        request = {**self._place(name), "Range": f"bytes=0-{_RANGE_BYTES - 1}"}

        def ask(client: Any, attempt: int) -> tuple[bytes, int, str]:
            answer = client.get_object(**request)
            first: bytes = answer["Body"].read()
            return first, int(answer.get("ContentRange", "").rpartition("/")[2] or len(first)), answer["ETag"]

        try:
            first, size, etag = self._calls.ask(self.where(name), "reading", ask)
        except EOFError:  # no range of an empty object can be had
            return b""
        if size == len(first):
            return first
        content = bytearray(size)
        content[: len(first)] = first
        self._fill(name, len(first), memoryview(content)[len(first) :], etag)
        return bytes(content)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        if len(view := buffer.cast("B")):
            self._fill(name, offset, view)
        else:
            self.stat(name)

    def stat(self, name: str) -> Stat:
        place = self._place(name)
        try:
            answer = self._calls.ask(self.where(name), "reading", lambda client, attempt: client.head_object(**place))
        except FileNotFoundError:  # which says no more, for want of a body: it may be the bucket that is missing
            request = {"Bucket": self._bucket, "Prefix": place["Key"], "MaxKeys": 1}
            self._calls.ask(self.where(name), "reading", lambda client, attempt: client.list_objects_v2(**request))
            raise
        return Stat(int(answer["ContentLength"]), answer["ETag"], answer["LastModified"].timestamp())

    def list(self, prefix: str = "") -> Iterator[Entry]:
        for page in self._pages(prefix):
            for found in page.get("Contents", ()):
                name = found["Key"][len(self._root) :]
                if is_name(name):  # a name that ends in `/` is one that consoles make for folders
                    yield Entry(name, int(found["Size"]), found["LastModified"].timestamp())

    def folders(self, within: str = "") -> Sequence[str]:
        start = f"{within}/" if within else ""
        names = (
            found["Prefix"][len(self._root) + len(start) : -1]
            for page in self._pages(start, Delimiter="/")
            for found in page.get("CommonPrefixes", ())
        )
        return sorted(filter(is_name, names))

    def delete(self, names: Iterable[str]) -> None:
        left = iter(names)
        while batch := [self._place(name)["Key"] for name in islice(left, _BATCH)]:
            self._delete(batch)

    def drop_unfinished(self, folder: str) -> int:
        """See `Store`: uploads in parts that were not completed."""
        prefix = f"{self._place(folder)['Key']}/" if folder else self._root
        where, request, count = self.where(folder), {"Bucket": self._bucket, "Prefix": prefix}, 0
        while True:
            page = self._calls.ask(where, "reading", _uploads(request))
            for upload in page.get("Uploads", ()):
                count += 1
                with contextlib.suppress(FileNotFoundError):  # it was ended meanwhile
                    self._calls.ask(where, "deleting", _abort(self._bucket, upload))
            if not page.get("IsTruncated"):
                return count
            request |= {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def writer(self, name: str) -> S3Writer:
        return S3Writer(self._calls, self._pool(), self._place(name), self.where(name))

    def _place(self, name: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._root + checked_name(name)}

    def _pool(self) -> Executor:
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(CONNECTIONS // 2, thread_name_prefix="s3")
            return self._threads

    def _fill(self, name: str, offset: int, view: memoryview, etag: str = "") -> None:
        """Read ranges into `view` at once, all of one version of the object: of `etag`, if that is given."""
        starts = range(0, len(view), _RANGE_BYTES)
        parts = [(offset + start, view[start : start + _RANGE_BYTES]) for start in starts]
        if len(parts) == 1:
            found = {self._range(name, *parts[0])}
        else:
            reads: list[Future[str]] = [self._pool().submit(self._range, name, *part) for part in parts]
            try:
                found = {read.result() for read in reads}
            finally:
                for read in reads:
                    read.cancel()
                wait(reads)  # nobody writes into the buffer once this is over
        if etag:
            found.add(etag)
        if len(found) > 1:
            raise StoreError(f"{self.where(name)}: it was replaced while it was read", "read it again")

    def _range(self, name: str, offset: int, view: memoryview) -> str:
        """Read one range; the version that it is of."""
        end = offset + len(view)
        request = {**self._place(name), "Range": f"bytes={offset}-{end - 1}"}

        def ask(client: Any, attempt: int) -> str:
            answer = client.get_object(**request)
            size = int(answer.get("ContentRange", "").rpartition("/")[2] or answer["ContentLength"])
            if size < end:
                raise EOFError(f"{self.where(name)}: it ends at byte {size}, before {end}")
            if answer["ContentLength"] != len(view):
                raise OSError(f"{answer['ContentLength']} bytes came for a range of {len(view)}")
            done = 0
            while done < len(view):
                if not (count := answer["Body"].readinto(view[done:])):
                    raise OSError(f"{done} of {len(view)} bytes came")
                done += count
            etag: str = answer["ETag"]
            return etag

        return self._calls.ask(self.where(name), "reading", ask)

    def _pages(self, start: str, **options: str) -> Iterator[dict[str, Any]]:
        request = {"Bucket": self._bucket, "Prefix": self._root + start, **options}
        while True:
            page = self._calls.ask(self.where(start), "reading", _listing(request))
            yield page
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def _delete(self, keys: Sequence[str]) -> None:
        objects = {"Objects": [{"Key": key} for key in keys], "Quiet": True}

        def ask(client: Any, attempt: int) -> None:
            from botocore.exceptions import ClientError

            answer = client.delete_objects(Bucket=self._bucket, Delete=objects)
            if errors := answer.get("Errors"):
                objects["Objects"] = [{"Key": one["Key"]} for one in errors]
                status = {"HTTPStatusCode": 403 if errors[0].get("Code") == "AccessDenied" else 500}
                raise ClientError({"Error": errors[0], "ResponseMetadata": status}, "DeleteObjects")

        first = self.where(keys[0][len(self._root) :])
        self._calls.ask(first if len(keys) == 1 else f"{first} and {len(keys) - 1} more", "deleting", ask)


def _listing(request: dict[str, str]) -> Callable[[Any, int], dict[str, Any]]:
    def ask(client: Any, attempt: int) -> dict[str, Any]:
        page: dict[str, Any] = client.list_objects_v2(**request)
        return page

    return ask


def _uploads(request: dict[str, str]) -> Callable[[Any, int], dict[str, Any]]:
    def ask(client: Any, attempt: int) -> dict[str, Any]:
        page: dict[str, Any] = client.list_multipart_uploads(**request)
        return page

    return ask


def _abort(bucket: str, upload: dict[str, Any]) -> Callable[[Any, int], object]:
    def ask(client: Any, attempt: int) -> object:
        return client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])

    return ask
