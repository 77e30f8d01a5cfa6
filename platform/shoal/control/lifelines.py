"""The controller's end of the lifelines: an asyncio server that turns connections into events."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shoal.control.mishaps import say
from shoal.wire import GREETING_LIMIT, GREETING_TIME, LINE_LIMIT, answers, decode, encode, nonce, proof

__all__ = ["Lifelines", "Line"]

STRANGERS, ALIKE = 512, 64
"""Connections that may be waiting to prove who they are: in all, and from one address. More are closed at once; a
worker tries again."""
PAUSE = 0.5
"""Seconds without accepting when the system has nothing left to accept with (descriptors)."""


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
    """Accepts workers that prove that they know the run's secret, and tells strangers nothing.

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
        self._accepting: asyncio.Task[None] | None = None
        self._served: set[asyncio.Task[None]] = set()
        self._strangers: Counter[str] = Counter()
        """Connections that have not proved who they are, by address."""

    async def open(self, address: str) -> tuple[str, int]:
        """Listen on `address`, any port; returns (address, port)."""
        listener = socket.create_server((address, 0), backlog=1024)
        listener.setblocking(False)
        self._accepting = asyncio.create_task(self._accept(listener))
        self._accepting.add_done_callback(lambda _: listener.close())
        return address, listener.getsockname()[1]

    def close(self) -> None:
        """Stop listening. May be called in any thread."""
        if self._accepting is not None:
            self._accepting.get_loop().call_soon_threadsafe(self._accepting.cancel)

    def send(self, worker: str, message: dict[str, Any]) -> None:
        """Send to a worker if it is still there; if not, its `gone` says so."""
        line = self.lines.get(worker)
        if line is not None:
            line.writer.write(encode(message))

    def send_all(self, messages: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Send what is said as (worker, message), in that order."""
        for worker, message in messages:
            self.send(worker, message)

    async def _accept(self, listener: socket.socket) -> None:
        loop, told = asyncio.get_running_loop(), False
        while True:
            try:
                connection, (address, *_) = await loop.sock_accept(listener)
            except OSError as error:
                if not told:
                    say(f"no connection can be accepted ({error}); trying on")
                told = True
                await asyncio.sleep(PAUSE)
                continue
            told = False
            if self._strangers[address] >= ALIKE or self._strangers.total() >= STRANGERS:
                connection.close()
                continue
            self._strangers[address] += 1
            task = asyncio.create_task(self._welcome(connection, address))
            self._served.add(task)
            task.add_done_callback(self._served.discard)

    async def _welcome(self, connection: socket.socket, address: str) -> None:
        """Serve a connection, if it is a worker of this run."""
        writer: asyncio.StreamWriter | None = None
        try:
            try:
                async with asyncio.timeout(GREETING_TIME):
                    hello, welcome = await greeted(connection, self._secret)
            finally:
                self._strangers[address] -= 1
                if not self._strangers[address]:
                    del self._strangers[address]
            reader, writer = await asyncio.open_connection(sock=connection, limit=LINE_LIMIT)
            line = line_of(hello, writer)
            if line.worker not in self.lines:
                writer.write(welcome)
                await self._serve(line, reader)
        except (OSError, ValueError, KeyError, TypeError):
            pass  # a stranger, or one that is gone already; `_serve` has its own end
        finally:
            (connection if writer is None else writer).close()

    async def _serve(self, line: Line, reader: asyncio.StreamReader) -> None:
        why = "connection closed"
        self.lines[line.worker] = line
        self._tell(self._joined, line)
        try:
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
            line.writer.close()
            if self.lines.get(line.worker) is line:
                del self.lines[line.worker]
                self._tell(self._gone, line, why)

    def _tell(self, listener: Callable[..., None], *what: Any) -> None:
        try:
            listener(*what)
        except Exception as error:
            self._failed(error)


async def greeted(connection: socket.socket, secret: str) -> tuple[dict[str, Any], bytes]:
    """Hear a caller's greeting; returns (its hello, the welcome that it is to be answered).

    Raises:
        OSError, ValueError, KeyError: it is none of this run.
    """
    loop, challenge = asyncio.get_running_loop(), nonce()
    connection.setblocking(False)
    await loop.sock_sendall(connection, encode({"type": "challenge", "nonce": challenge}))
    heard = b""
    while not heard.endswith(b"\n"):
        part = await loop.sock_recv(connection, GREETING_LIMIT + 1 - len(heard))
        heard += part
        if not part or b"\n" in heard[:-1] or len(heard) > GREETING_LIMIT:
            raise ValueError("no greeting")
    hello = decode(heard)
    if hello["type"] != "hello" or not answers(hello, secret, challenge):
        raise ValueError("not of this run")
    return hello, encode({"type": "welcome", "proof": proof(secret, "controller", hello["nonce"], challenge)})


def line_of(hello: dict[str, Any], writer: asyncio.StreamWriter) -> Line:
    """The line of a worker that was let in. Raises KeyError, TypeError, ValueError: its hello makes no sense."""
    home = hello["home"]
    doing = {key: hello[key] for key in ("seat", "attempt", "generation", "phase", "steps", "copies")}
    who = (str(hello["worker"]), str(hello["node"]), int(hello["pid"]))
    return Line(*who, tuple(home) if home else None, writer, doing)
