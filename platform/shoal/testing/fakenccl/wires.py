"""What carries a communicator's bytes: gloo for what all its members do, a socket for what two say to each other.

A wire is made, used and closed in one thread; `cut`, from any, frees that thread.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.distributed as dist

__all__ = ["GlooWire", "Lines", "Pair", "Wire", "gloo_options"]

HERE = "127.0.0.1"
LOOK = 0.002
"""Seconds between two looks for a peer that has not opened its end yet."""
SIZE = struct.Struct("!cq")
ASKS, SENDS = b"R", b"S"


class Wire(Protocol):
    def run(self, start: Callable[[Any], Any]) -> None:
        """Do what `start` begins on this wire. Raises RuntimeError, OSError: it cannot come to its end."""

    def cut(self) -> None: ...

    def close(self) -> None: ...


def gloo_options(timeout: Any) -> Any:
    """Of a group on this machine."""
    gloo: Any = dist.ProcessGroupGloo  # of which the stubs do not know all
    options = gloo._Options()
    options._devices = [gloo.create_device(hostname=HERE, lazy_init=False)]
    options._timeout = timeout
    return options


class GlooWire:
    """A gloo group. Only the thread that made it holds it: gloo's own threads must not be the last to."""

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: Any) -> None:
        self._gloo: Any = dist.ProcessGroupGloo(store, rank, size, gloo_options(timeout))
        self._changed = threading.Condition()
        self._cut = False

    def run(self, start: Callable[[Any], Any]) -> None:
        begun, ended = start(self._gloo), threading.Event()
        future = begun.get_future() if isinstance(begun, dist.Work) else begun

        def done(_: Any) -> None:
            with self._changed:
                ended.set()
                self._changed.notify_all()

        future.add_done_callback(done)
        with self._changed:
            self._changed.wait_for(lambda: ended.is_set() or self._cut)
        if not ended.is_set():
            raise RuntimeError("cut")
        future.value()

    def cut(self) -> None:
        with self._changed:
            self._cut = True
            self._changed.notify_all()

    def close(self) -> None:
        gloo, self._gloo = self._gloo, None
        gloo.abort()


class Pair:
    """Between two ranks, of which the `low` one listens at an abstract address. A sender waits until it is asked, so
    two that send to each other first wait for ever."""

    def __init__(self, address: str, *, low: bool) -> None:
        self._address, self._low = "\0" + address, low
        self._cut = False
        self._ends: list[socket.socket] = []
        self._line: socket.socket | None = None

    def open(self) -> None:
        """Raises RuntimeError: it was cut before the peer was there."""
        if self._line is None:
            self._line = self._accept() if self._low else self._connect()

    def send(self, tensor: torch.Tensor) -> None:
        kind, size = SIZE.unpack(self._read(SIZE.size))
        data = octets(tensor)
        if kind != ASKS or size != len(data):
            raise RuntimeError(f"{len(data)} bytes are sent where the peer receives {size}")
        assert self._line is not None
        self._line.sendall(SIZE.pack(SENDS, size))
        self._line.sendall(data)

    def receive(self, tensor: torch.Tensor) -> None:
        wanted = tensor.numel() * tensor.element_size()
        assert self._line is not None
        self._line.sendall(SIZE.pack(ASKS, wanted))
        kind, _ = SIZE.unpack(self._read(SIZE.size))
        if kind != SENDS:
            raise RuntimeError("both receive")
        data = torch.frombuffer(bytearray(self._read(wanted)), dtype=torch.uint8) if wanted else torch.empty(0)
        with torch.no_grad():
            tensor.copy_(data.view(tensor.dtype).view(tensor.shape))

    def cut(self) -> None:
        self._cut = True
        for end in list(self._ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for end in self._ends:
            end.close()

    def _open(self) -> socket.socket:
        end = socket.socket(socket.AF_UNIX)
        self._ends.append(end)
        return end

    def _accept(self) -> socket.socket:
        listening = self._open()
        listening.bind(self._address)
        listening.listen(1)
        listening.settimeout(LOOK)
        while not self._cut:
            with contextlib.suppress(TimeoutError):
                line, _ = listening.accept()
                self._ends.append(line)
                line.settimeout(None)
                return line
        raise RuntimeError("cut")

    def _connect(self) -> socket.socket:
        line = self._open()
        while not self._cut:
            with contextlib.suppress(ConnectionRefusedError, FileNotFoundError):
                line.connect(self._address)
                return line
            time.sleep(LOOK)
        raise RuntimeError("cut")

    def _read(self, size: int) -> bytes:
        """Raises OSError: the peer is gone."""
        assert self._line is not None
        found = bytearray()
        while len(found) < size:
            part = self._line.recv(min(size - len(found), 1 << 20))
            if not part:
                raise ConnectionResetError("the peer is gone")
            found += part
        return bytes(found)


class Lines:
    """Pairs by peer, whose messages stand in one queue. `pair`: makes the one to a peer."""

    def __init__(self, pair: Callable[[int], Pair]) -> None:
        self._pair, self._pairs, self._cut = pair, dict[int, Pair](), False

    def run(self, start: Callable[[Any], Any]) -> None:
        start(self)

    def to(self, peer: int) -> Pair:
        """Raises RuntimeError: it was cut before the peer was there."""
        if peer not in self._pairs:
            self._pairs[peer] = self._pair(peer)
        if self._cut:
            raise RuntimeError("cut")
        self._pairs[peer].open()
        return self._pairs[peer]

    def cut(self) -> None:
        self._cut = True
        for pair in list(self._pairs.values()):
            pair.cut()

    def close(self) -> None:
        for pair in self._pairs.values():
            pair.close()


def octets(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data
