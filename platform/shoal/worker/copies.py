"""Copies of other workers' snapshots in this one's memory: what a run goes on from when no living cell holds a shard.

A small server keeps the two newest copies of each rank it was appointed for, and gives them back. Two, because the
others' newest may be one snapshot behind while they are on their way. Who asks proves that it knows the run's secret,
which never crosses; the copies themselves cross in clear.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from shoal.protocol import codec
from shoal.protocol.codec import encode
from shoal.protocol.copying import Give, Keep, Missing, Whole, proves, signed
from shoal.protocol.greeting import GREETING_LIMIT, GREETING_TIME, VERSION, Challenge, Refused, nonce, other_version
from shoal.protocol.orders import Keeper
from shoal.worker.calling import read_line
from shoal.worker.transfer import buckets

__all__ = ["CopyServer", "LostCopy", "fetch", "push"]

HELD = 2
LARGEST = 1 << 40
"""Bytes of a copy."""
CALLERS = 64
"""Connections served at a time; more are closed at once, and tried again with the next snapshot."""
PAUSE = 0.5
"""Seconds without accepting when the system has nothing left to accept with (descriptors)."""


class LostCopy(Exception):
    """A copy is not to be had any more."""


@dataclass(frozen=True)
class Copy:
    steps: int
    data: bytearray
    crc: int


class CopyServer:
    """Serves this process's copies on `address` to who knows `secret()`. `kept(rank, steps, era)` is called when one
    has arrived whole."""

    def __init__(
        self, address: str, kept: Callable[[int, int, int], None], timeout: float, secret: Callable[[], str]
    ) -> None:
        self._kept, self._secret, self._timeout, self._lock = kept, secret, timeout, threading.Lock()
        self._held: dict[int, list[Copy]] = {}
        self._server = Server((address, 0), self._answer)
        threading.Thread(target=self._server.serve_forever, daemon=True, name="copies").start()

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._server.server_address[:2]
        return str(host), int(port)

    def _answer(self, line: socket.socket) -> None:
        """Serve one caller; it hears of a failure from the closed connection."""
        with contextlib.suppress(OSError, ValueError, MemoryError):
            challenge = nonce()
            line.sendall(encode(Challenge(VERSION, challenge)))
            asked = codec.copying(read_line(line, GREETING_LIMIT, GREETING_TIME))
            if not isinstance(asked, Keep | Give):
                return
            if asked.version != VERSION:
                line.sendall(encode(Refused(other_version(asked.version))))
            elif proves(self._secret(), asked, challenge):
                line.settimeout(self._timeout)
                self._serve(line, asked)

    def _serve(self, line: socket.socket, asked: Keep | Give) -> None:
        if isinstance(asked, Keep):
            if not 0 <= asked.bytes <= LARGEST:
                raise ValueError("no such copy")
            data = bytearray(asked.bytes)
            _receive(line, memoryview(data))
            self._keep(asked.rank, Copy(asked.steps, data, asked.crc))
            self._kept(asked.rank, asked.steps, asked.era)
            line.sendall(encode(Whole(len(data), asked.crc)))
        else:
            with self._lock:
                copy = next((c for c in self._held.get(asked.rank, ()) if c.steps == asked.steps), None)
            line.sendall(encode(Missing() if copy is None else Whole(len(copy.data), copy.crc)))
            if copy is not None:
                line.sendall(copy.data)

    def _keep(self, rank: int, copy: Copy) -> None:
        if zlib.crc32(copy.data) != copy.crc:
            raise ValueError("the copy was damaged on its way")
        with self._lock:
            older = [c for c in self._held.get(rank, ()) if c.steps < copy.steps]
            self._held[rank] = [*older, copy][-HELD:]


class Server(socketserver.TCPServer):
    """A thread a caller, and no more of them than may be."""

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


def push(tensors: Sequence[torch.Tensor], rank: int, steps: int, keeper: Keeper, secret: str, timeout: float) -> int:
    """Send a copy of the state of `rank` after `steps` committed steps; returns its bytes when it is held there.

    Raises:
        OSError: the keeper is gone or does not answer. ValueError: it does not keep the copy.
    """
    parts = [memoryview(part.numpy().data) for bucket in buckets(tensors) for part in bucket]
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    size = sum(part.nbytes for part in parts)
    with _asked(keeper, secret, Keep(rank, steps, keeper.era, size, crc), timeout) as line:
        for part in parts:
            line.sendall(part)
        _answered(line, timeout)
    return size


def fetch(tensors: Sequence[torch.Tensor], rank: int, steps: int, keeper: Keeper, secret: str, timeout: float) -> int:
    """Fill `tensors` from the keeper's copy of `rank` after `steps` committed steps; returns the bytes.

    Raises:
        LostCopy: the keeper is gone, has no such copy, or it is damaged; the tensors are then undefined.
    """
    try:
        with _asked(keeper, secret, Give(rank, steps), timeout) as line:
            held = _answered(line, timeout)
            line.settimeout(timeout)
            parts = [part for bucket in buckets(tensors) for part in bucket]
            if held.bytes != sum(part.numel() for part in parts):
                raise LostCopy(f"the keeper's copy of step {steps} has {held.bytes} bytes")
            crc = 0

            def add(view: memoryview) -> None:
                nonlocal crc
                crc = zlib.crc32(view, crc)

            with ThreadPoolExecutor(1, thread_name_prefix="copy-sum") as behind:  # one part while the next one comes
                for part in parts:
                    near = part if part.device.type == "cpu" else torch.empty(part.numel(), dtype=torch.uint8)
                    view = near.numpy().data
                    _receive(line, view)
                    behind.submit(add, view)
                    if near is not part:
                        part.copy_(near)
    except (OSError, ValueError) as error:
        raise LostCopy(f"the keeper did not give the copy of step {steps}: {error}") from error
    if crc != held.crc:
        raise LostCopy(f"the keeper's copy of step {steps} is damaged")
    return held.bytes


def _asked(keeper: Keeper, secret: str, asked: Keep | Give, timeout: float) -> socket.socket:
    """A connection to a keeper that was asked for something.

    Raises:
        OSError: it is gone. ValueError: it makes no sense, or speaks another version.
    """
    line = socket.create_connection(keeper.address, timeout=timeout)
    try:
        challenge = codec.copying(read_line(line, GREETING_LIMIT, timeout))
        if not isinstance(challenge, Challenge):
            raise ValueError("who listens there keeps no copies")
        if challenge.version != VERSION:
            raise ValueError(other_version(challenge.version))
        line.settimeout(timeout)
        line.sendall(encode(signed(secret, asked, challenge.nonce)))
        return line
    except BaseException:
        line.close()
        raise


def _answered(line: socket.socket, timeout: float) -> Whole:
    """The keeper's word that it holds the copy. The connection's timeout is `timeout` or less afterwards.

    Raises:
        OSError: it says nothing. ValueError: it says something else, and why.
    """
    answer = codec.copying(read_line(line, GREETING_LIMIT, timeout))
    if isinstance(answer, Whole):
        return answer
    raise ValueError(answer.reason if isinstance(answer, Refused) else "it holds no such copy")


def _receive(line: socket.socket, into: memoryview) -> None:
    while into.nbytes:
        got = line.recv_into(into)
        if not got:
            raise OSError("the connection ended half-way")
        into = into[got:]
