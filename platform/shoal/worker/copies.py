"""Copies of other workers' snapshots in this one's memory: what a run goes on from when no living cell holds a shard.

A small server keeps the two newest copies of each rank it was appointed for, and gives them back. Two, because the
others' newest may be one snapshot behind while they are on their way. See DESIGN: recall.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import secrets
import socket
import socketserver
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from shoal.worker.transfer import buckets

__all__ = ["Copies", "Keeper", "LostCopy", "fetch", "push"]

HEADER_LIMIT = 4096
HELD = 2


class LostCopy(Exception):
    """A copy is not to be had any more."""


@dataclass(frozen=True)
class Keeper:
    """Where copies go to or come from. `era`: of the run's history, anew whenever steps were undone."""

    address: tuple[str, int]
    token: str
    era: int = 0

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> Keeper:
        return cls((str(raw["address"][0]), int(raw["address"][1])), str(raw["token"]), int(raw["era"]))


@dataclass(frozen=True)
class Copy:
    steps: int
    data: bytearray
    crc: int


class Copies:
    """Serves this process's copies on `address`. `kept(rank, steps, era)` is called when one has arrived whole."""

    def __init__(self, address: str, kept: Callable[[int, int, int], None], timeout: float) -> None:
        self.token = secrets.token_hex(16)
        self._kept, self._lock = kept, threading.Lock()
        self._held: dict[int, list[Copy]] = {}
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                self.connection.settimeout(timeout)
                with contextlib.suppress(OSError, ValueError):  # whoever called hears it from the closed connection
                    outer._serve(self.connection)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True

        self._server = Server((address, 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True, name="copies").start()

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._server.server_address[:2]
        return str(host), int(port)

    def _serve(self, line: socket.socket) -> None:
        asked = _read_header(line)
        if not hmac.compare_digest(str(asked.get("token")), self.token):
            return
        rank, steps = int(asked["rank"]), int(asked["steps"])
        if asked["what"] == "keep":
            data = bytearray(int(asked["bytes"]))
            _receive(line, memoryview(data))
            self._keep(rank, Copy(steps, data, int(asked["crc"])))
            self._kept(rank, steps, int(asked["era"]))
            _send_header(line, {"bytes": len(data)})
        else:
            with self._lock:
                copy = next((c for c in self._held.get(rank, ()) if c.steps == steps), None)
            _send_header(line, {"bytes": -1} if copy is None else {"bytes": len(copy.data), "crc": copy.crc})
            if copy is not None:
                line.sendall(copy.data)

    def _keep(self, rank: int, copy: Copy) -> None:
        if zlib.crc32(copy.data) != copy.crc:
            raise ValueError("the copy was damaged on its way")
        with self._lock:
            older = [c for c in self._held.get(rank, ()) if c.steps < copy.steps]
            self._held[rank] = [*older, copy][-HELD:]


def push(tensors: Sequence[torch.Tensor], rank: int, steps: int, keeper: Keeper, timeout: float) -> None:
    """Send a copy of the state of `rank` after `steps` committed steps, and return when it is held there.

    Raises:
        OSError: the keeper is gone or does not answer. ValueError: it closed the connection.
    """
    parts = [memoryview(part.numpy().data) for bucket in buckets(tensors) for part in bucket]
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    asked = {"what": "keep", "token": keeper.token, "rank": rank, "steps": steps, "era": keeper.era, "crc": crc}
    with socket.create_connection(keeper.address, timeout=timeout) as line:
        _send_header(line, asked | {"bytes": sum(part.nbytes for part in parts)})
        for part in parts:
            line.sendall(part)
        _read_header(line)


def fetch(tensors: Sequence[torch.Tensor], rank: int, steps: int, keeper: Keeper, timeout: float) -> int:
    """Fill `tensors` from the keeper's copy of `rank` after `steps` committed steps; returns the bytes.

    Raises:
        LostCopy: the keeper is gone, has no such copy, or it is damaged; the tensors are then undefined.
    """
    try:
        with socket.create_connection(keeper.address, timeout=timeout) as line:
            _send_header(line, {"what": "give", "token": keeper.token, "rank": rank, "steps": steps})
            answer = _read_header(line)
            parts = [part for bucket in buckets(tensors) for part in bucket]
            if answer["bytes"] != sum(part.numel() for part in parts):
                raise LostCopy(f"the keeper's copy of step {steps} has {answer['bytes']} bytes")
            crc = 0
            for part in parts:
                received = bytearray(part.numel())
                _receive(line, memoryview(received))
                crc = zlib.crc32(received, crc)
                part.copy_(torch.frombuffer(received, dtype=torch.uint8))
    except (OSError, ValueError) as error:
        raise LostCopy(f"the keeper did not answer: {error}") from error
    if crc != answer["crc"]:
        raise LostCopy(f"the keeper's copy of step {steps} is damaged")
    return int(answer["bytes"])


def _send_header(line: socket.socket, header: Mapping[str, Any]) -> None:
    line.sendall(json.dumps(header).encode() + b"\n")


def _read_header(line: socket.socket) -> dict[str, Any]:
    """One short JSON line, and not a byte beyond it."""
    data = bytearray()
    while not data.endswith(b"\n"):
        byte = line.recv(1)
        if not byte or len(data) > HEADER_LIMIT:
            raise ValueError("no header")
        data += byte
    found = json.loads(data)
    if not isinstance(found, dict):
        raise ValueError("no header")
    return found


def _receive(line: socket.socket, into: memoryview) -> None:
    while into.nbytes:
        got = line.recv_into(into)
        if not got:
            raise OSError("the connection ended half-way")
        into = into[got:]
