"""Input files on S3."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from shoal_core.errors import StoreError, UserError
from shoal_core.s3_client import connect
from shoal_core.s3_errors import final_error
from shoal_data.retry import MayPass, retried
from shoal_data.sources.found import Found, Listing, Ranges
from shoal_data.sources.globs import fixed_part, has_magic, match_path

__all__ = ["find", "ranges", "stamp"]

Result = TypeVar("Result")

_AHEAD = 8 << 20
_CONNECTIONS = 64
_FIRST_ATTEMPTS = 3


def find(url: str, said: Callable[[int], None]) -> Listing:
    """The objects that `url`, a glob, names; `said` is called with how many more keys were looked at.

    Raises:
        UserError: there is no bucket in it.
        StoreError: the bucket cannot be listed.
    """
    bucket, pattern = _split(url)
    if not bucket or has_magic(bucket):
        raise UserError(f"--input {url!r}: it names no bucket", "write s3://bucket/key")
    if not has_magic(pattern):
        return _find_one(url, said)
    listing = Listing()
    wanted, prefix = pattern.split("/"), fixed_part(pattern)
    # Where only the last name is open, what lies deeper need not be listed.
    delimiter = "" if "/" in pattern[len(prefix) :] or "**" in wanted else "/"
    for entry in _entries(url, prefix, delimiter, said):
        if "Prefix" in entry:
            folder = entry["Prefix"].rstrip("/")
            if match_path(folder.split("/"), wanted) == "taken":
                listing.folders.append(f"s3://{bucket}/{folder}")
        elif entry["Key"] == pattern:  # as it is written, whatever is in it
            return Listing([_found(url, entry)])
        elif not entry["Key"].endswith("/"):
            match = match_path(entry["Key"].split("/"), wanted)
            listing.passed += match == "passed"
            if match == "taken":
                listing.files.append(_found(f"s3://{bucket}/{entry['Key']}", entry))
    listing.files.sort(key=lambda found: found.path)
    return listing


def stamp(url: str) -> str:
    """The stamp of an object as it is now.

    Raises:
        StoreError: it cannot be told.
    """
    return _ask_for(url).stamp


def ranges(url: str, stamp: str = "") -> Ranges:
    """How an object is read, whose content stays that of `stamp`, or if that is not known, of now.

    Raises:
        StoreError: it cannot be read, or it has changed.
    """
    size, _, etag = (stamp or _ask_for(url).stamp).partition(":")
    bucket, key = _split(url)

    def fetch(first: int, last: int) -> bytes:
        request = {"Bucket": bucket, "Key": key, "Range": f"bytes={first}-{last - 1}"}
        if etag.startswith('"'):
            request["IfMatch"] = etag
        answer, content = _call(url, partial(_get, request))
        if etag.startswith('"') and answer.get("ETag", etag) != etag:  # not all stores know conditions
            raise _changed(url)
        return content

    return Ranges(int(size), fetch, ahead=_AHEAD)


def _get(request: dict[str, str], client: Any) -> tuple[dict[str, Any], bytes]:
    answer = client.get_object(**request)
    return answer, answer["Body"].read()


def _changed(url: str) -> StoreError:
    return StoreError(f"{url}: it has changed since it was found", "run again with a new --out when nobody writes it")


def _find_one(url: str, said: Callable[[int], None]) -> Listing:
    """The object that a URL without anything to expand names, which need not be in a bucket that may be listed."""
    _, key = _split(url)
    listing = Listing()
    if key and not key.endswith("/"):
        try:
            return Listing([_ask_for(url)])
        except _Absent:
            pass
    folder = f"{key.rstrip('/')}/" if key else ""
    if next(_entries(url, folder, "/", said), None):
        listing.folders.append(url.rstrip("/"))
    return listing


def _split(url: str) -> tuple[str, str]:
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return bucket, key


def _found(url: str, entry: dict[str, Any]) -> Found:
    """From an entry of a listing, or the answer about one object."""
    size = int(entry.get("Size", entry.get("ContentLength", 0)))
    mark = entry.get("ETag") or int(entry["LastModified"].timestamp())
    return Found(url, size, f"{size}:{mark}", url)


def _ask_for(url: str) -> Found:
    bucket, key = _split(url)
    ask = retried(url, lambda: _call(url, lambda client: client.head_object(Bucket=bucket, Key=key)))
    return _found(url, ask)


def _entries(url: str, prefix: str, delimiter: str, said: Callable[[int], None]) -> Iterator[dict[str, Any]]:
    """Entries under a prefix, those of objects with a `Key` and those of folders with a `Prefix`."""
    request = {"Bucket": _split(url)[0], "Prefix": prefix, "Delimiter": delimiter}
    while True:
        page = retried(url, lambda: _call(url, lambda client: client.list_objects_v2(**request)))
        entries = [*page.get("Contents", ()), *page.get("CommonPrefixes", ())]
        said(len(entries))
        yield from entries
        if not page.get("IsTruncated"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]


@dataclass
class _Client:
    """A client of boto3's.

    Attributes:
        s3: the client.
        unanswered: how often nobody answered before the first answer; -1 from then on.
    """

    s3: Any
    unanswered: int = 0


_clients: dict[tuple[tuple[str, str], ...], _Client] = {}
_lock = threading.Lock()


def _client(url: str) -> _Client:
    """The client of this process for the environment as it is now. `url`: what it is wanted for."""
    environment = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    with _lock:
        if environment not in _clients:
            _clients[environment] = _Client(connect(url, _CONNECTIONS))
        return _clients[environment]


class _Absent(StoreError):
    """There is no such object."""


def _call(url: str, ask: Callable[[Any], Result]) -> Result:
    """One request.

    Raises:
        MayPass: another answer may come.
        StoreError: none will.
    """
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    client = _client(url)
    try:
        result = ask(client.s3)
    except (BotoCoreError, ClientError, ResponseParserError, OSError) as error:
        raise _explained(url, error, client) from error
    client.unanswered = -1
    return result


def _explained(url: str, error: Exception, client: _Client) -> Exception:
    """What to raise for an error of a request: MayPass or StoreError."""
    from botocore.exceptions import ConnectTimeoutError, EndpointConnectionError, ProxyConnectionError

    if not isinstance(error, EndpointConnectionError | ConnectTimeoutError | ProxyConnectionError):
        client.unanswered = -1
    elif client.unanswered >= 0:
        client.unanswered += 1
        if client.unanswered >= _FIRST_ATTEMPTS:  # its address is likelier wrong than it down
            where = client.s3.meta.endpoint_url
            remedy = "check the network, AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, and AWS_DEFAULT_REGION"
            return StoreError(f"{url}: nobody answers at {where}", remedy)
    answer: dict[str, Any] = getattr(error, "response", None) or {}
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    code = str(answer.get("Error", {}).get("Code"))
    if status in (412, 416):
        return _changed(url)
    if code == "InvalidObjectState":
        return StoreError(f"{url}: the object is archived", "restore it from the archive first")
    final = final_error(error, url, again=True)
    if isinstance(final, FileNotFoundError):
        return _Absent(f"{url}: no such object", "put it back, or choose a new --out and run again")
    if final is None:
        return MayPass(f"the store answers {status} {code}" if status else str(error))
    return final
