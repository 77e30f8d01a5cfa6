"""Input where it lies: a store's errors that pass are asked through, and the rest end in words."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.json
import pyarrow.parquet as pq
import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import EndpointConnectionError, ReadTimeoutError

from shoal_core.errors import StoreError
from shoal_data.retry import ATTEMPTS, MayPass, retried, waits
from shoal_data.sources import s3_files
from shoal_data.sources.filesystem import find_files, stamp_of
from shoal_data.sources.found import Ranges
from shoal_data.sources.opening import StoredFile, open_file
from shoal_data.sources.parts import plan_parts

Answer = Callable[[Any], AWSResponse | Exception | None]


@pytest.fixture
def faults(bucket: Any) -> Iterator[list[Answer]]:
    """What answers the requests of the client that reads input, where it does not give None, before S3 does."""
    answers: list[Answer] = []

    def answer(request: Any, **_: Any) -> AWSResponse | None:
        fault = next((found for one in answers if (found := one(request)) is not None), None)
        if isinstance(fault, Exception):
            raise fault
        return fault

    events = s3_files._client("s3://raw").s3.meta.events
    events.register_first("before-send.s3", answer)
    yield answers
    events.unregister("before-send.s3", answer)


def put(client: Any, **objects: bytes) -> None:
    for key, content in objects.items():
        client.put_object(Bucket="raw", Key=key, Body=content)


def refusal(status: int, code: str) -> AWSResponse:
    """An answer of S3's that is an error."""

    class Raw(io.BytesIO):
        def stream(self, **_: Any) -> Iterator[bytes]:
            yield self.read()

    body = f"<Error><Code>{code}</Code><Message>said so</Message></Error>".encode()
    return AWSResponse("http://s3", status, {"Content-Length": str(len(body))}, Raw(body))


def times(count: int, fault: AWSResponse | Exception, method: str = "GET") -> Answer:
    """`fault` the first `count` times, each time as it was."""
    left = [count]

    def answer(request: Any) -> AWSResponse | Exception | None:
        if request.method != method or not left[0]:
            return None
        left[0] -= 1
        if isinstance(fault, AWSResponse):
            fault.raw.seek(0)
        return fault

    return answer


def test_waits_grow_up_to_a_longest() -> None:
    assert list(waits(6, first=1.0, longest=5.0)) == [1.0, 2.0, 4.0, 5.0, 5.0]


def test_what_may_pass_is_asked_for_again_and_then_given_up(slept: list[float]) -> None:
    asked: list[int] = []

    def busy() -> None:
        asked.append(1)
        raise MayPass("busy")

    with pytest.raises(StoreError, match=r"file: not read after 10 attempts: busy"):
        retried("file", busy)
    assert len(asked) == ATTEMPTS
    assert all(wait / 2 <= nap <= wait for nap, wait in zip(slept, waits(), strict=True))


def test_what_will_not_pass_is_raised_at_once(slept: list[float]) -> None:
    def gone() -> None:
        raise StoreError("gone")

    with pytest.raises(StoreError, match="gone"):
        retried("file", gone)
    assert slept == []


@pytest.mark.parametrize("ahead", [0, 1, 7, 1000])
def test_a_stored_file_reads_like_any_other(ahead: int) -> None:
    content = bytes(range(256)) * 3
    asked: list[tuple[int, int]] = []

    def fetch(first: int, last: int) -> bytes:
        asked.append((first, last))
        return content[first:last]

    ours, plain = StoredFile("x", Ranges(len(content), fetch, at_once=100, ahead=ahead)), io.BytesIO(content)
    for place, size in [(0, 5), (5, 5), (10, 300), (310, 1), (700, 500), (768, 1), (3, 0), (0, -1), (2, 10), (12, 10)]:
        assert ours.seek(place) == plain.seek(place)
        assert (ours.read(size), ours.tell()) == (plain.read(size), plain.tell())
    assert all(last - first <= 100 for first, last in asked)
    assert list(io.BufferedReader(StoredFile("x", Ranges(len(content), fetch)))) == list(io.BytesIO(content))


@pytest.mark.parametrize("reads", range(2))
def test_arrow_hands_on_an_error_of_the_store_as_it_is(reads: int, slept: list[float]) -> None:
    table = pa.table({"text": ["x" * 100 + str(number) for number in range(2000)], "n": list(range(2000))})
    parquet, ipc = io.BytesIO(), io.BytesIO()
    pq.write_table(table, parquet, row_group_size=100)
    with pa.ipc.new_file(ipc, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)

    def failing(content: bytes) -> Any:
        left = [reads]

        def fetch(first: int, last: int) -> bytes:
            left[0] -= 1
            if left[0] < 0:
                raise StoreError("the store is away")
            return content[first:last]

        return StoredFile("x", Ranges(len(content), fetch))

    def groups(file: pq.ParquetFile) -> list[pa.Table]:
        return [file.read_row_group(group) for group in range(file.num_row_groups)]

    for read in (
        lambda: groups(pq.ParquetFile(failing(parquet.getvalue()))),
        lambda: groups(pq.ParquetFile(failing(parquet.getvalue()), pre_buffer=True)),
        lambda: list(pq.ParquetFile(failing(parquet.getvalue()), buffer_size=512).iter_batches(use_threads=True)),
        lambda: pa.ipc.open_file(failing(ipc.getvalue())).read_all(),
        lambda: pyarrow.json.read_json(failing(b'{"text": "x"}\n' * 400_000)),
    ):
        with pytest.raises(StoreError, match="the store is away"):
            read()


@pytest.mark.parametrize(
    "fault",
    [
        refusal(503, "SlowDown"),
        refusal(500, "InternalError"),
        refusal(429, "TooManyRequests"),
        refusal(400, "RequestTimeout"),
        ReadTimeoutError(endpoint_url="http://s3"),
        ConnectionResetError(errno.ECONNRESET, "reset"),
    ],
    ids=lambda fault: str(getattr(fault, "status_code", type(fault).__name__)),
)
def test_s3_is_asked_again(
    bucket: Any, faults: list[Answer], slept: list[float], fault: AWSResponse | Exception
) -> None:
    put(bucket, **{"a.txt": b"plain text"})
    with open_file("s3://raw/a.txt") as file:
        faults[:] = [times(4, fault)]
        assert file.read() == b"plain text"
    assert len(slept) == 4
    with open_file("s3://raw/a.txt") as file:
        faults[:] = [times(99, fault)]
        with pytest.raises(StoreError, match=r"s3://raw/a.txt: not read after"):
            file.read()


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (403, "AccessDenied", "not allowed"),
        (403, "SignatureDoesNotMatch", "credentials"),
        (400, "ExpiredToken", "credentials"),
        (403, "InvalidObjectState", "archive"),
        (404, "NoSuchKey", "no such object"),
        (404, "NoSuchBucket", "no such bucket"),
        (412, "PreconditionFailed", "changed"),
        (301, "PermanentRedirect", "region"),
    ],
)
def test_s3_is_not_asked_again_where_it_says_no(
    bucket: Any, faults: list[Answer], slept: list[float], status: int, code: str, words: str
) -> None:
    put(bucket, **{"a.txt": b"plain text"})
    with open_file("s3://raw/a.txt") as file:
        faults.append(times(99, refusal(status, code)))
        with pytest.raises(StoreError, match=words) as raised:
            file.read()
    assert not any(slept)  # botocore itself takes no time to follow a bucket to its region
    assert raised.value.remedy


def test_a_bucket_is_read_without_credentials_where_that_is_said_and_they_are_named_where_it_refuses(
    bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put_object(Bucket="raw", Key="a.txt", Body=b"plain text", ACL="public-read")
    put(bucket, **{"b.txt": b"private"})
    with monkeypatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(name)
        for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
            patch.setenv(name, os.devnull)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        with pytest.raises(StoreError, match=r"s3://raw/a.txt: no AWS credentials are found") as raised:
            open_file("s3://raw/a.txt")
        assert "AWS_NO_SIGN_REQUEST=1" in raised.value.remedy
        patch.setenv("AWS_NO_SIGN_REQUEST", "1")
        assert open_file("s3://raw/a.txt").read() == b"plain text"
        with pytest.raises(StoreError, match="without credentials") as raised:
            open_file("s3://raw/b.txt")
    assert "AWS_PROFILE" in raised.value.remedy


def test_a_store_that_never_answered_is_given_up_soon(faults: list[Answer], slept: list[float]) -> None:
    faults.append(times(99, EndpointConnectionError(endpoint_url="http://s3")))
    with pytest.raises(StoreError, match="nobody answers at"):
        find_files("s3://raw/*")
    assert len(slept) == 2


def test_the_endpoint_of_s3_comes_before_that_of_all(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:10")
    assert s3_files._client("s3://raw").s3.meta.endpoint_url == "http://127.0.0.1:10"


def test_an_object_whose_stamp_is_known_costs_one_request(bucket: Any, faults: list[Answer]) -> None:
    put(bucket, **{"a.txt": b"plain text"})
    (found,) = find_files("s3://raw/*")
    asked: list[str] = []
    faults.append(lambda request: asked.append(request.method))
    assert open_file(found.path, found.stamp).read() == b"plain text"
    assert asked == ["GET"]


def test_a_store_that_fails_while_work_is_planned_is_no_broken_file(bucket: Any, faults: list[Answer]) -> None:
    parquet = io.BytesIO()
    pq.write_table(pa.table({"text": ["x"] * 10}), parquet)
    put(bucket, **{"a.parquet": parquet.getvalue(), "b.jsonl": b'{"text": "x"}\n' * 100})
    faults.append(times(999, refusal(503, "SlowDown")))
    for name in ("a.parquet", "b.jsonl"):
        with pytest.raises(StoreError, match="503"):
            plan_parts([f"s3://raw/{name}"], "text", 10)


def test_an_object_that_changes_while_it_is_read_is_noticed(bucket: Any) -> None:
    put(bucket, **{"a.txt": b"x" * 100})
    before = stamp_of("s3://raw/a.txt")
    with open_file("s3://raw/a.txt") as file:
        put(bucket, **{"a.txt": b"y" * 100})
        with pytest.raises(StoreError, match="changed"):
            file.read()
    with open_file("s3://raw/a.txt", before) as file, pytest.raises(StoreError, match="changed"):
        file.read()
    assert stamp_of("s3://raw/a.txt") != before
    bucket.delete_object(Bucket="raw", Key="a.txt")
    with pytest.raises(StoreError, match="no such object"):
        stamp_of("s3://raw/a.txt")


def test_a_disk_is_asked_again(tmp_path: Path, slept: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    path, real, left = tmp_path / "a.txt", os.pread, [2]
    path.write_bytes(b"plain text")

    def pread(handle: int, size: int, place: int) -> bytes:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.ESTALE if left[0] else errno.EIO, "disk")
        return real(handle, min(size, 3), place)

    monkeypatch.setattr(os, "pread", pread)
    with open_file(str(path)) as file:
        assert file.read() == b"plain text"
        assert len(slept) == 2
        left[0] = 99
        file.seek(0)
        with pytest.raises(StoreError, match=r"a.txt: not read after"):
            file.read()


def test_a_file_that_vanishes_or_shrinks_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"plain text")
    with open_file(str(path)) as file:
        os.truncate(path, 3)
        with pytest.raises(StoreError, match=r"a.txt: it became shorter"):
            file.read()
    path.unlink()
    for ask in (open_file, stamp_of):
        with pytest.raises(StoreError, match=r"a.txt: it is not there any more"):
            ask(str(path))


def test_a_pipe_in_the_place_of_a_file_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(StoreError, match="no regular file"):
        open_file(str(tmp_path / "a.txt"))
