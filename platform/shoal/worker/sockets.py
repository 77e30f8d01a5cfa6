"""The connections of a cell's world, to be shut down from another thread; and the network interface of an address."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

__all__ = ["Sockets", "interface_of"]

SIOCGIFADDR = 0x8915


class Sockets:
    """The connections of a cell's world: those that were opened between `mark` and `taken`, and lead from or to an
    address that its members told each other. What other threads open meanwhile (a lifeline, copies, a corpus far away)
    does neither.

    A worker that is blocked in a collective of its cell cannot be told anything, and a peer that is frozen or cut off
    sends no reset. Shutting the connections down from another thread makes the collective fail at once.
    """

    def __init__(self) -> None:
        self._before: set[str] = set()
        self._mine: dict[int, str] = {}

    def mark(self) -> None:
        self._before, self._mine = set(self._all().values()), {}

    def taken(self, mentioned: Callable[[bytes], bool]) -> None:
        """`mentioned`: whether an address, as `packed`, is one of the members'."""
        fresh = {fd: inode for fd, inode in self._all().items() if inode not in self._before}
        self._mine = {fd: inode for fd, inode in fresh.items() if any(map(mentioned, ends(fd)))}

    def cut(self) -> None:
        """Shut them down, once. May be called in any thread."""
        mine, self._mine = self._mine, {}
        for fd, inode in mine.items():
            try:
                with socket.socket(fileno=os.dup(fd)) as connection:
                    same = os.readlink(f"/proc/self/fd/{connection.fileno()}") == inode
                    if same and not connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                        connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # closed meanwhile, or not connected: nobody can be blocked on it

    @staticmethod
    def _all() -> dict[int, str]:
        found = {}
        for name in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{name}")
            except OSError:
                continue
            if target.startswith("socket:"):
                found[int(name)] = target
        return found


def ends(fd: int) -> list[bytes]:
    """Both addresses of a connection, `packed`; of a socket that is none, what there is."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as connection:
        found = [packed(connection.family, connection.getsockname())]
        with contextlib.suppress(OSError):  # it only listens
            found.append(packed(connection.family, connection.getpeername()))
        return [address for address in found if address is not None]
    return []


def packed(family: int, address: Any) -> bytes | None:
    """Port and address as they stand in a C `sockaddr`, which is what gloo's members tell each other."""
    if family == socket.AF_INET:
        return int(address[1]).to_bytes(2, "big") + socket.inet_aton(address[0])
    if family == socket.AF_INET6:
        host = address[0].partition("%")[0]
        return struct.pack("!HI", address[1], address[2]) + socket.inet_pton(socket.AF_INET6, host)
    return None


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
