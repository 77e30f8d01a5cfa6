"""Copies of other workers' snapshots in this one's memory: what a run goes on from when no living cell holds a shard.

A small server keeps the two newest copies of each rank it was appointed for, and gives ranges of them, and of all else
that lies on this worker's shelf. Two, because the others' newest may be one snapshot behind while they are on their
way. Who asks proves that it knows the run's secret, which never crosses; the states themselves cross in clear.
"""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import xxhash

from shoal.protocol import codec
from shoal.protocol.codec import encode
from shoal.protocol.copying import Coming, Enter, Keep, Look, Missing, Ranges, Whole, proves
from shoal.protocol.greeting import GREETING_LIMIT, GREETING_TIME, VERSION, Challenge, Refused, nonce, other_version
from shoal.worker.calling import read_line
from shoal.worker.peers import receive
from shoal.worker.shelf import Held, Shelf, copy_name
from shoal_core.ckpt.state import room
from shoal_core.ckpt.tables import heard

__all__ = ["CopyServer", "LostCopy"]

KEPT = 2
LARGEST, LARGEST_TABLE = 1 << 40, 1 << 28
"""Bytes of a copy, and of what it says of itself."""
ASKED = 1 << 16
"""Bytes of a line that asks for ranges."""
CALLERS = 64
"""Connections served at a time; more are closed at once, and tried again."""
PAUSE = 0.5
"""Seconds without accepting when the system has nothing left to accept with (descriptors)."""


class LostCopy(Exception):
    """A copy is not to be had any more."""


class CopyServer:
    """Serves what is on `shelf` on `address` to who knows `secret()`. `kept(rank, steps, era, shape)` is called when a
    copy has arrived whole. `given`: bytes that others were given, by name."""

    def __init__(
        self,
        address: str,
        kept: Callable[[int, int, int, int], None],
        timeout: float,
        secret: Callable[[], str],
        shelf: Shelf | None = None,
    ) -> None:
        self._kept, self._secret, self._timeout, self._lock = kept, secret, timeout, threading.Lock()
        self.shelf = Shelf() if shelf is None else shelf
        self.given: Counter[str] = Counter()
        self._steps: dict[int, list[tuple[int, int]]] = {}
        self._server = Server((address, 0), self._answer)
        threading.Thread(target=self._server.serve_forever, daemon=True, name="copies").start()

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._server.server_address[:2]
        return str(host), int(port)

    def _answer(self, line: socket.socket) -> None:
        """Serve one caller; it hears of a failure from the closed connection."""
        with contextlib.suppress(OSError, ValueError, MemoryError, RuntimeError):
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            challenge = nonce()
            line.sendall(encode(Challenge(VERSION, challenge)))
            asked = codec.copying(read_line(line, GREETING_LIMIT, GREETING_TIME))
            if not isinstance(asked, Keep | Enter):
                return
            if asked.version != VERSION:
                line.sendall(encode(Refused(other_version(asked.version))))
            elif proves(self._secret(), asked, challenge):
                line.settimeout(self._timeout)
                self._keep(line, asked) if isinstance(asked, Keep) else self._serve(line)

    def _keep(self, line: socket.socket, asked: Keep) -> None:
        """Take a copy, which makes room for itself."""
        if not 0 <= asked.bytes <= LARGEST or not 0 <= asked.table <= LARGEST_TABLE:
            raise ValueError("no such copy")
        content = torch.empty(asked.bytes, dtype=torch.uint8)
        said = room(asked.table)
        if receive(line, memoryview(content.numpy().data), said) != asked.sum:
            raise ValueError("the copy was damaged on its way")
        rank, steps, shape = asked.rank, asked.steps, asked.shape
        name = copy_name(rank, steps, shape)
        held = Held([content], heard(json.loads(bytes(said)), name, asked.bytes))
        with self._lock:
            before = self._steps.get(rank, [])
            now = [*sorted(one for one in before if one < (steps, shape)), (steps, shape)][-KEPT:]
            self._steps[rank] = now
            self.shelf.put(name, held)
            for one in set(before) - set(now):
                self.shelf.drop(copy_name(rank, *one))
        self._kept(rank, steps, asked.era, shape)
        line.sendall(encode(Whole(asked.bytes, asked.sum)))

    def _serve(self, line: socket.socket) -> None:
        """Answer one who entered as often as it asks."""
        with line.makefile("rb") as words:
            while said := words.readline(ASKED):
                match codec.copying(said):
                    case Look(prefix):
                        tables = self.shelf.told(prefix)
                        line.sendall(encode(Whole(len(tables), xxhash.xxh3_64_intdigest(tables))))
                        line.sendall(tables)
                    case Ranges(file, ranges):
                        line.sendall(encode(self._give(line, file, ranges)))
                    case _:
                        return

    def _give(self, line: socket.socket, name: str, ranges: tuple[tuple[int, int], ...]) -> Whole | Missing:
        """Send ranges of what is held by a name, if it is. Returns the last word on them."""
        held = self.shelf.get(name)
        if held is None or not held.stands() or not all(0 <= at <= at + n <= held.bytes for at, n in ranges):
            return Missing()
        line.sendall(encode(Coming(held.bytes)))
        summed = xxhash.xxh3_64()
        for at, size in ranges:
            for view in held.views(at, size):
                summed.update(view)
                line.sendall(view)
        if not held.stands():
            return Missing()
        size = sum(size for _, size in ranges)
        with self._lock:
            self.given[name] += size
        return Whole(size, int(summed.intdigest()))


class Server(socketserver.TCPServer):
    """A thread a caller, and no more of them than may be."""

    request_queue_size = CALLERS

    def __init__(self, address: tuple[str, int], answer: Callable[[socket.socket], None]) -> None:
        super().__init__(address, socketserver.BaseRequestHandler)
        self._answer, self._room = answer, threading.Semaphore(CALLERS)

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError:
            time.sleep(PAUSE)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return

        def serve() -> None:
            try:
                self._answer(request)
            finally:
                self._room.release()
                self.shutdown_request(request)

        threading.Thread(target=serve, daemon=True, name="copies-caller").start()
