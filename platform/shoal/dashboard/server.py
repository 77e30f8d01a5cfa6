"""The server of the page: reads records, writes nothing, and answers only whoever may ask.

On loopback it answers this machine, by names that mean it: a page of elsewhere whose name was made to lead here (DNS
rebinding) names itself in `Host`, and is refused. On another address who asks must also know the token in its URL.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import secrets
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from shoal.dashboard.desk import Desk
from shoal.dashboard.document import document, policy
from shoal.dashboard.picture import FIGURES, Seen
from shoal.dashboard.watched import Watched
from shoal.record.jsonl import dumps
from shoal_core.errors import UserError

__all__ = ["MOST_CALLERS", "MOST_FIGURES", "MOST_RUNS", "Server", "is_loopback"]

MOST_CALLERS = 48
"""Connections at a time; more are closed at once."""
MOST_RUNS, MOST_FIGURES = 6, 16
"""Runs that are laid over each other, and figures that are drawn."""
BEAT_S = 15.0
"""Seconds after which a stream without news says that it lives, which finds out who left."""
PATIENCE_S = 20.0
"""Seconds that a caller may take for its request, or to take an answer."""


class Server(ThreadingHTTPServer):
    """Serves a desk's runs on `host` and `port` (0: any that is free) once `serve_forever` is called.

    Raises:
        UserError: it cannot listen there.
    """

    daemon_threads = True
    request_queue_size = 32

    def __init__(self, desk: Desk, host: str = "127.0.0.1", port: int = 0) -> None:
        self.desk, self.host = desk, host
        self.token = None if is_loopback(host) else secrets.token_urlsafe(16)
        self.over = threading.Event()
        self._room = threading.BoundedSemaphore(MOST_CALLERS)
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise UserError(
                f"cannot listen on {host}, port {port} ({error})", "name another --host or --port; 0 takes a free one"
            ) from error

    @property
    def url(self) -> str:
        """Where the page is, for whoever is on this machine (or reaches `host`)."""
        name = socket.gethostname() if self.host in ("", "0.0.0.0", "::") else self.host
        token = "" if self.token is None else f"?token={quote(self.token)}"
        return f"http://{f'[{name}]' if ':' in name else name}:{self.server_address[1]}/{token}"

    def knows(self, host: str) -> bool:
        """Whether a caller may call this server by the name in its `Host`. A number was never looked up by name."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if self.token is None:
            return name == "localhost" or is_loopback(name)
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(name)
            return True
        return name in {"localhost", self.host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # who left in the middle is nobody's fault
            super().handle_error(request, client_address)

    def close(self) -> None:
        """End streams and stop listening."""
        self.over.set()
        self.desk.announce()
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "shoal", ""
    timeout = PATIENCE_S

    def do_GET(self) -> None:
        """The page, the list of runs, a window of curves, or the stream of what is new."""
        with contextlib.suppress(OSError):  # who asked has left
            try:
                parts = urlsplit(self.path)
                asked = parse_qs(parts.query, max_num_fields=64)
            except ValueError:
                self._answer(400, "text/plain", "this is no address\n")
                return
            if (refused := self._refused(parts.path, asked)) is not None:
                self._answer(403, "text/plain", refused)
                return
            match parts.path:
                case "/":
                    self._answer(200, "text/html", document())
                case "/runs":
                    self._answer(200, "application/json", dumps(self.server.desk.runs()))
                case "/curves":
                    self._curves(asked)
                case "/news":
                    self._news(asked)
                case _:
                    self._answer(404, "text/plain", "there is nothing here\n")

    def _refused(self, path: str, asked: dict[str, list[str]]) -> str | None:
        if path != "/" and self.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
            return "another page asks for this\n"  # it could not read the answer, but hold places for callers
        if not self.server.knows(self.headers.get("Host", "")):
            return "this server is not called so: open the address that shoal dashboard printed\n"
        token = self.server.token
        if token is not None and not hmac.compare_digest(asked.get("token", [""])[0].encode(), token.encode()):
            return "the token is missing: open the address that shoal dashboard printed\n"
        return None

    def _runs(self, asked: dict[str, list[str]]) -> dict[str, Watched] | None:
        """The runs that a request names; None: there is one that is not there, and the request is answered."""
        keys = list(dict.fromkeys(asked.get("run", [])))
        found = {key: self.server.desk.watched(key) for key in keys[: MOST_RUNS + 1]}
        if not 0 < len(found) <= MOST_RUNS or None in found.values():
            self._answer(404, "text/plain", f"name one to {MOST_RUNS} runs that /runs lists\n")
            return None
        return {key: run for key, run in found.items() if run is not None}

    def _curves(self, asked: dict[str, list[str]]) -> None:
        try:
            first, last = (float(asked[name][0]) for name in ("first", "last"))
            if not -1e15 <= first <= last <= 1e15:
                raise ValueError
        except (KeyError, ValueError):
            self._answer(400, "text/plain", "first and last are numbers of steps, the smaller one first\n")
            return
        if (runs := self._runs(asked)) is not None:
            found = {key: run.window(figures(asked), first, last) for key, run in runs.items()}
            self._answer(200, "application/json", dumps(found))

    def _news(self, asked: dict[str, list[str]]) -> None:
        """What is there of each run, and then what is new, as it comes, until somebody ends it."""
        runs = self._runs(asked)
        if runs is None:
            return
        self.close_connection = True
        self._head(200, "text/event-stream", {"Connection": "close"})
        with self.server.desk.watching(list(runs.values())):
            for message in news(self.server, runs, figures(asked)):
                self.wfile.write(message)
                self.wfile.flush()

    def _answer(self, code: int, kind: str, text: str) -> None:
        content = text.encode()
        self._head(code, kind, {"Content-Length": str(len(content))})
        self.wfile.write(content)

    def _head(self, code: int, kind: str, more: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Security-Policy": policy(),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-store",
            **more,
        }.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *words: object) -> None:
        """Requests are not told: their addresses may hold the token."""


def news(server: Server, runs: dict[str, Watched], names: Sequence[str]) -> Iterator[bytes]:
    """Messages of a stream of server-sent events: what is new of any of these runs, or that the server lives."""
    seen = dict.fromkeys(runs, Seen())
    while not server.over.is_set():
        version, silent = server.desk.version, True
        for key, run in runs.items():
            found, seen[key] = run.since(seen[key], names)
            if found:
                silent = False
                yield f"data: {dumps({'run': key, **found})}\n\n".encode()
        with server.desk.changes:
            if server.desk.version == version and not server.over.is_set():
                woken = server.desk.changes.wait(BEAT_S)
                silent = silent and not woken
        if silent:
            yield b": still here\n\n"


def figures(asked: dict[str, list[str]]) -> list[str]:
    """Names of figures that a request wants."""
    return list(dict.fromkeys(asked.get("figure", FIGURES)))[:MOST_FIGURES]


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
