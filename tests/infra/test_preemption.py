"""The readers of preemption notices, against a metadata server on loopback."""

from __future__ import annotations

import datetime
import importlib.util
import json
import threading
from collections.abc import Iterator
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


class Metadata(BaseHTTPRequestHandler):
    answers: ClassVar[dict[tuple[str, str], str]] = {}

    def reply(self) -> None:
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
    Metadata.answers = {("PUT", "/latest/api/token"): "t0ken"}
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
