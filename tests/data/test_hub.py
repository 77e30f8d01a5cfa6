"""Input in a Hugging Face dataset: the hub's own client against a hub of our own, which answers what it asks for."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shoal_core.errors import StoreError, UserError
from shoal_data.sources import hub_files
from shoal_data.sources.filesystem import find_files, stamp_of
from shoal_data.sources.opening import open_file
from shoal_data.sources.parts import plan_parts

READ = """
import json
from shoal_data.sources.documents import read_piece
from shoal_data.sources.filesystem import find_files
from shoal_data.sources.parts import plan_parts

found = []
for part in plan_parts(["hf://datasets/org/name/data/*"], "text", 1):
    for piece in part.pieces:
        for read in read_piece(piece, "text", []):
            found += zip([read.path] * len(read.row), read.row.tolist(), read.text.to_pylist())
jsonl = [(found.path, found.size) for found in find_files("hf://datasets/org/name/**/*.jsonl")]
print(json.dumps([jsonl, sorted(found)]))
"""


def dataset() -> dict[str, bytes]:
    table = io.BytesIO()
    pq.write_table(pa.table({"text": [f"row {number}" for number in range(20)]}), table, row_group_size=5)
    return {"data/a.parquet": table.getvalue(), "data/b.jsonl": b'{"text": "from b"}\n', "README.md": b"# a dataset\n"}


@pytest.fixture
def faults() -> dict[str, int]:
    """Answers of the hub with an error: by what the path begins with, the status."""
    return {}


@pytest.fixture
def hub(faults: dict[str, int]) -> Iterator[str]:
    files = dataset()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            status = next((status for start, status in faults.items() if path.startswith(start)), None)
            if status:
                self.answer(status, b"{}")
            elif "/tree/" in path:
                folders = [{"type": "directory", "path": "data", "oid": "1" * 40}]
                entries = [{"type": "file", "path": name, "size": len(files[name]), "oid": "0" * 40} for name in files]
                self.answer(200, json.dumps([*folders, *entries]).encode())
            elif path.startswith("/api/datasets/org/name"):
                self.answer(200, json.dumps({"id": "org/name", "sha": "a" * 40, "siblings": []}).encode())
            else:
                content = files[path.partition("/resolve/main/")[2]]
                first, last = (int(number) for number in self.headers["Range"].removeprefix("bytes=").split("-"))
                self.answer(206, content[first : last + 1])

        def answer(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def test_a_dataset_on_the_hub_is_found_and_read(hub: str) -> None:
    # A process of its own: the client takes the hub's address when it is imported.
    environment = {**os.environ, "HF_ENDPOINT": hub, "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment.pop("HF_TOKEN", None)
    done = subprocess.run([sys.executable, "-c", READ], env=environment, stdout=subprocess.PIPE, check=True)
    jsonl, rows = json.loads(done.stdout)
    assert jsonl == [["hf://datasets/org/name/data/b.jsonl", 19]]
    expected = [["hf://datasets/org/name/data/a.parquet", number, f"row {number}"] for number in range(20)]
    assert rows == [*expected, ["hf://datasets/org/name/data/b.jsonl", 0, "from b"]]


@pytest.fixture
def near(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process asks that hub, and nobody sleeps."""
    from huggingface_hub import HfFileSystem

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(hub_files, "_hub", lambda: HfFileSystem(endpoint=hub, token=False, skip_instance_cache=True))
    monkeypatch.setattr("shoal_data.retry._sleep", lambda seconds: None)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the Hub's client waits by itself, too


@pytest.mark.parametrize("pattern", ["hf://datasets/org/name/data/*", "hf://datasets/org/name/data/b.jsonl"])
@pytest.mark.parametrize(
    ("status", "words"), [(401, "access denied.*HF_TOKEN"), (403, "access denied.*HF_TOKEN"), (404, "not found")]
)
def test_a_hub_that_denies_access_says_so(
    near: None, faults: dict[str, int], pattern: str, status: int, words: str
) -> None:
    faults["/api/datasets/org/name"] = status
    with pytest.raises(StoreError, match=f"(?s){words}"):
        find_files(pattern)


@pytest.mark.parametrize("status", [401, 403, 404, 503])
def test_a_hub_that_fails_while_a_file_is_read_is_no_broken_file(
    near: None, faults: dict[str, int], status: int
) -> None:
    url = "hf://datasets/org/name/data/a.parquet"
    faults["/datasets/org/name/resolve"] = status
    with open_file(url) as file, pytest.raises(StoreError, match=f"{url}.*{status}"):
        pq.read_table(file)
    with pytest.raises(StoreError, match=str(status)):
        plan_parts([url], "text", 1)


def test_a_hub_that_does_not_answer_is_the_network(monkeypatch: pytest.MonkeyPatch, near: None) -> None:
    from huggingface_hub import HfFileSystem

    away = HfFileSystem(endpoint="http://127.0.0.1:9", token=False, skip_instance_cache=True)
    monkeypatch.setattr(hub_files, "_hub", lambda: away)
    with pytest.raises(StoreError, match="the network or the Hub"):
        find_files("hf://datasets/org/name/data/*")


@pytest.mark.parametrize("url", ["hf://datasets/org", "hf://", "hf://datasets/org/name@/x"])
def test_an_address_that_is_none_on_the_hub_is_refused(near: None, url: str) -> None:
    with pytest.raises(StoreError, match="hf://"):
        find_files(url)


def test_what_is_on_the_hub_is_told_apart(near: None) -> None:
    (file,) = find_files("hf://datasets/org/name/data/b.jsonl")
    assert file.path == "hf://datasets/org/name/data/b.jsonl"
    assert stamp_of(file.path) == file.stamp == f"19:{'0' * 40}"
    assert find_files("hf://datasets/org/name/data/none.jsonl") == []
    with pytest.raises(UserError, match="folder"):
        plan_parts(["hf://datasets/org/name/data"], "text", 1)
