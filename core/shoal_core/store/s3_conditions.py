"""Conditional writes of S3, and whether a store keeps them: some that speak S3's language say yes and write anyway."""

from __future__ import annotations

import secrets
import threading
from functools import partial
from typing import Any

from shoal_core.errors import UserError
from shoal_core.store.s3_calls import Calls

__all__ = ["ConditionalWrites"]

#: of no object
_NO_ETAG = '"00000000000000000000000000000000"'
#: (endpoint, bucket, condition) of stores that were seen to refuse what does not meet the condition
_kept: set[tuple[str, str, str]] = set()
_looking = threading.Lock()


class ConditionalWrites:
    """Writes that are done only if a condition holds.

    Before the first one, a write is asked for that must be refused (If-Match, of an object that nobody has), and the
    first object that is created is created again, which must be refused too. A store that does either is refused: two
    could both believe that they alone wrote.

    Args:
        calls: the store's.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def create(self, place: dict[str, str], where: str, content: bytes | memoryview) -> str | None:
        """The version of an object that was put where there was none; None if there was one.

        Args:
            place: `Bucket` and `Key`.
            where: its address, for messages.

        Raises:
            UserError: the store knows no conditional writes, or takes no notice of them.
            StoreError: it does not take this one.
        """
        self._look(place, where)
        version = self._put_if(place, where, content, IfNoneMatch="*")
        if not self._has_kept(place, "IfNoneMatch"):
            if version is not None and self._put_if(place, where, content, IfNoneMatch="*") is not None:
                self._calls.ask(where, "deleting", lambda client, attempt: client.delete_object(**place))
                raise _takes_no_notice(where)
            self._keeps(place, "IfNoneMatch")
        return version

    def swap(self, place: dict[str, str], where: str, content: bytes | memoryview, version: str) -> str | None:
        """The same of one put in the place of `version`; None if another one is there, or none. Raises alike."""
        self._look(place, where)
        return self._put_if(place, where, content, IfMatch=version)

    def _look(self, place: dict[str, str], where: str) -> None:
        """See once that a condition that does not hold keeps the store from writing."""
        if self._has_kept(place, "IfMatch"):
            return
        nobody = {**place, "Key": f"{place['Key']}.{secrets.token_hex(6)}.probe"}
        if self._put_if(nobody, where, b"", IfMatch=_NO_ETAG) is not None:
            self._calls.ask(where, "deleting", lambda client, attempt: client.delete_object(**nobody))
            raise _takes_no_notice(where)
        self._keeps(place, "IfMatch")

    def _has_kept(self, place: dict[str, str], condition: str) -> bool:
        with _looking:
            return (self._calls.client().meta.endpoint_url, place["Bucket"], condition) in _kept

    def _keeps(self, place: dict[str, str], condition: str) -> None:
        with _looking:
            _kept.add((self._calls.client().meta.endpoint_url, place["Bucket"], condition))

    def _put_if(self, place: dict[str, str], where: str, content: bytes | memoryview, **condition: str) -> str | None:
        """The version that an object has now that was put on a condition; None if that does not hold."""
        body = content if isinstance(content, bytes) else bytes(content)
        request = {**place, **condition, "Body": body, "Metadata": {"shoal-write": secrets.token_hex(12)}}
        return self._calls.ask(where, "writing", partial(_put, request, where))


def _put(request: dict[str, Any], where: str, client: Any, attempt: int) -> str | None:
    """One attempt of a conditional write. An earlier one may have been done and not answered."""
    from botocore.exceptions import ClientError

    try:
        version: str = client.put_object(**request)["ETag"]
        return version
    except ClientError as error:
        code = error.response["Error"].get("Code")
        if code == "NotImplemented":
            raise UserError(f"{where}: this store knows no conditional writes{_SO_THAT}", _REMEDY) from error
        if code == "ConditionalRequestConflict":  # another's write is under way: who wins shows in a moment
            raise OSError("another writes it at this moment") from error
        if code not in ("PreconditionFailed", "412") and not (code == "NoSuchKey" and "IfMatch" in request):
            raise
        if attempt > 1:
            found = _head(client, {"Bucket": request["Bucket"], "Key": request["Key"]})
            if found is not None and found["Metadata"] == request["Metadata"]:
                return str(found["ETag"])
        return None


def _head(client: Any, place: dict[str, str]) -> dict[str, Any] | None:
    """What is known of an object; None if there is none."""
    from botocore.exceptions import ClientError

    try:
        found: dict[str, Any] = client.head_object(**place)
    except ClientError as error:
        if error.response["Error"].get("Code") in ("404", "NoSuchKey", "NotFound"):
            return None
        raise
    return found


_SO_THAT = ", so that two could both write it"
_REMEDY = "name a storage on a store that keeps them: AWS, MinIO, R2, Ceph"


def _takes_no_notice(where: str) -> UserError:
    return UserError(f"{where}: this store takes no notice of If-Match and If-None-Match{_SO_THAT}", _REMEDY)
