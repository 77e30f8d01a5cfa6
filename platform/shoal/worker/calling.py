"""Calling a controller, and proving to it that this worker is of the run (`protocol.greeting`)."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from shoal.protocol.codec import decode, encode
from shoal.protocol.greeting import (
    GREETING_LIMIT,
    VERSION,
    Challenge,
    Greeting,
    Refused,
    Welcome,
    hello,
    matches,
    other_version,
    proof,
)
from shoal.protocol.said import Moved

__all__ = ["Caller", "NoRoom", "call", "greet", "hang_up", "read_line"]

TRIES, PAUSE = 5, 0.5
"""To be let in by a controller that is too busy to hear a greeting out, and the seconds between two tries, half as many
to half as many again: those who were turned away together do not come back together."""


class NoRoom(OSError):
    """A controller has too many callers at the moment: it closed the connection without a word."""


class Caller:
    """Calls one controller after another, each in a thread of its own, and goes by the newest: one that is frozen, or
    whose machine is gone, keeps nobody from its successor. `take`: called with the connection to the newest; `seconds`:
    for `call`."""

    def __init__(self, take: Callable[[socket.socket], None], seconds: float) -> None:
        self._take, self._seconds = take, seconds
        self._lock = threading.Lock()
        self._newest: Future[None] = Future()

    def call(self, address: tuple[str, int], secret: str, greeting: Callable[[], Greeting]) -> Future[None]:
        """Call the controller at `address`. Done when it has let this worker in, or when another is called after it;
        the future has what `call` raises."""
        called: Future[None] = Future()
        with self._lock:
            if not self._newest.done():
                self._newest.set_result(None)
            self._newest = called
        calling = (called, address, secret, greeting)
        threading.Thread(target=self._calls, args=calling, daemon=True, name="link-calls").start()
        return called

    def _calls(
        self, called: Future[None], address: tuple[str, int], secret: str, greeting: Callable[[], Greeting]
    ) -> None:
        try:
            fresh = call(address, secret, greeting, self._seconds)
        except Exception as error:
            with self._lock:
                if not called.done():
                    called.set_exception(error)
            return
        with self._lock:
            if called.done():
                hang_up(fresh, moved=True)
            else:
                self._take(fresh)
                called.set_result(None)


def call(address: tuple[str, int], secret: str, greeting: Callable[[], Greeting], seconds: float) -> socket.socket:
    """A connection to the controller at `address`, which has let this worker in. While it has no room for one more
    caller it is called again, for `seconds`: all workers of a run call a controller that came back at once.

    Raises:
        OSError: nobody listens there, or not who knows the secret, or there was no room all that time.
    """
    end, tries = time.monotonic() + seconds, TRIES
    while True:
        connection = socket.create_connection(address, timeout=seconds)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            greet(connection, secret, greeting(), seconds)
            connection.settimeout(None)
            return connection
        except (OSError, ValueError) as error:
            connection.close()
            tries -= not isinstance(error, NoRoom)
            if not tries or time.monotonic() > end:
                raise OSError(f"{address[0]}:{address[1]} did not let this worker in: {error}") from error
        time.sleep(random.uniform(0.5, 1.5) * PAUSE)


def read_line(connection: socket.socket, limit: int, seconds: float) -> bytes:
    """One line, and not a byte beyond it. The connection's timeout is `seconds` or less afterwards.

    Raises:
        OSError: the connection ended, the line is longer than `limit` bytes, or takes longer than `seconds` in all.
    """
    line, end = bytearray(), time.monotonic() + seconds
    while not line.endswith(b"\n"):
        connection.settimeout(max(0.001, end - time.monotonic()))
        byte = connection.recv(1)
        if not byte or len(line) >= limit:
            raise OSError("the connection was closed" if not byte else f"a line of more than {limit} bytes")
        line += byte
    return bytes(line)


def greet(connection: socket.socket, secret: str, greeting: Greeting, seconds: float) -> None:
    """A worker's first words. A controller that is busy may take its time.

    Raises:
        NoRoom: the connection was closed before a word. OSError, ValueError: it was not let in, or who answers does not
        know the secret.
    """
    try:
        challenge = decode(read_line(connection, GREETING_LIMIT, seconds))
    except OSError as error:
        raise NoRoom(*error.args) from error
    if not isinstance(challenge, Challenge):
        raise ValueError("who listens there is no controller")
    if challenge.version != VERSION:
        raise ValueError(other_version(challenge.version))
    said = hello(secret, greeting, challenge.nonce)
    connection.sendall(encode(said))
    answer = decode(read_line(connection, GREETING_LIMIT, seconds))
    if isinstance(answer, Refused):
        raise ValueError(answer.reason)
    wanted = proof(secret, "controller", said.nonce, challenge.nonce)
    if not isinstance(answer, Welcome) or not matches(answer.proof, wanted):
        raise ValueError("who listens there does not know this run's secret")


def hang_up(connection: socket.socket, *, moved: bool = False) -> None:
    """End a connection that another thread may be reading. `moved`: say that this worker obeys another controller."""
    if moved:
        with contextlib.suppress(OSError):  # it is gone, as a rule
            connection.send(encode(Moved()), socket.MSG_DONTWAIT)
    with contextlib.suppress(OSError):  # it has ended already
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
