"""A worker's end of the lifeline: signs of life out, orders in, from two threads beside the training thread.

A controller that dies closes the connection; training goes on without it. What was said lately is kept, and said again
to the controller that comes back.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from shoal.timeouts import Timeouts
from shoal.wire import LINE_LIMIT, decode, encode

__all__ = ["Link"]

KEPT = 1024
"""Messages that may have been on their way when a controller died."""


class Link:
    """Sends in any thread, receives into `inbox`, beats by itself.

    `urgent` is called in the receiving thread with every order: true when that was all, so that the training thread is
    not interrupted.
    """

    def __init__(self, timeouts: Timeouts) -> None:
        self.inbox: queue.Queue[dict[str, Any]] = queue.Queue()
        self.progress: Callable[[], dict[str, Any]] = dict
        """What a sign of life says; `steps` among it."""
        self.urgent: Callable[[dict[str, Any]], bool] = lambda order: False
        self._timeouts = timeouts
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._lost = time.monotonic()
        self._recent: deque[dict[str, Any]] = deque()
        self._said = 0
        threading.Thread(target=self._beats, daemon=True, name="link-beats").start()

    def connect(self, address: tuple[str, int], hello: Callable[[], dict[str, Any]]) -> None:
        """Speak to the controller at `address` from now on: `hello`, then all that a former one may not have heard.

        Raises:
            OSError: nobody listens there.
        """
        fresh = socket.create_connection(address, timeout=self._timeouts.collective)
        fresh.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        fresh.settimeout(None)
        with self._lock:
            for message in (hello(), *self._recent):
                fresh.sendall(encode(message))
            former, self._socket = self._socket, fresh
            if former is not None:
                former.close()
        threading.Thread(target=self._receive, args=(fresh,), daemon=True, name="link-receive").start()

    def send(self, message: dict[str, Any], *, keep: bool = True) -> None:
        """Queue a message for the controller in the kernel. A lost connection shows in the receiving thread. What is
        kept to be said again is numbered (`seq`), so that nobody takes it for news."""
        with self._lock:
            if keep:
                message = {**message, "seq": self._said}
                self._said += 1
                self._recent.append(message)
                while len(self._recent) > KEPT and self._socket is not None:
                    self._recent.popleft()
            if self._socket is not None:
                try:
                    self._socket.sendall(encode(message))
                except OSError:
                    self._lose(self._socket)

    def _receive(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as lines:
            while True:
                try:
                    line = lines.readline(LINE_LIMIT)
                except (OSError, ValueError):
                    line = b""
                if not line:
                    break
                order = decode(line)
                if not self.urgent(order):
                    self.inbox.put(order)
        with self._lock:
            self._lose(connection)

    def _lose(self, connection: socket.socket) -> None:
        if self._socket is connection:
            self._socket = None
            self._lost = time.monotonic()
            connection.close()

    def _beats(self) -> None:
        """Signs of life; without a controller, training may go on as long as steps are committed."""
        steps = -1
        while True:
            time.sleep(self._timeouts.beat)
            progress = self.progress()
            self.send({"type": "beat", **progress}, keep=False)
            if self._socket is not None:
                continue
            if progress.get("steps", -1) > steps:
                steps, self._lost = progress["steps"], time.monotonic()
            elif time.monotonic() - self._lost > self._timeouts.orphan:
                print(f"shoal worker {os.getpid()}: no controller and no progress; ending", flush=True)
                os._exit(3)
