"""The lifeline between a worker and the controller: JSON, one message a line, over one TCP connection.

The kernel closes the connection of a process that dies, so the other side knows within milliseconds. The first line
of a worker carries the run's secret; nothing is answered to a stranger. Nothing is ever unpickled.
"""

from __future__ import annotations

import fcntl
import json
import socket
import struct
from typing import Any

__all__ = ["LINE_LIMIT", "decode", "encode", "interface_of"]

LINE_LIMIT = 16 * 1024 * 1024
"""Longest message in bytes; a longer one closes the connection."""

SIOCGIFADDR = 0x8915


def encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":"), allow_nan=True).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """The message in a line.

    Raises:
        ValueError: not a JSON object with a `type`.
    """
    message = json.loads(line)
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise ValueError("a message is a JSON object with a type")
    return message


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
