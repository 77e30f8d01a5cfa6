"""Stores that fail: busy, silent, forbidden, full; answers that are lost. What passes is waited for, within bounds."""

from __future__ import annotations

import errno
import io
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ConnectionClosedError, EndpointConnectionError, ReadTimeoutError

from shoal_core.errors import StoreError, UserError
from shoal_core.store import open_store
from shoal_core.store.s3 import S3Store
from shoal_core.store.s3_calls import Calls
from shoal_core.store.s3_writer import PART_BYTES
from tests.support.s3_server import account

Fault = AWSResponse | Exception


class Stand:
    """A store on S3 and the faults of its coming requests.

    Attributes:
        slept: seconds between attempts, which nobody sleeps; they are all that passes on the store's clock.
        faults: what comes in place of an answer, each once.
        hits: part of the method and path of the requests that they meet.
    """

    def __init__(self, deadline: float = 60.0) -> None:
        self.slept: list[float] = []
        self.faults: list[Fault] = []
        self.hits = ""
        self.prefix = secrets.token_hex(4)
        calls = Calls("s3://runs", deadline=deadline, sleep=self.slept.append, clock=lambda: sum(self.slept))
        self.store = S3Store(f"s3://runs/{self.prefix}", "runs", self.prefix, calls)
        self.client = calls.client()
        self.client.meta.events.register_first("before-send.s3", self._spoil)

    def _spoil(self, request: Any, **_: Any) -> AWSResponse | None:
        if not self.faults or self.hits not in f"{request.method} {request.url}":
            return None
        fault = self.faults.pop(0)
        if isinstance(fault, AWSResponse):
            return fault
        raise fault

    def lose(self, method: str) -> None:
        """The next call of a method is done, and its answer lost."""
        real = getattr(self.client, method)

        def call(**request: Any) -> Any:
            setattr(self.client, method, real)
            real(**request)
            raise ConnectionClosedError(endpoint_url="http://s3")

        setattr(self.client, method, call)


@pytest.fixture
def stand(s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stand:
    account(monkeypatch, s3_endpoint, tmp_path)
    boto3.client("s3").create_bucket(Bucket="runs")
    stand = Stand()
    assert stand.store.create("old", b"content")  # the store is seen to keep conditions before any fault comes
    return stand


class _Raw(io.BytesIO):
    def stream(self, **_: Any) -> Iterator[bytes]:
        yield self.getvalue()


def refusal(status: int, code: str) -> AWSResponse:
    body = f"<Error><Code>{code}</Code><Message>the store's words</Message></Error>".encode()
    return AWSResponse("http://s3", status, {"Content-Length": str(len(body))}, _Raw(body))


WORK: dict[str, Callable[[S3Store], Any]] = {
    "get": lambda store: store.get("old"),
    "stat": lambda store: store.stat("old"),
    "list": lambda store: list(store.list()),
    "put": lambda store: store.put("new", b"x"),
    "create": lambda store: store.create("new", b"x"),
    "swap": lambda store: store.swap("old", b"x", store.stat("old").version),
    "delete": lambda store: store.delete(["old"]),
    "stream": lambda store: _stream(store, PART_BYTES + 1),
}


def _stream(store: S3Store, size: int) -> None:
    with store.writer("new") as writer:
        writer.write(bytes(size))


@pytest.mark.parametrize("work", WORK)
def test_a_busy_store_is_asked_again_ever_later(stand: Stand, work: str) -> None:
    stand.faults = [
        refusal(503, "SlowDown"),
        refusal(500, "InternalError"),
        ReadTimeoutError(endpoint_url="http://s3"),
    ]
    assert WORK[work](stand.store) is not False
    assert len(stand.slept) == 3
    if work != "swap":  # which asks for two things
        assert stand.slept[0] < stand.slept[1] * 2 < stand.slept[2] * 4


@pytest.mark.parametrize("work", WORK)
def test_a_store_that_stays_busy_is_given_up_by_name(stand: Stand, work: str) -> None:
    stand.faults = [refusal(503, "SlowDown") for _ in range(500)]
    with pytest.raises(StoreError, match=rf"s3://runs/{stand.prefix}/.*failed for .*SlowDown: the store's words"):
        WORK[work](stand.store)
    assert 40 < sum(stand.slept) < 300
    stand.faults = []
    assert stand.store.get("old") == b"content"
    assert [entry.name for entry in stand.store.list()] == ["old"]


REFUSALS = [
    ("put", refusal(403, "AccessDenied"), "writing is not allowed", "s3:PutObject"),
    ("get", refusal(403, "AccessDenied"), "reading is not allowed", "s3:GetObject"),
    ("delete", refusal(403, "AccessDenied"), "deleting is not allowed", "s3:DeleteObject"),
    ("stream", refusal(403, "InvalidAccessKeyId"), "not accepted", "AWS_ACCESS_KEY_ID"),
    ("create", refusal(403, "SignatureDoesNotMatch"), "not accepted", "AWS_ACCESS_KEY_ID"),
    ("list", refusal(404, "NoSuchBucket"), "no such bucket", "address"),
    ("swap", refusal(501, "NotImplemented"), "no conditional writes", "storage"),
]


@pytest.mark.parametrize(("work", "answer", "said", "remedy"), REFUSALS)
def test_a_refusal_is_told_at_once_with_its_remedy(
    stand: Stand, work: str, answer: AWSResponse, said: str, remedy: str
) -> None:
    stand.faults, stand.hits = [answer], "PUT" if work == "swap" else ""
    with pytest.raises(UserError, match=said) as error:
        WORK[work](stand.store)
    assert f"s3://runs/{stand.prefix}/" in error.value.problem
    assert remedy in error.value.remedy
    assert not stand.slept


@pytest.mark.parametrize("work", WORK)
def test_credentials_that_were_replaced_are_found_again(
    stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    """Of a long run's `~/.aws/credentials`: what is refused by the old ones is done with the new, once."""
    file = tmp_path / "credentials"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))

    def written(key: str) -> None:
        file.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {key}\n")

    written("old")
    long = Stand()
    assert long.store.create("old", b"content")
    written("new")
    long.faults = [refusal(403, "ExpiredToken") for _ in range(99)]
    assert WORK[work](long.store) is not False
    assert not long.slept
    long.store.put("later", b"x")
    assert len(long.faults) == 98

    fixed = Stand()
    fixed.faults = [refusal(403, "ExpiredToken")]
    with pytest.raises(StoreError, match="not accepted"):
        WORK[work](fixed.store)


def test_a_missing_bucket_is_no_missing_object(stand: Stand) -> None:
    store = open_store("s3://nowhere/a")
    for work in (store.stat, store.get, lambda name: store.put(name, b"")):
        with pytest.raises(StoreError, match=r"s3://nowhere/a/b: there is no such bucket"):
            work("b")


def test_no_credentials_are_told_before_anything_is_asked(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreError, match="no AWS credentials are found"):
        open_store("s3://runs/a").get("b")


def test_nobody_there_is_told_after_two_attempts(stand: Stand) -> None:
    fresh = Stand()
    fresh.faults = [EndpointConnectionError(endpoint_url="http://s3") for _ in range(9)]
    with pytest.raises(StoreError, match=r"nobody answers at http://127") as error:
        fresh.store.get("old")
    assert "AWS_ENDPOINT_URL" in error.value.remedy
    assert len(fresh.slept) == 1


def test_a_store_that_takes_requests_and_says_nothing_is_given_up(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(StoreError, match="reading failed for"):
            Stand(deadline=0.3).store.get("old")  # which gives up by the waits that it would make


def test_a_lost_answer_is_no_lost_race(stand: Stand) -> None:
    stand.lose("put_object")
    assert stand.store.create("new", b"mine")
    stand.lose("put_object")
    assert stand.store.swap("new", b"next", stand.store.stat("new").version) == stand.store.stat("new").version
    stand.lose("put_object")
    assert not stand.store.create("new", b"late")
    assert stand.store.get("new") == b"next"
    stand.lose("complete_multipart_upload")
    _stream(stand.store, PART_BYTES + 1)
    assert stand.store.stat("new").bytes == PART_BYTES + 1


@pytest.mark.parametrize("ignored", [{"If-Match"}, {"If-None-Match"}, {"If-Match", "If-None-Match"}])
def test_a_store_that_writes_whatever_the_condition_is_refused_and_nothing_is_left(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, ignored: set[str]
) -> None:
    monkeypatch.setattr("shoal_core.store.s3_conditions._kept", set())

    def drop(request: Any, **_: Any) -> None:
        for header in ignored:
            del request.headers[header]

    stand.client.meta.events.register_first("before-sign.s3.PutObject", drop)
    for work in [stand.store.create, lambda name, content: stand.store.swap(name, content, None)]:
        with pytest.raises(UserError, match=rf"s3://runs/{stand.prefix}/new: .*no notice") as error:
            work("new", b"x")
        assert "MinIO" in error.value.remedy
    if "If-Match" in ignored:
        with pytest.raises(UserError, match="no notice"):
            stand.store.swap("old", b"x", "other")
    assert [entry.name for entry in stand.store.list()] == ["old"]
    assert stand.store.get("old") == b"content"


def test_that_a_store_keeps_conditions_is_seen_once(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal_core.store.s3_conditions._kept", set())
    asked: list[str] = []
    stand.client.meta.events.register_first("before-send.s3", lambda request, **_: asked.append(request.method))
    assert not stand.store.create("old", b"x")
    assert len(asked) == 2  # the probe, which writes nothing, and the write that was refused
    assert stand.store.create("new", b"x")
    assert Stand().store.create("new", b"x")
    assert len(asked) == 3
    assert sorted(entry.name for entry in stand.store.list()) == ["new", "old"]


def test_a_part_that_is_refused_leaves_nothing(stand: Stand) -> None:
    stand.faults, stand.hits = [refusal(403, "AccessDenied")], "partNumber=2"
    with pytest.raises(StoreError, match="writing is not allowed"):
        _stream(stand.store, 9 * PART_BYTES)
    assert [entry.name for entry in stand.store.list()] == ["old"]
    assert "Uploads" not in stand.client.list_multipart_uploads(Bucket="runs")


def test_an_object_that_is_replaced_while_it_is_read_is_not_mixed(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand.store.put("big", bytes(2 * PART_BYTES))
    real = stand.client.get_object
    asked: list[str] = []

    def get(**request: Any) -> Any:
        asked.append(request["Range"])
        if len(asked) == 2:
            boto3.client("s3").put_object(Bucket="runs", Key=f"{stand.prefix}/big", Body=b"1" * 2 * PART_BYTES)
        return real(**request)

    monkeypatch.setattr(stand.client, "get_object", get)
    with pytest.raises(StoreError, match="replaced while it was read"):
        stand.store.get("big")
    assert stand.store.get("big") == b"1" * 2 * PART_BYTES


def test_a_deletion_that_is_refused_for_one_object_names_the_store(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = stand.client.delete_objects
    answers = [{"Errors": [{"Key": f"{stand.prefix}/old", "Code": "InternalError", "Message": "later"}]}]
    wanted: list[Any] = []

    def delete(**request: Any) -> Any:
        wanted.append([one["Key"] for one in request["Delete"]["Objects"]])
        return answers.pop() if answers else real(**request)

    monkeypatch.setattr(stand.client, "delete_objects", delete)
    stand.store.delete(["old", "other"])
    assert wanted == [[f"{stand.prefix}/old", f"{stand.prefix}/other"], [f"{stand.prefix}/old"]]
    assert list(stand.store.list()) == []
    answers.append({"Errors": [{"Key": f"{stand.prefix}/x", "Code": "AccessDenied", "Message": "no"}]})
    with pytest.raises(StoreError, match=r"x and 1 more: deleting is not allowed"):
        stand.store.delete(["x", "y"])


@pytest.mark.parametrize(
    ("number", "call", "remedy"),
    [
        (errno.ENOSPC, "writev", "free some space"),
        (errno.EDQUOT, "fsync", "quota"),
        (errno.EROFS, "open", "mount it"),
        (errno.EIO, "replace", "dmesg"),
        (errno.EFBIG, "writev", "ulimit -f"),
        (errno.ENOTCONN, "open", "mount it again"),
    ],
)
def test_a_disk_that_fails_is_told_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str, remedy: str
) -> None:
    store = open_store(tmp_path)
    store.put("a/b", b"old")

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(f"shoal_core.store.local.os.{call}", fail)
        with pytest.raises(StoreError, match=rf"{tmp_path}/a/b: {os.strerror(number)}") as error:
            store.put("a/b", b"new")
    assert remedy in error.value.remedy
    assert store.get("a/b") == b"old"
    assert os.listdir(tmp_path / "a") == ["b"]


@pytest.mark.parametrize("failing", [False, True])
def test_what_is_brought_to_the_disk_beside_the_writer_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: bool
) -> None:
    """The system says only once that it could not."""
    monkeypatch.setattr("shoal_core.store.local_writer._FLUSHED", 8)
    whole, begun = os.fdatasync, threading.Event()

    def flush(file: int) -> None:
        begun.wait(60.0)
        if failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        whole(file)

    monkeypatch.setattr("shoal_core.store.local_writer.os.fdatasync", flush)
    store = open_store(tmp_path)
    writer = store.writer("a")
    writer.write(bytes(16))
    writer.write(b"the rest")
    begun.set()
    if failing:
        with pytest.raises(StoreError, match="Input/output error"):
            writer.close()
        assert os.listdir(tmp_path) == []
    else:
        writer.close()
        assert store.get("a") == bytes(16) + b"the rest"


def test_a_disk_that_takes_a_little_at_a_time_gets_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.writev
    monkeypatch.setattr("shoal_core.store.local_writer.os.writev", lambda file, views: whole(file, [views[0][:3]]))
    store, parts = open_store(tmp_path), [b"", b"abcdefg", b"", b"hij", b"k"]
    with store.writer("a") as writer:
        writer.write_all([memoryview(part) for part in parts])
    assert store.get("a") == b"abcdefghijk"


def test_a_folder_or_a_pipe_in_the_way_is_told(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.put("a", b"1")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError):
        store.get("pipe")
    assert [entry.name for entry in store.list()] == ["a"]
    with pytest.raises(StoreError, match="remove the file"):
        store.put("a/b", b"")
    store.put("c/d", b"")
    with pytest.raises(StoreError, match="remove the folder"):
        store.put("c", b"")
