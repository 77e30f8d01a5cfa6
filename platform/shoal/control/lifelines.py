"""The controller's end of the lifelines: an asyncio server that turns connections into events."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shoal.wire import LINE_LIMIT, decode, encode

__all__ = ["Lifelines", "Line"]


@dataclass
class Line:
    """A worker that is connected. `heard`: monotonic time of its last word; `deaf`: seconds since then in which the
    controller did not listen; `since`: time of its last change of phase or step; `doing`: what it said it was doing
    when it connected."""

    worker: str
    node: str
    pid: int
    home: tuple[int, int] | None
    writer: asyncio.StreamWriter
    doing: Mapping[str, Any] = field(default_factory=dict)
    heard: float = field(default_factory=time.monotonic)
    deaf: float = 0.0
    since: float = field(default_factory=time.monotonic)
    phase: str = "spare"
    steps: int = -1

    def silent(self, now: float) -> float:
        """Seconds since its last word in which it could have been heard."""
        return now - self.heard - self.deaf

    def excuse(self, late: float, now: float) -> None:
        """The controller came `late` seconds late: those of them that passed since its last word, and since its last
        change of phase, count for nothing."""
        self.deaf = min(self.deaf + late, now - self.heard)
        self.since = min(self.since + late, now)


class Lifelines:
    """Accepts workers that know the run's secret.

    `joined(line)`, `said(line, message)`, `gone(line, why)` are called in the event loop; a worker's messages arrive in
    the order it sent them, all of them before its `gone`. What one of them raises is given to `failed`: it is no fault
    of the worker's, whose line stays. `gap(seconds)`: how long a living worker was silent.
    """

    def __init__(
        self,
        secret: str,
        joined: Callable[[Line], None],
        said: Callable[[Line, dict[str, Any]], None],
        gone: Callable[[Line, str], None],
        failed: Callable[[Exception], None],
        gap: Callable[[float], None],
    ) -> None:
        self._secret, self._joined, self._said, self._gone, self._gap = secret, joined, said, gone, gap
        self._failed = failed
        self.lines: dict[str, Line] = {}
        self._server: asyncio.Server | None = None

    async def open(self, address: str) -> tuple[str, int]:
        """Listen on `address`, any port; returns (address, port)."""
        self._server = await asyncio.start_server(self._serve, address, 0, limit=LINE_LIMIT)
        return address, self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    def send(self, worker: str, message: dict[str, Any]) -> None:
        """Send to a worker if it is still there; if not, its `gone` says so."""
        line = self.lines.get(worker)
        if line is not None:
            line.writer.write(encode(message))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line: Line | None = None
        why = "connection closed"
        try:
            line = self._greet(decode(await reader.readline()), writer)
            if line is None:
                return
            self.lines[line.worker] = line
            self._tell(self._joined, line)
            while data := await reader.readline():
                now = time.monotonic()
                self._gap(line.silent(now))
                line.heard, line.deaf = now, 0.0
                message = decode(data)
                if message["type"] == "beat":
                    if (line.phase, line.steps) != (message["phase"], message["steps"]):
                        line.phase, line.steps, line.since = message["phase"], message["steps"], now
                else:
                    self._tell(self._said, line, message)
        except (OSError, ValueError) as error:
            why = f"connection lost: {error}"
        finally:
            writer.close()
            if line is not None and self.lines.get(line.worker) is line:
                del self.lines[line.worker]
                self._tell(self._gone, line, why)

    def _tell(self, listener: Callable[..., None], *what: Any) -> None:
        try:
            listener(*what)
        except Exception as error:
            self._failed(error)

    def _greet(self, hello: dict[str, Any], writer: asyncio.StreamWriter) -> Line | None:
        """A line for a worker of this run; None for a stranger or a name that is taken."""
        if hello["type"] != "hello" or not hmac.compare_digest(str(hello.get("secret")), self._secret):
            return None
        worker = str(hello["worker"])
        if worker in self.lines:
            return None
        home = hello["home"]
        doing = {key: hello[key] for key in ("seat", "attempt", "generation", "phase", "steps", "copies")}
        return Line(worker, str(hello["node"]), int(hello["pid"]), tuple(home) if home else None, writer, doing)
