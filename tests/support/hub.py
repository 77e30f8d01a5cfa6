"""A stand-in for the Hugging Face Hub: one data set, `org/name`, at one commit, as the Hub's own client asks for it."""

from __future__ import annotations

import json
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["COMMIT", "hub"]

COMMIT = "a" * 40
_BLOB = "0" * 40


@contextmanager
def hub(files: Mapping[str, bytes], failing: set[str] | None = None) -> Iterator[str]:
    """The address of a hub with `files` by their paths; those of them in `failing` are answered with 503."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.go()

        def do_HEAD(self) -> None:
            self.go()

        def do_POST(self) -> None:
            self.asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
            self.go()

        def go(self) -> None:
            path = urllib.parse.unquote(self.path.partition("?")[0])
            if "/tree/" in path:
                self.tree(path.partition("/tree/")[2].partition("/")[2])
            elif "/paths-info/" in path:
                self.answer(200, json.dumps([entry for one in self.wanted() if (entry := told(one))]).encode())
            elif path.startswith("/api/datasets/org/name"):
                siblings = [{"rfilename": name} for name in files]
                self.answer(200, json.dumps({"id": "org/name", "sha": COMMIT, "siblings": siblings}).encode())
            else:
                self.content(path.partition("/resolve/")[2].partition("/")[2])

        def wanted(self) -> list[str]:
            if self.asked.startswith("{"):
                listed: list[str] = json.loads(self.asked)["paths"]
                return listed
            return urllib.parse.parse_qs(self.asked)["paths"]

        def tree(self, folder: str) -> None:
            begin = f"{folder}/" if folder else ""
            inner = [name.removeprefix(begin) for name in files if name.startswith(begin)]
            if "recursive=true" not in self.path.lower():
                inner = list(dict.fromkeys(name.partition("/")[0] for name in inner))
            else:
                inner += sorted({name.rpartition("/")[0] for name in inner if "/" in name})
            entries = [told(begin + name) for name in inner]
            self.answer(200 if entries else 404, json.dumps(entries or {}).encode())

        def content(self, name: str) -> None:
            content = files.get(name)
            if content is None or name in (failing or ()):
                self.answer(404 if content is None else 503, b"{}")
                return
            about = {"ETag": f'"{_BLOB}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            if asked := self.headers["Range"]:
                first, last = asked.removeprefix("bytes=").split("-")
                part = content[int(first) : int(last or len(content)) + 1]
                span = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
                self.answer(206, part, {**about, "Content-Range": span})
            else:
                self.answer(200, content, about)

        def answer(self, status: int, content: bytes, about: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            for name, value in ({"X-Error-Code": "EntryNotFound"} if status == 404 else about or {}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

    def told(name: str) -> dict[str, Any] | None:
        if name in files:
            return {"type": "file", "path": name, "size": len(files[name]), "oid": _BLOB}
        inside = any(other.startswith(f"{name}/") for other in files)
        return {"type": "directory", "path": name, "oid": "1" * 40} if inside else None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
