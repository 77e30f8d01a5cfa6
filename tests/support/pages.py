"""A dashboard that serves in this process, and what it answers."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shoal.dashboard.desk import opened
from shoal.dashboard.server import Server

__all__ = ["News", "ask", "first_run", "serving"]


@contextlib.contextmanager
def serving(target: str | Path, host: str = "127.0.0.1") -> Iterator[Server]:
    """The server of what `shoal dashboard TARGET` shows, until the end of the block."""
    server = Server(opened(str(target), None), host)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.close()
        thread.join()


def ask(server: Server, path: str, **headers: str) -> tuple[int, dict[str, str], str]:
    """Status, headers and text of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode()


def first_run(server: Server) -> str:
    """The key of the run that is listed first."""
    return str(json.loads(ask(server, "/runs")[2])["runs"][0]["key"])


class News:
    """A stream of the server's news."""

    def __init__(self, server: Server, query: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
        self._connection.request("GET", f"/news?{query}")
        self.answer = self._connection.getresponse()

    def next(self) -> dict[str, Any]:
        """The next message, waited for."""
        while True:
            line = self.answer.readline()
            assert line, "the stream has ended"
            if line.startswith(b"data: "):
                found: dict[str, Any] = json.loads(line[6:])
                return found

    def until(self, *parts: str) -> dict[str, Any]:
        """All messages of one run together, up to the one with which all of these parts have come."""
        found: dict[str, Any] = {}
        while not set(parts) <= found.keys():
            found |= self.next()
        return found

    def close(self) -> None:
        """Leave."""
        self.answer.close()
        self._connection.close()
