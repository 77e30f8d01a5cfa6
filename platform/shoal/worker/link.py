"""A worker's end of the lifeline: signs of life out, orders in, from two threads beside the training thread."""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from shoal.wire import LINE_LIMIT, decode, encode

__all__ = ["Link"]


class Link:
    """Sends in any thread, receives into `inbox`, beats by itself; ends the process when the controller is gone."""

    def __init__(self, address: tuple[str, int], hello: dict[str, Any], beat: float, timeout: float) -> None:
        self.inbox: queue.Queue[dict[str, Any]] = queue.Queue()
        self.progress: Callable[[], dict[str, Any]] = dict
        self._beat = beat
        self._lock = threading.Lock()
        self._socket = socket.create_connection(address, timeout=timeout)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.settimeout(None)
        self.send(hello)
        for job in (self._receive, self._beats):
            threading.Thread(target=job, daemon=True, name=f"link{job.__name__}").start()

    def send(self, message: dict[str, Any]) -> None:
        """Queue a message for the controller in the kernel. A lost connection shows in the receiving thread."""
        data = encode(message)
        with self._lock:
            try:
                self._socket.sendall(data)
            except OSError:
                self._gone("the controller's connection broke")

    def _receive(self) -> None:
        with self._socket.makefile("rb") as lines:
            while True:
                try:
                    line = lines.readline(LINE_LIMIT)
                except OSError:
                    line = b""
                if not line:
                    self._gone("the controller closed the connection")
                self.inbox.put(decode(line))

    def _beats(self) -> None:
        while True:
            time.sleep(self._beat)
            self.send({"type": "beat", **self.progress()})

    def _gone(self, why: str) -> None:
        """Nobody commands this worker any more: it must not go on writing, nor hold its slot."""
        print(f"shoal worker {os.getpid()}: {why}; ending", flush=True)
        os._exit(3)
