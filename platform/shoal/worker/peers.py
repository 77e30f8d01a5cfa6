"""Another worker's memory, as seen from this one: ranges of what it holds, and a copy that it is to keep."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

import xxhash

from shoal.protocol import codec
from shoal.protocol.codec import encode
from shoal.protocol.copying import Coming, Enter, Keep, Look, Ranges, Whole, signed
from shoal.protocol.greeting import GREETING_LIMIT, VERSION, Challenge, Refused, other_version
from shoal.protocol.orders import Keeper
from shoal.worker.calling import NoRoom, read_line
from shoal.worker.shelf import Held, heard_tables
from shoal.worker.transfer import buckets
from shoal_core.ckpt.errors import Damaged
from shoal_core.ckpt.state import room
from shoal_core.ckpt.tables import Table, told
from shoal_core.errors import StoreError

__all__ = ["Peer", "push", "receive"]

PAUSE = 0.2
"""Seconds before one who has no room for another caller is called again, half as many to half as many again."""
LARGEST = 1 << 28
"""Bytes of tables."""
REMEDY = "go on from another copy, or from a checkpoint"


class Peer:
    """What the worker at `address` holds: see `shoal_core.ckpt.read.Scattered`. Any number of threads may read: each
    has a connection of its own meanwhile, which the next one uses again. `timeout`: seconds of silence for which it is
    taken to be gone; `sizes`: bytes that what it holds must have, where that is known."""

    def __init__(
        self, address: tuple[str, int], secret: str, timeout: float, sizes: Mapping[str, int] | None = None
    ) -> None:
        self._sizes = sizes or {}
        self._address, self._secret, self._timeout = address, secret, timeout
        self._lock = threading.Lock()
        self._free: list[socket.socket] = []

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        while self._free:
            self._free.pop().close()

    def where(self, name: str) -> str:
        return f"{name} in the memory of {self._address[0]}:{self._address[1]}"

    def tables(self, prefix: str) -> Mapping[str, Table]:
        """What it holds by names that begin so.

        Raises:
            StoreError: it does not answer, or makes no sense.
        """
        with self._line(f"{prefix}*") as line:
            line.sendall(encode(Look(prefix)))
            whole = codec.copying(read_line(line, GREETING_LIMIT, self._timeout))
            if not isinstance(whole, Whole) or not 0 <= whole.bytes <= LARGEST:
                raise ValueError("it does not say what it holds")
            line.settimeout(self._timeout)
            content = room(whole.bytes)
            if receive(line, content) != whole.sum:
                raise ValueError("what it says it holds was damaged on its way")
            return heard_tables(content)

    def read_each(self, name: str, ranges: Sequence[tuple[int, memoryview]]) -> None:
        """See `Scattered`."""
        with self._line(name) as line:
            line.sendall(encode(Ranges(name, tuple(joined(ranges)))))
            whole = codec.copying(read_line(line, GREETING_LIMIT, self._timeout))
            if isinstance(whole, Coming):
                if self._sizes.get(name, whole.bytes) != whole.bytes:
                    raise ValueError(f"it has {whole.bytes} bytes there, not {self._sizes[name]}")
                line.settimeout(self._timeout)
                found = receive(line, *(buffer for _, buffer in ranges))
                whole = codec.copying(read_line(line, GREETING_LIMIT, self._timeout))
        if not isinstance(whole, Whole):
            raise FileNotFoundError(name)
        if whole.sum != found:
            raise Damaged(f"{self.where(name)}: was damaged on its way", REMEDY)

    @contextlib.contextmanager
    def _line(self, name: str) -> Iterator[socket.socket]:
        """A connection on which it may be asked. Raises: as `tables`."""
        try:
            with self._lock:
                line = self._free.pop() if self._free else None
            if line is None:
                line = called(self._address, self._secret, Enter(), self._timeout)
            try:
                yield line
            except BaseException:
                line.close()
                raise
            with self._lock:
                self._free.append(line)
        except (OSError, ValueError) as error:
            raise StoreError(f"{self.where(name)}: {error}", REMEDY) from error


def push(held: Held, rank: int, steps: int, keeper: Keeper, secret: str, timeout: float, shape: int = 0) -> int:
    """Send a copy of the state of `rank` after `steps` committed steps, in the shape of a number; returns its bytes
    when it is held there.

    Raises:
        OSError: the keeper is gone or does not answer. ValueError: it does not keep the copy.
    """
    table = told(held.table)
    parts = [memoryview(part.numpy().data) for bucket in buckets(held.tensors) for part in bucket]
    parts.append(memoryview(table))
    summed = xxhash.xxh3_64()
    for part in parts:
        summed.update(part)
    asked = Keep(rank, steps, keeper.era, held.bytes, len(table), summed.intdigest(), shape)
    with called(keeper.address, secret, asked, timeout) as line:
        for part in parts:
            line.sendall(part)
        answer = codec.copying(read_line(line, GREETING_LIMIT, timeout))
        if not isinstance(answer, Whole):
            raise ValueError(answer.reason if isinstance(answer, Refused) else "it keeps no such copy")
    return held.bytes


def called(address: tuple[str, int], secret: str, asked: Keep | Enter, timeout: float) -> socket.socket:
    """A connection to a worker that was asked for something. While it has no room for another caller it is called
    again.

    Raises:
        OSError: it is gone, or has no room all that time. ValueError: it makes no sense, or speaks another version.
    """
    end = time.monotonic() + timeout
    while True:
        line = socket.create_connection(address, timeout=timeout)
        try:
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            greet(line, secret, asked, timeout)
            return line
        except NoRoom:
            line.close()
            if time.monotonic() > end:
                raise
        except BaseException:
            line.close()
            raise
        time.sleep(random.uniform(0.5, 1.5) * PAUSE)


def greet(line: socket.socket, secret: str, asked: Keep | Enter, timeout: float) -> None:
    """The first words to a worker that holds something. Raises: as `called`."""
    try:
        said = read_line(line, GREETING_LIMIT, timeout)
    except OSError as error:
        raise NoRoom(*error.args) from error
    challenge = codec.copying(said)
    if not isinstance(challenge, Challenge):
        raise ValueError("who listens there holds no states")
    if challenge.version != VERSION:
        raise ValueError(other_version(challenge.version))
    line.settimeout(timeout)
    line.sendall(encode(signed(secret, asked, challenge.nonce)))


def joined(ranges: Sequence[tuple[int, memoryview]]) -> list[tuple[int, int]]:
    """Where each range begins, and its bytes; those that lie side by side are one."""
    found: list[tuple[int, int]] = []
    for at, buffer in ranges:
        if found and sum(found[-1]) == at:
            at, size = found.pop()
            found.append((at, size + buffer.nbytes))
        else:
            found.append((at, buffer.nbytes))
    return found


def receive(line: socket.socket, *buffers: memoryview) -> int:
    """Fill buffers, one after the other; returns the sum of all, made as they come.

    Raises:
        OSError: the connection ends before that, or is silent.
    """
    summed = xxhash.xxh3_64()
    for buffer in buffers:
        while buffer.nbytes:
            got = line.recv_into(buffer)
            if not got:
                raise OSError("the connection ended half-way")
            summed.update(buffer[:got])
            buffer = buffer[got:]
    return int(summed.intdigest())
