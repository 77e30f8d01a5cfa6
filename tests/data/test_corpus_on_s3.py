"""A corpus on S3 is verified, shown and written back like one in a folder, and says what is wrong. Moto serves."""

from __future__ import annotations

import io
import socket
import stat
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from botocore.exceptions import ClientError, CredentialRetrievalError, ReadTimeoutError
from typer.testing import CliRunner

from shoal.cli.main import app
from shoal_core.errors import StoreError, UserError
from shoal_core.s3_errors import final_error, told
from shoal_data.reading import reader
from shoal_data.reading.entropy import unigram_entropy
from shoal_data.reading.inspection import documents, write_documents
from shoal_data.reading.reader import Corpus
from shoal_data.reading.store import store_at
from shoal_data.reading.verify import verify
from shoal_data.writing.options import TokenizeOptions
from shoal_data.writing.tokenize import tokenize
from tests.support.s3_server import account

BUCKET, PREFIX = "corpora", "with space/100% of #1 + 東é"


@pytest.fixture(autouse=True)
def _account(s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    account(monkeypatch, s3_endpoint, tmp_path)


@pytest.fixture(scope="module")
def local(raw: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of several shards in a folder."""
    folder = tmp_path_factory.mktemp("corpus") / "c"
    tokenize([str(raw / "*.parquet")], tokenizer, folder, TokenizeOptions(part_bytes=60_000))
    return folder


def client(endpoint: str) -> Any:
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    return boto3.client("s3", endpoint_url=endpoint, **keys)


def upload(local: Path, endpoint: str, prefix: str) -> str:
    s3 = client(endpoint)
    s3.create_bucket(Bucket=BUCKET)
    for path in sorted(local.rglob("*")):
        if path.is_file() and "job" not in path.parts:
            key = f"{prefix}/{path.relative_to(local)}"
            s3.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes(), ACL="public-read")
    return f"s3://{BUCKET}/{prefix}"


@pytest.fixture(scope="module")
def there(local: Path, s3_endpoint: str) -> str:
    """The same corpus under a prefix that needs care in URLs."""
    return upload(local, s3_endpoint, PREFIX)


def shoal(*arguments: object) -> tuple[bytes, str]:
    """What a command that succeeds writes: to standard output, and in all."""
    result = CliRunner().invoke(app, [str(one) for one in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout_bytes, result.output


def test_the_commands_take_it(there: str, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for options in ([], ["--quick"]):
        assert (
            f"{there}: {len(Corpus.open(local).manifest.shards)} shards" in shoal("data", "verify", there, *options)[1]
        )
    assert shoal("data", "cat", there)[0] == shoal("data", "cat", local)[0]
    said = shoal("data", "inspect", there, "--documents", "2")[1]
    assert "lengths and composition: inspect.png" in said
    assert (tmp_path / "inspect.png").read_bytes()[:4] == b"\x89PNG"
    here = shoal("data", "inspect", local, "--documents", "2")[1]
    assert said.splitlines()[:-1] == here.splitlines()[:-1]
    assert f"{local / 'inspect.png'}" in here
    assert CliRunner().invoke(app, ["data", "inspect", str(local), "--documents", "-1"]).exit_code != 0
    assert not (tmp_path / "s3:").exists()


def test_it_reads_the_same_samples(there: str, local: Path) -> None:
    ours, theirs = Corpus.open(f"{there}/"), Corpus.open(local)
    assert ours.digest == theirs.digest
    for found, wanted in zip(ours.reader(48, 3).read(range(70)), theirs.reader(48, 3).read(range(70)), strict=True):
        assert np.array_equal(found, wanted)
    assert 1 < unigram_entropy(ours) < np.log(ours.vocab_size)


def test_every_byte_is_asked_for_once_and_told(there: str, local: Path) -> None:
    told: list[tuple[int, int]] = []
    manifest = verify(there, full=True, progress=lambda done, total: told.append((done, total)))
    total = int(manifest.shards.size.sum())
    assert told[-1] == (total, total)
    assert [done for done, _ in told] == np.cumsum(manifest.shards.size).tolist()


def test_the_copy_of_the_tokenizer_is_private_and_goes(there: str, monkeypatch: pytest.MonkeyPatch) -> None:
    at_exit: list[Any] = []
    monkeypatch.setattr(reader.atexit, "register", lambda work, *args, **options: at_exit.append((work, args, options)))
    path = Corpus.open(there).tokenizer_path
    assert path.is_file()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    for work, args, options in at_exit:
        work(*args, **options)
    assert not path.parent.exists()


@pytest.fixture(scope="module")
def spoilt(local: Path, s3_endpoint: str) -> str:
    """The same corpus once more, to be damaged and mended."""
    return upload(local, s3_endpoint, "spoilt")


@pytest.mark.parametrize("damage", ["lost", "half", "changed"])
def test_a_damaged_shard_is_named_with_what_helps(damage: str, spoilt: str, local: Path, s3_endpoint: str) -> None:
    s3, name = client(s3_endpoint), Corpus.open(local).manifest.shards.file[1].decode()
    key, good = f"spoilt/{name}", (local / name).read_bytes()
    if damage == "lost":
        s3.delete_object(Bucket=BUCKET, Key=key)
    else:
        at = len(good) // 2
        bad = good[:at] if damage == "half" else good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
        s3.put_object(Bucket=BUCKET, Key=key, Body=bad)
    corpus = Corpus.open(spoilt)

    def named(work: Callable[[], object]) -> None:
        with pytest.raises(UserError, match="upload this shard again") as error:
            work()
        assert f"{spoilt}/{name}" in error.value.problem

    named(lambda: verify(spoilt, full=True))
    if damage == "changed":
        verify(spoilt, full=False)  # which looks at sizes
    else:
        named(lambda: verify(spoilt, full=False))
    named(lambda: corpus.store.tokens(1, 0, int(corpus.manifest.shards.tokens[1])))
    assert corpus.store.stalls.retries <= 2  # asking on would not help
    named(lambda: list(documents(corpus)))
    s3.put_object(Bucket=BUCKET, Key=key, Body=good)  # what the message says
    verify(spoilt, full=True)
    assert len(corpus.store.tokens(1, 0, 10)) == 10


@pytest.mark.parametrize("lost", [False, True])
def test_a_damaged_small_file_is_named_with_what_helps(lost: bool, spoilt: str, local: Path, s3_endpoint: str) -> None:
    s3 = client(s3_endpoint)
    for name in ("blocks.crc32", "token_bytes.npy", "tokenizer.json", "quarantine.jsonl", "manifest.json"):
        good = (local / name).read_bytes()
        if lost:
            s3.delete_object(Bucket=BUCKET, Key=f"spoilt/{name}")
        else:
            s3.put_object(Bucket=BUCKET, Key=f"spoilt/{name}", Body=good[:-7] + b"x")
        with pytest.raises(UserError, match=r"upload (this file|the whole folder)") as error:
            verify(spoilt, full=False)
        assert f"{spoilt}/{name}" in error.value.problem
        s3.put_object(Bucket=BUCKET, Key=f"spoilt/{name}", Body=good)
    verify(spoilt, full=False)


def refused(address: Any) -> StoreError:
    """How opening, verifying and writing back refuse an address: all with one message."""
    said = set()
    for work in (Corpus.open, lambda one: verify(one, full=False), lambda one: write_documents(one, io.BytesIO())):
        with pytest.raises(StoreError) as error:
            work(address)
        said.add(str(error.value))
    assert len(said) == 1
    return error.value


def test_without_credentials(there: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    error = refused(there)
    assert "no AWS credentials are found" in error.problem
    assert "AWS_ACCESS_KEY_ID" in error.remedy
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "1")
    assert Corpus.open(there).tokens > 0
    monkeypatch.delenv("AWS_NO_SIGN_REQUEST")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert "nobody" in refused(there).problem


def test_no_such_bucket(there: str) -> None:
    error = refused("s3://another-bucket/c")
    assert "no such bucket" in error.problem
    assert "s3://another-bucket/c" in error.problem
    with pytest.raises(UserError, match="no corpus here"):
        verify(f"s3://{BUCKET}/nothing", full=False)


def test_nobody_answers(there: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{unused.getsockname()[1]}")
        error = refused(there)
    assert "nobody answers at http://127.0.0.1" in error.problem
    assert "AWS_ENDPOINT_URL" in error.remedy


@pytest.mark.parametrize(
    ("status", "code", "problem", "remedy"),
    [
        (403, "InvalidAccessKeyId", "not accepted", "AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", "not accepted", "AWS_SECRET_ACCESS_KEY"),
        (400, "ExpiredToken", "not accepted", "AWS_PROFILE"),
        (403, "AccessDenied", "not allowed", "s3:GetObject"),
        (403, "RequestTimeTooSkewed", "RequestTimeTooSkewed", "clock"),
        (400, "AuthorizationHeaderMalformed", "another region", "AWS_DEFAULT_REGION"),
        (301, "PermanentRedirect", "another endpoint", "AWS_DEFAULT_REGION"),
        (405, "MethodNotAllowed", "MethodNotAllowed", "an S3 store"),
    ],
)
def test_a_refusal_is_told_at_once(
    status: int, code: str, problem: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Refuse(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            content = f"<Error><Code>{code}</Code><Message>as it is</Message></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_HEAD(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refuse)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_address[1]}")
    with pytest.raises(StoreError, match=problem) as error:
        Corpus.open("s3://bucket/c")
    assert remedy in error.value.remedy
    assert len(asked) <= 2  # botocore itself may look for another region
    server.shutdown()


def answer(code: str, status: int) -> ClientError:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")


def test_what_may_pass_is_asked_for_again() -> None:
    passing = [
        answer("SlowDown", 503),
        answer("InternalError", 500),
        answer("RequestTimeout", 400),
        answer("429", 429),
        ReadTimeoutError(endpoint_url="http://x"),
        OSError("3 of 5 bytes came"),
    ]
    assert [final_error(error, "s3://b/c", again=False) for error in passing] == [None] * len(passing)
    role = CredentialRetrievalError(provider="iam-role", error_msg="busy")
    assert final_error(role, "s3://b/c", again=True) is None
    assert isinstance(final_error(role, "s3://b/c", again=False), StoreError)


def test_a_silent_store_is_told_in_words() -> None:
    assert "Read timeout" in told(ReadTimeoutError(endpoint_url="http://x"))


def test_other_addresses_are_refused(tmp_path: Path) -> None:
    for address in (Path("s3://bucket/c"), "s3:bucket/c", "gs:/bucket/c"):
        with pytest.raises(UserError, match="no address of a corpus"):
            store_at(address)
    for address in ("hf://datasets/a/b", "S3://bucket/c"):
        with pytest.raises(UserError, match="this kind of store is not known"):
            store_at(address)
    with pytest.raises(UserError, match="names no bucket"):
        store_at("s3:///c")
    with pytest.raises(UserError, match="no corpus here"):
        Corpus.open(tmp_path)
