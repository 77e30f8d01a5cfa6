"""The controller's end of the lifelines: one TCP connection a worker, a message a line (`protocol.codec`).

The kernel closes the connection of a process that dies, so its death is known within milliseconds.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from shoal.protocol.codec import LINE_LIMIT, decode, encode, said
from shoal.protocol.greeting import (
    GREETING_LIMIT,
    GREETING_TIME,
    VERSION,
    Challenge,
    Greeting,
    Hello,
    Refused,
    Welcome,
    knows,
    nonce,
    other_version,
    proof,
)
from shoal.protocol.orders import Order
from shoal.protocol.said import Beat, Phase, Said

__all__ = ["Lifelines", "Line"]

logger = logging.getLogger(__name__)

STRANGERS, ALIKE = 512, 64
"""Connections that may be waiting to prove who they are: in all, and from one address. More are closed at once; a
worker tries again."""
TURN = 256
"""Orders that are written in one turn of the event loop."""
PAUSE = 0.5
"""Seconds without accepting when the system has nothing left to accept with (descriptors)."""


@dataclass
class Line:
    """A worker that is connected. `greeting`: its first word; `heard`: monotonic time of its last; `deaf`: seconds
    since then in which the controller did not listen; `since`: time of its last change of phase or step; `told`,
    `published`: numbers of its last word that was decided upon, and that it was told is published; `machine`: the last
    figures of its node that it told."""

    greeting: Greeting
    transport: asyncio.Transport
    heard: float = field(default_factory=time.monotonic)
    deaf: float = 0.0
    since: float = field(default_factory=time.monotonic)
    phase: Phase = Phase.SPARE
    steps: int = -1
    told: int = -1
    published: int = -1
    machine: Mapping[str, float] | None = None

    worker: str = field(init=False)
    node: str = field(init=False)
    pid: int = field(init=False)

    def __post_init__(self) -> None:
        self.worker, self.node, self.pid = self.greeting.worker, self.greeting.node, self.greeting.pid

    def hang_up(self) -> None:
        """End the connection at once; not a word that is still on its way is heard."""
        self.transport.abort()

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
    of the worker's, whose line stays.
    """

    def __init__(
        self,
        secret: str,
        joined: Callable[[Line], None],
        said: Callable[[Line, Said], None],
        gone: Callable[[Line, str], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._secret, self._joined, self._said, self._gone = secret, joined, said, gone
        self._failed, self._gap = failed, 0.0
        self.lines: dict[str, Line] = {}
        self._outbox: deque[Iterator[tuple[str, Order | bytes]]] = deque()
        """What is to be written to whom; it is made and encoded only then: there may be an order of its own for each of
        all workers."""
        self._room, self._turning = TURN, False
        """Orders that may still be written in this turn of the event loop, and whether the next is due."""
        self._accepting: asyncio.Task[None] | None = None
        self._greeted: set[asyncio.Task[None]] = set()
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

    def gap(self) -> float:
        """The longest silence of a living worker, in seconds, that has ended since this was last asked."""
        gap, self._gap = self._gap, 0.0
        return gap

    def send(self, worker: str, order: Order) -> None:
        """Send to a worker if it is still there; if not, its `gone` says so."""
        self.broadcast((worker,), order)

    def broadcast(self, workers: Iterable[str], order: Order) -> None:
        """Send the same to several workers: it is encoded once."""
        data = encode(order)
        self._outbox.append((worker, data) for worker in workers)
        self._send()

    def send_all(self, orders: Iterable[tuple[str, Order | bytes]]) -> None:
        """Send what is said as (worker, order), in that order; it is not asked for before there is room to write it.
        Bytes: an order that is encoded already."""
        self._outbox.append(iter(orders))
        self._send()

    def _send(self) -> None:
        """Write what waits, but not so much in one turn of the event loop that others are held up by it."""
        while self._outbox and self._room:
            found = next(self._outbox[0], None)
            if found is None:
                self._outbox.popleft()
            elif (line := self.lines.get(found[0])) is not None:
                line.transport.write(found[1] if isinstance(found[1], bytes) else encode(found[1]))
                self._room -= 1
        if not self._turning:
            self._turning = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._turning, self._room = False, TURN
        if self._outbox:
            self._send()

    async def _accept(self, listener: socket.socket) -> None:
        loop, told = asyncio.get_running_loop(), False
        while True:
            try:
                connection, (address, *_) = await loop.sock_accept(listener)
            except OSError as error:
                if not told:
                    logger.warning("no connection can be accepted (%s); trying on", error)
                told = True
                await asyncio.sleep(PAUSE)
                continue
            told = False
            if self._strangers[address] >= ALIKE or self._strangers.total() >= STRANGERS:
                connection.close()
                continue
            self._strangers[address] += 1
            task = asyncio.create_task(self._welcome(connection, address))
            self._greeted.add(task)
            task.add_done_callback(self._greeted.discard)

    async def _welcome(self, connection: socket.socket, address: str) -> None:
        """Let a connection in, if it is a worker of this run."""
        try:
            try:
                async with asyncio.timeout(GREETING_TIME):
                    greeting, welcome = await greeted(connection, self._secret)
            finally:
                self._strangers[address] -= 1
                if not self._strangers[address]:
                    del self._strangers[address]
            conversation = Conversation(self._heard, self._lost)
            transport, _ = await asyncio.get_running_loop().connect_accepted_socket(lambda: conversation, connection)
            if transport.is_closing() or greeting.worker in self.lines:
                transport.abort()
                return
            line = conversation.line = self.lines[greeting.worker] = Line(greeting, transport)
            transport.write(welcome)
            self._tell(self._joined, line)
        except (OSError, ValueError):
            connection.close()  # a stranger, or one that is gone already

    def _heard(self, line: Line, data: bytes) -> None:
        """A line of a worker. Raises ValueError: it is no message, or in another's name."""
        now = time.monotonic()
        self._gap = max(self._gap, line.silent(now))
        line.heard, line.deaf = now, 0.0
        message = said(data)
        if isinstance(message, Beat):
            if (line.phase, line.steps) != (message.phase, message.steps):
                line.phase, line.steps, line.since = message.phase, message.steps, now
            line.machine = message.node or line.machine
            return
        if getattr(message, "worker", line.worker) != line.worker:
            raise ValueError("it spoke in another's name")
        self._tell(self._said, line, message)

    def _lost(self, line: Line, why: str) -> None:
        if self.lines.get(line.worker) is line:
            del self.lines[line.worker]
            self._tell(self._gone, line, why)

    def _tell(self, listener: Callable[..., None], *what: Any) -> None:
        try:
            listener(*what)
        except Exception as error:
            self._failed(error)


class Conversation(asyncio.Protocol):
    """Cuts what a worker sends into lines. `line`: whose they are, once it was let in."""

    def __init__(self, heard: Callable[[Line, bytes], None], lost: Callable[[Line, str], None]) -> None:
        self._heard, self._lost = heard, lost
        self._begun: list[bytes] = []
        """Of a line whose end has not come."""
        self._size = 0
        self._why = "connection closed"
        self.line: Line | None = None

    def data_received(self, data: bytes) -> None:
        assert self.line is not None
        first, *more = data.split(b"\n")
        self._begun.append(first)
        self._size += len(first)
        if more:
            lines = [b"".join(self._begun), *more[:-1]]
            self._begun, self._size = [more[-1]], len(more[-1])
            for one in lines:
                if self.line.transport.is_closing():
                    return  # it was fenced meanwhile
                try:
                    self._heard(self.line, one)
                except ValueError as error:
                    self._end(f"connection lost: {error}")
                    return
        if self._size > LINE_LIMIT:
            self._end(f"connection lost: a line of more than {LINE_LIMIT} bytes")

    def _end(self, why: str) -> None:
        assert self.line is not None
        self._why = why
        self.line.hang_up()

    def connection_lost(self, error: Exception | None) -> None:
        if self.line is not None:
            self._lost(self.line, self._why if error is None else f"connection lost: {error}")


async def greeted(connection: socket.socket, secret: str) -> tuple[Greeting, bytes]:
    """Hear a caller's greeting; returns it, and the welcome that is to be said.

    Raises:
        OSError, ValueError: it is none of this run.
    """
    loop, challenge = asyncio.get_running_loop(), nonce()
    connection.setblocking(False)
    await loop.sock_sendall(connection, encode(Challenge(VERSION, challenge)))
    heard = b""
    while not heard.endswith(b"\n"):
        part = await loop.sock_recv(connection, GREETING_LIMIT + 1 - len(heard))
        heard += part
        if not part or b"\n" in heard[:-1] or len(heard) > GREETING_LIMIT:
            raise ValueError("no greeting")
    hello = decode(heard)
    if isinstance(hello, Hello) and hello.version != VERSION:
        await loop.sock_sendall(connection, encode(Refused(other_version(hello.version))))
    if not isinstance(hello, Hello) or hello.version != VERSION or not knows(secret, hello, challenge):
        raise ValueError("not of this run")
    return hello.greeting, encode(Welcome(proof(secret, "controller", hello.nonce, challenge)))
