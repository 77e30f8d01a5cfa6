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

READ = """
import json
from shoal_data.build.documents import read_piece
from shoal_data.build.filesystem import find_files
from shoal_data.build.inputs import plan_parts

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
def hub() -> Iterator[str]:
    files = dataset()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if "/tree/" in path:
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
