"""The readers of preemption notices, against a metadata server on loopback."""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

FILE = Path(__file__).parents[2] / "infra" / "preemption" / "watch.py"
spec = importlib.util.spec_from_file_location("preemption_watch", FILE)
assert spec is not None
assert spec.loader is not None
watch: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(watch)


Speak = Callable[["Metadata"], None]


class Metadata(BaseHTTPRequestHandler):
    answers: ClassVar[dict[tuple[str, str], str]] = {}
    speak: ClassVar[Speak | None] = None
    """What to say instead to whoever asks for a notice."""

    def reply(self) -> None:
        if self.command == "GET" and Metadata.speak is not None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                Metadata.speak(self)
            return
        known = self.path.startswith("/computeMetadata") and self.headers.get("Metadata-Flavor") == "Google"
        known |= self.headers.get("X-aws-ec2-metadata-token") == "t0ken" or self.command == "PUT"
        body = self.answers.get((self.command, self.path)) if known else None
        self.send_response(200 if body is not None else 404)
        self.end_headers()
        self.wfile.write((body or "").encode())

    do_GET = do_PUT = reply

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def base() -> Iterator[str]:
    Metadata.answers, Metadata.speak = {("PUT", "/latest/api/token"): "t0ken"}, None
    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_without_a_notice_there_is_none(base: str) -> None:
    assert watch.aws_notice(base) is None
    assert watch.gcp_notice(base) is None
    assert watch.aws_notice("http://127.0.0.1:9") is None  # nobody there


def test_ec2_says_when(base: str) -> None:
    at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=120)
    notice = {"action": "terminate", "time": at.strftime("%Y-%m-%dT%H:%M:%SZ")}
    Metadata.answers["GET", "/latest/meta-data/spot/instance-action"] = json.dumps(notice)
    assert 0 < watch.aws_notice(base) <= 120


def test_gcp_says_that(base: str) -> None:
    Metadata.answers["GET", "/computeMetadata/v1/instance/preempted"] = "FALSE"
    assert watch.gcp_notice(base) is None
    Metadata.answers["GET", "/computeMetadata/v1/instance/preempted"] = "TRUE"
    assert watch.wait_for(lambda: watch.gcp_notice(base)) == watch.GCP_NOTICE_S


def body(content: bytes, status: int = 200, *headers: tuple[str, str]) -> Speak:
    def speak(to: Metadata) -> None:
        to.send_response(status)
        for name, value in headers:
            to.send_header(name, value)
        to.end_headers()
        to.wfile.write(content)

    return speak


def for_ever(piece: bytes, pause: float) -> Speak:
    def speak(to: Metadata) -> None:
        to.send_response(200)
        to.end_headers()
        while True:
            to.wfile.write(piece)
            time.sleep(pause)

    return speak


def raw(content: bytes, then: Speak | None = None) -> Speak:
    def speak(to: Metadata) -> None:
        to.wfile.write(content)
        if then is not None:
            then(to)

    return speak


MALFORMED: dict[str, Speak] = {
    "500": body(b"x", 500),
    "html": body(b"<html>captive portal</html>"),
    "empty": body(b""),
    "not UTF-8": body(b"\xff\xfe\xff"),
    "a list": body(b"[1]"),
    "no action": body(b'{"time": null}'),
    "another action": body(b'{"action": "none", "time": "2030-01-01T00:00:00Z"}'),
    "deep": body(b"[" * 60_000),
    "redirected to a file": body(b"", 302, ("Location", "file:///etc/passwd")),
    "cut": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}"),
    "no HTTP": raw(b"garbage\r\n\r\n"),
    "endless": for_ever(b"a" * 100_000, 0.0),
    "a drip": for_ever(b"a", 0.05),
    "a drip of headers": raw(b"HTTP/1.1 200 OK\r\nX: ", for_ever(b"a", 0.05)),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_an_answer_that_is_none_is_no_notice(base: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "ANSWER_S", 0.5)
    Metadata.speak = MALFORMED[case]
    assert watch.aws_notice(base) is None
    assert watch.gcp_notice(base) is None


@pytest.mark.parametrize("when", [None, "soon", 5, "9999-12-31T23:59:59Z", "2999-01-01T00:00:00"])
def test_a_notice_whose_time_makes_no_sense_is_a_notice(base: str, when: object) -> None:
    Metadata.speak = body(json.dumps({"action": "stop", "time": when}).encode())
    assert watch.aws_notice(base) == watch.AWS_NOTICE_S


def test_a_time_without_a_zone_is_utc(base: str) -> None:
    at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=120)
    Metadata.speak = body(json.dumps({"action": "stop", "time": at.strftime("%Y-%m-%dT%H:%M:%S")}).encode())
    assert 0 < watch.aws_notice(base) <= 120


def test_a_token_that_would_be_a_header_is_not_sent_on(base: str) -> None:
    Metadata.answers["PUT", "/latest/api/token"] = "a\r\nX-Evil: 1"
    assert watch.aws_notice(base) is None


def test_the_watcher_outlives_what_goes_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    tries = iter([RuntimeError("\x1b[2J\ud800"), None, 7.0])

    def notice() -> float | None:
        found = next(tries)
        if isinstance(found, Exception):
            raise found
        return found

    assert watch.wait_for(notice, 0.0) == 7.0
    assert "asking for a notice failed: RuntimeError" in capsys.readouterr().out


def test_draining_is_tried_until_ray_is_there_or_the_time_is_up() -> None:
    tries = iter([OSError("starting"), OSError("starting"), None])

    def drain(left: float) -> None:
        if (error := next(tries)) is not None:
            raise error

    assert watch.drain_in_time(drain, 60.0, 0.0)
    tries = iter([OSError("gone")] * 1000)
    assert not watch.drain_in_time(drain, 0.0, 0.0)
