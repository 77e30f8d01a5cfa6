"""Reading from S3 survives what object stores do: errors, hangs, cut and corrupt answers. Against moto's server."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import numpy as np
import pytest
from botocore.config import Config

from shoal_core.errors import UserError
from shoal_core.store.s3 import S3Store
from shoal_core.store.s3_calls import Calls
from shoal_data.reading.reader import Corpus
from shoal_data.reading.store import FarStore, read_manifest
from shoal_data.reading.verify import verify
from shoal_data.writing.options import TokenizeOptions
from shoal_data.writing.tokenize import tokenize

KEYS = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}


class Faults:
    """A proxy before moto that spoils answers: `plan` names the fault of each coming GET ('' for none)."""

    def __init__(self, upstream: str) -> None:
        self.plan: list[str] = []
        self.requests: list[tuple[str, str]] = []
        host = urlsplit(upstream).netloc
        faults = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                span = self.headers.get("Range", "")
                faults.requests.append((self.path, span))
                fault = faults.plan.pop(0) if faults.plan else ""
                connection = http.client.HTTPConnection(host, timeout=20)
                connection.request("GET", self.path, headers=dict(self.headers))
                answer = connection.getresponse()
                content = answer.read()
                if fault == "error":
                    self.send_response(500)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                if fault == "hang":
                    time.sleep(1.5)
                if fault == "corrupt":
                    content = content[:-1] + bytes([content[-1] ^ 1])
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("transfer-encoding", "connection", "server", "date", "content-length"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                with contextlib.suppress(OSError):  # the client gave up on a hanging answer
                    self.wfile.write(content[: len(content) // 2] if fault == "cut" else content)
                self.close_connection = True

            def do_HEAD(self) -> None:
                connection = http.client.HTTPConnection(host, timeout=20)
                connection.request("HEAD", self.path, headers=dict(self.headers))
                answer = connection.getresponse()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def faults(s3_endpoint: str) -> Iterator[Faults]:
    proxy = Faults(s3_endpoint)
    yield proxy
    proxy.server.shutdown()


@pytest.fixture
def local(raw: Path, tokenizer: Path, tmp_path: Path, s3_endpoint: str) -> Path:
    """A corpus in a folder, and the same in bucket `corpora` under `small/`."""
    tokenize([str(raw / "*.parquet")], tokenizer, tmp_path / "c", TokenizeOptions(part_bytes=30_000))
    client = boto3.client("s3", endpoint_url=s3_endpoint, **KEYS)
    client.create_bucket(Bucket="corpora")
    for path in (tmp_path / "c").rglob("*"):
        if path.is_file() and "job" not in path.parts:
            client.put_object(Bucket="corpora", Key=f"small/{path.relative_to(tmp_path / 'c')}", Body=path.read_bytes())
    return tmp_path / "c"


def connect(faults: Faults, patience: float = 20.0, deadline: float = 60.0, **options: Any) -> tuple[FarStore, Corpus]:
    slept: list[float] = []
    calls = Calls("s3://corpora", deadline=deadline, sleep=slept.append, clock=lambda: sum(slept))
    config = Config(retries={"total_max_attempts": 1}, read_timeout=patience, connect_timeout=2)
    calls._made = boto3.client("s3", endpoint_url=faults.url, config=config, **KEYS)
    place = S3Store("s3://corpora/small", "corpora", "small", calls)
    store = FarStore(place, wait=lambda seconds: None, **options)
    manifest, digest = read_manifest(store)
    return store, Corpus(store, manifest, digest)


@pytest.mark.parametrize("fault", ["error", "hang", "cut", "corrupt"])
def test_spoilt_answers_are_asked_for_again(local: Path, faults: Faults, fault: str) -> None:
    expected, size = Corpus.open(local).reader(64, 1).read(range(50))
    store, corpus = connect(faults, patience=0.5 if fault == "hang" else 20.0)
    faults.plan = ["", fault, fault] if fault == "corrupt" else [fault, "", fault]
    tokens, found = corpus.reader(64, 1).read(range(50))
    assert np.array_equal(tokens, expected)
    assert np.array_equal(found, size)
    assert not faults.plan
    assert (store.stalls.retries > 0) == (fault == "corrupt")
    assert store.stalls.waits >= 1
    assert store.stalls.seconds > 0


def test_ranges_are_read_not_whole_shards(local: Path, faults: Faults) -> None:
    _, corpus = connect(faults)
    corpus.reader(64, 1).read(range(5))
    spans = [span for path, span in faults.requests if path.endswith(".arrow")]
    assert spans
    assert all(span.startswith("bytes=") for span in spans)


def test_checksums_are_asked_for_once_a_shard(local: Path, faults: Faults) -> None:
    _, corpus = connect(faults, cache_bytes=0)
    reader = corpus.reader(64, 1)
    for position in range(80):
        reader.read([position])
    asked = [span for path, span in faults.requests if path.endswith(".crc32")]
    assert len(set(asked)) <= len(corpus.manifest.shards)
    assert len(asked) == len(set(asked))


def test_the_cache_is_bounded_and_still_right(local: Path, faults: Faults) -> None:
    expected, _ = Corpus.open(local).reader(64, 1).read(range(80))
    store, corpus = connect(faults, cache_bytes=0)
    tokens, _ = corpus.reader(64, 1).read(range(80))
    assert np.array_equal(tokens, expected)
    assert len(store._blocks._blocks) <= 4


def test_an_object_that_never_comes_is_named(local: Path, faults: Faults) -> None:
    _, corpus = connect(faults, deadline=1.0)
    faults.plan = ["error"] * 100
    with pytest.raises(UserError, match=r"s3://corpora/small/.* reading failed for"):
        corpus.reader(64, 1).read([0])
    faults.plan = []
    tokens, _ = corpus.reader(64, 1).read([0])
    assert np.array_equal(tokens, Corpus.open(local).reader(64, 1).read([0])[0])


@pytest.mark.parametrize("fault", ["error", "cut", "corrupt"])
def test_spoilt_answers_do_not_fail_verify(
    local: Path, faults: Faults, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv({"region_name": "AWS_DEFAULT_REGION"}.get(name, name.upper()), value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", faults.url)
    faults.plan = ["", fault, "", "", "", "", "", fault]
    assert verify("s3://corpora/small", full=True).shards.tokens.sum() == Corpus.open(local).tokens
    assert not faults.plan


def test_no_corpus_there_is_named(local: Path, faults: Faults) -> None:
    there: Any = connect(faults)[0]._store
    place = S3Store("s3://corpora/nothing", "corpora", "nothing", there._calls)
    with pytest.raises(UserError, match=r"s3://corpora/nothing/manifest\.json: no corpus here"):
        read_manifest(FarStore(place))


def test_the_tokenizer_comes_along(local: Path, faults: Faults) -> None:
    _, corpus = connect(faults)
    assert corpus.tokenizer_path.read_bytes() == (local / "tokenizer.json").read_bytes()
    assert corpus.digest == Corpus.open(local).digest
