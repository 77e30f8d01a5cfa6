"""Calling a controller, and proving to it that this worker is of the run (`protocol.greeting`)."""

from __future__ import annotations

import socket
import time

from shoal.protocol.codec import decode, encode
from shoal.protocol.greeting import (
    GREETING_LIMIT,
    VERSION,
    Challenge,
    Greeting,
    Refused,
    Welcome,
    hello,
    other_version,
    proof,
    same,
)

__all__ = ["greet", "read_line"]


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
        OSError, ValueError: it was not let in, or who answers does not know the secret.
    """
    challenge = decode(read_line(connection, GREETING_LIMIT, seconds))
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
    if not isinstance(answer, Welcome) or not same(answer.proof, wanted):
        raise ValueError("who listens there does not know this run's secret")
