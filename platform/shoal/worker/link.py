"""A worker's end of the lifeline: signs of life out, orders in, from threads beside the training thread.

A controller that dies closes the connection; training goes on without it. What was said lately is kept, and said again
to the controller that comes back. A controller that does not read holds nobody up: what the kernel does not take waits
here.
"""

from __future__ import annotations

import logging
import os
import queue
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace

from shoal.protocol import codec
from shoal.protocol.codec import LINE_LIMIT, encode
from shoal.protocol.greeting import Greeting
from shoal.protocol.orders import Order
from shoal.protocol.rendezvous import Question
from shoal.protocol.said import Beat, Phase, Told
from shoal.timeouts import Timeouts
from shoal.worker.calling import Caller, hang_up

__all__ = ["Link"]

logger = logging.getLogger(__name__)
KEPT = 1024
"""Messages that may have been on their way when a controller died."""
LARGEST = 64 << 20
"""Bytes of what is kept beyond that because it is not published yet."""
WAITING = 64 << 20
"""Bytes that may wait for a controller that does not read, beside what it was told at first; then it counts as gone."""


class Link:
    """Sends in any thread, receives into `inbox`, beats by itself.

    `urgent` is called in the receiving thread with every order: true when that was all, so that the training thread is
    not interrupted. `dropped`: called there too, when a connection has ended. `publishes`: controllers say what of all
    that was said is published (`published`); until then it is kept.
    """

    def __init__(self, timeouts: Timeouts, *, publishes: bool = False) -> None:
        self.inbox: queue.Queue[Order] = queue.Queue()
        self.progress: Callable[[], Beat] = lambda: Beat(Phase.UNBORN, -1)
        """The sign of life of this moment."""
        self.urgent: Callable[[Order], bool] = lambda order: False
        self.dropped: Callable[[], None] = lambda: None
        self.orphaned: Callable[[], None] = end
        """Called when there has been neither a controller nor a committed step for too long."""
        self._timeouts = timeouts
        self._caller = Caller(self._take, timeouts.collective)
        self._changed = threading.Condition()
        self._socket: socket.socket | None = None
        self._lost = time.monotonic()
        self._publishes, self._published = publishes, -1
        self._recent: deque[bytes] = deque()
        """The newest of what was said, to the last."""
        self._said, self._kept = 0, 0
        """Messages so far, and the bytes of those that are kept."""
        self._overflown = False
        self._waiting: deque[bytes] = deque()
        """What the kernel has not taken yet, in order; the first may be the rest of a message."""
        self._size = self._most = 0
        """Bytes of it, and how many there may be."""
        self._beat: bytes | None = None
        """The newest sign of life, if it waits too."""
        threading.Thread(target=self._beats, daemon=True, name="link-beats").start()
        threading.Thread(target=self._sends, daemon=True, name="link-sends").start()

    def connect(self, address: tuple[str, int], secret: str, greeting: Callable[[], Greeting]) -> None:
        """`call` a controller, and wait for it."""
        self.call(address, secret, greeting).result()

    def call(self, address: tuple[str, int], secret: str, greeting: Callable[[], Greeting]) -> Future[None]:
        """Speak to the controller at `address` from now on: `greeting`, then all that a former one may not have heard.
        Done when it has let this worker in, or when another is called after it: one that is frozen, or whose machine is
        gone, keeps nobody from its successor.

        Raises:
            OSError: by the future: nobody listens there, or not who knows the secret, or there is no room for long.
        """
        return self._caller.call(address, secret, greeting)

    def _take(self, fresh: socket.socket) -> None:
        with self._changed:
            former, self._socket = self._socket, fresh
            if former is not None:
                hang_up(former, moved=not self._waiting)
            self._waiting = deque(self._recent)
            self._size, self._beat = sum(map(len, self._waiting)), None
            self._most = self._size + WAITING
            self._push()
        threading.Thread(target=self._receive, args=(fresh,), daemon=True, name="link-receive").start()

    def send(self, message: Told) -> None:
        """Hand a message to the kernel, or to the thread that waits for it; never blocks. It is numbered and kept, to
        be said again to a controller that comes back. A lost connection shows in the receiving thread."""
        with self._changed:
            data = encode(replace(message, number=self._said))
            self._said += 1
            self._recent.append(data)
            self._kept += len(data)
            self._forget()
            if self._socket is not None:
                self._add(data)

    def published(self, number: int) -> None:
        """All that was said up to this number needs not be said again to a controller that comes back elsewhere."""
        with self._changed:
            self._published = max(self._published, number)
            self._forget()

    def _forget(self) -> None:
        """Drop the oldest that nobody needs to hear again. Called with the lock."""
        while len(self._recent) > KEPT:
            over = self._publishes and self._kept > LARGEST
            oldest = self._said - len(self._recent)
            done = oldest <= self._published if self._publishes else self._socket is not None
            if not (done or over):
                return
            if over and not done and not self._overflown:
                self._overflown = True
                logger.warning("words from %d on are dropped before they are published: too many wait", oldest)
            self._kept -= len(self._recent.popleft())

    def ask(self, question: Question) -> bool:
        """Send a question, which only the controller of this moment can answer. False if there is none."""
        with self._changed:
            if self._socket is not None:
                self._add(encode(question))
            return self._socket is not None

    def flush(self, seconds: float) -> None:
        """Wait until the kernel has all that was said, for at most `seconds`: before this process ends."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting or self._socket is None, seconds)

    def _add(self, data: bytes) -> None:
        idle = not self._waiting
        self._waiting.append(data)
        self._size += len(data)
        if idle:
            self._push()
        if self._size > self._most:
            self._lose(self._socket)

    def _push(self) -> None:
        """Give the kernel what it takes now. Called with the lock."""
        connection = self._socket
        try:
            while connection is not None and (self._waiting or self._beat is not None):
                if not self._waiting and self._beat is not None:
                    self._waiting.append(self._beat)
                    self._size, self._beat = len(self._beat), None
                sent = connection.send(self._waiting[0], socket.MSG_DONTWAIT)
                rest = self._waiting.popleft()[sent:]
                self._size -= sent
                if rest:
                    self._waiting.appendleft(rest)
        except BlockingIOError:
            pass  # the thread goes on when there is room
        except OSError:
            self._lose(connection)
        self._changed.notify_all()

    def _sends(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting and self._socket is not None)
                connection = self._socket
                assert connection is not None
                room = select.poll()
                room.register(connection, select.POLLOUT)
            room.poll(1000)
            with self._changed:
                if self._socket is connection:
                    self._push()

    def _receive(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as lines:
            while True:
                try:
                    order = codec.order(lines.readline(LINE_LIMIT))
                except (OSError, ValueError):  # an end is no message either
                    break
                if not self.urgent(order):
                    self.inbox.put(order)
        with self._changed:
            self._lose(connection)
        self.dropped()

    def _lose(self, connection: socket.socket | None) -> None:
        if connection is not None and self._socket is connection:
            self._socket = None
            self._waiting.clear()
            self._size, self._beat = 0, None
            self._lost = time.monotonic()
            hang_up(connection)
            self._changed.notify_all()

    def beat(self) -> Beat:
        """Give a sign of life now; an older one that waits is no news any more."""
        progress = self.progress()
        with self._changed:
            self._beat = encode(progress)
            if not self._waiting:
                self._push()
        return progress

    def _beats(self) -> None:
        """Signs of life; without a controller, training may go on as long as steps are committed."""
        steps = -1
        while True:
            time.sleep(self._timeouts.beat)
            progress = self.beat()
            if self._socket is not None:
                continue
            if progress.steps > steps:
                steps, self._lost = progress.steps, time.monotonic()
            elif time.monotonic() - self._lost > self._timeouts.orphan:
                self.orphaned()


def end() -> None:
    """End this worker's process: nobody will ever tell it to."""
    logger.error("no controller and no progress: this process ends")
    os._exit(3)
