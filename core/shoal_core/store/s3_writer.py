"""An object of S3 that is written as a stream: in parts, several at once."""

from __future__ import annotations

import contextlib
import secrets
from concurrent.futures import Executor, Future, wait
from functools import partial
from typing import Any

from shoal_core.errors import StoreError
from shoal_core.store.base import Writer
from shoal_core.store.s3_calls import Calls

__all__ = ["PART_BYTES", "S3Writer"]

PART_BYTES = 16 << 20
"""Bytes of each part but the last; some stores want all of one size."""
_MOST_PARTS = 10_000
#: parts on their way at once: with the one being filled, the memory that a writer takes
_AT_ONCE = 8


class S3Writer(Writer):
    """Sends parts while it is written to; an object of less than one part is put as a whole at the end. Memory: nine
    parts. An upload that dies with its process takes room in the bucket, unseen, until the bucket's rule for unfinished
    uploads removes it.

    Args:
        calls: the store's.
        pool: its threads.
        place: `Bucket` and `Key`.
        where: the object's address, for messages.
    """

    def __init__(self, calls: Calls, pool: Executor, place: dict[str, str], where: str) -> None:
        self._calls, self._pool, self._place, self._where = calls, pool, place, where
        #: kept with the object: by it an upload is known again whose completion was done but not answered
        self._token = {"shoal-write": secrets.token_hex(12)}
        self._buffer = bytearray()
        self._upload = ""
        self._parts: list[Future[str]] = []
        self._ended = False

    def write(self, content: bytes | memoryview) -> None:
        view = memoryview(content).cast("B")
        try:
            while view:
                room = PART_BYTES - len(self._buffer)
                self._buffer += view[:room]
                view = view[room:]
                if len(self._buffer) == PART_BYTES:
                    self._send()
        except BaseException:
            self.abort()
            raise

    def close(self) -> None:
        if self._ended:
            return
        try:
            if self._upload:
                if self._buffer:
                    self._send()
                etags = [part.result() for part in self._parts]
                parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)]
                self._calls.ask(self._where, "writing", partial(self._complete, parts))
            else:
                request = {**self._place, "Body": self._buffer, "Metadata": self._token}
                self._calls.ask(self._where, "writing", lambda client, attempt: client.put_object(**request))
        except BaseException:
            self.abort()
            raise
        self._end()

    def abort(self) -> None:
        if self._ended:
            return
        upload = self._upload
        for part in self._parts:
            part.cancel()
        wait(self._parts)  # a part that comes after the end would stay
        self._end()
        if upload:
            request = {**self._place, "UploadId": upload}
            with contextlib.suppress(StoreError, FileNotFoundError):  # that it failed is told already
                self._calls.ask(
                    self._where, "writing", lambda client, attempt: client.abort_multipart_upload(**request)
                )

    def _send(self) -> None:
        """Put the buffer on its way as the next part; waits while too many are, and raises what went wrong with any."""
        if not self._upload:
            request = {**self._place, "Metadata": self._token}
            answer = self._calls.ask(
                self._where, "writing", lambda client, attempt: client.create_multipart_upload(**request)
            )
            self._upload = answer["UploadId"]
        if len(self._parts) == _MOST_PARTS:
            most = PART_BYTES * _MOST_PARTS
            raise StoreError(f"{self._where}: it is larger than {most:,} bytes", "write it as several objects")
        if len(self._parts) >= _AT_ONCE:
            self._parts[-_AT_ONCE].result()
        content, self._buffer = self._buffer, bytearray()
        self._parts.append(self._pool.submit(self._send_part, len(self._parts) + 1, content))

    def _send_part(self, number: int, content: bytearray) -> str:
        request = {**self._place, "UploadId": self._upload, "PartNumber": number, "Body": content}
        etag: str = self._calls.ask(
            self._where, "writing", lambda client, attempt: client.upload_part(**request)["ETag"]
        )
        return etag

    def _complete(self, parts: list[dict[str, Any]], client: Any, attempt: int) -> None:
        from botocore.exceptions import ClientError

        try:
            client.complete_multipart_upload(**self._place, UploadId=self._upload, MultipartUpload={"Parts": parts})
        except ClientError as error:
            if attempt == 1 or error.response["Error"].get("Code") != "NoSuchUpload":
                raise
            if client.head_object(**self._place)["Metadata"] != self._token:  # else it was done, and not answered
                raise

    def _end(self) -> None:
        self._ended = True
        self._buffer = bytearray()
        self._parts = []
