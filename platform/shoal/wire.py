"""The lifeline between a worker and the controller: JSON, one message a line, over one TCP connection.

The kernel closes the connection of a process that dies, so the other side knows within milliseconds. Both sides prove
that they know the run's secret before anything else is said, and the secret itself never crosses:

    controller  challenge(nonce)
    worker      hello(who it is, nonce, proof over all of it and the controller's nonce)
    controller  welcome(proof over both nonces)

Nothing else is said to a stranger. Nothing is ever unpickled.
"""

from __future__ import annotations

import fcntl
import hmac
import json
import secrets
import socket
import struct
import time
from typing import Any

__all__ = [
    "GREETING_LIMIT",
    "GREETING_TIME",
    "LINE_LIMIT",
    "answers",
    "decode",
    "encode",
    "greet",
    "interface_of",
    "nonce",
    "proof",
    "read_line",
    "same",
]

LINE_LIMIT = 16 * 1024 * 1024
"""Longest message in bytes; a longer one closes the connection."""

GREETING_LIMIT, GREETING_TIME = 4096, 5.0
"""Of a greeting: longest line in bytes, and the seconds it may take."""

SIOCGIFADDR = 0x8915


def encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":"), allow_nan=True).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """The message in a line.

    Raises:
        ValueError: not a JSON object with a `type`.
    """
    try:
        message = json.loads(line)
    except RecursionError as error:
        raise ValueError("a message that is nested too deep") from error
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise ValueError("a message is a JSON object with a type")
    return message


def nonce() -> str:
    return secrets.token_hex(16)


def proof(secret: str, *said: Any) -> str:
    """Of knowing a secret, good for exactly what is said (JSON), in hexadecimal."""
    text = json.dumps(said, sort_keys=True, separators=(",", ":"))
    return hmac.new(secret.encode(), text.encode(), "sha256").hexdigest()


def same(given: Any, wanted: str) -> bool:
    """Whether a stranger's word is the wanted one; takes as long whichever it is."""
    return isinstance(given, str) and hmac.compare_digest(given.encode(errors="replace"), wanted.encode())


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


def greet(connection: socket.socket, secret: str, hello: dict[str, Any], seconds: float) -> None:
    """A worker's first words. A controller that is busy may take its time.

    Raises:
        OSError, ValueError: it was not let in, or who answers does not know the secret.
    """
    challenge = decode(read_line(connection, GREETING_LIMIT, seconds))
    said = hello | {"nonce": nonce()}
    connection.sendall(encode(said | {"proof": proof(secret, "worker", challenge["nonce"], said)}))
    welcome = decode(read_line(connection, GREETING_LIMIT, seconds))
    if not same(welcome.get("proof"), proof(secret, "controller", said["nonce"], challenge["nonce"])):
        raise OSError("who listens there does not know this run's secret")


def answers(hello: dict[str, Any], secret: str, challenge: str) -> bool:
    """Whether a worker's `hello` proves that it knows the secret, after `challenge` (the controller's nonce)."""
    said = {key: value for key, value in hello.items() if key != "proof"}
    return same(hello.get("proof"), proof(secret, "worker", challenge, said))


def interface_of(address: str) -> str | None:
    """Name of the network interface that holds an IPv4 address (gloo is told interfaces, not addresses)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                packed = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue
            if socket.inet_ntoa(packed[20:24]) == address:
                return name
    return None
