"""Blocks of shards that are read in the background and kept in a bounded memory."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass

from shoal_core.errors import UserError

__all__ = ["BlockCache", "Stalls"]

_AT_ONCE = 16


@dataclass
class Stalls:
    """How often and how long readers waited for a store, and how many blocks had to be asked for again."""

    waits: int = 0
    seconds: float = 0.0
    retries: int = 0


class BlockCache:
    """The blocks that were asked for last; threads may share it.

    Args:
        read: (shard, which of its blocks) -> the content; raises UserError where it cannot be had.
        room: blocks that are kept; the least recently used go first.
        stalls: counts what readers wait for.
    """

    def __init__(self, read: Callable[[int, int], bytes], room: int, stalls: Stalls) -> None:
        self.room = room
        self._read, self._stalls = read, stalls
        self._blocks: OrderedDict[tuple[int, int], Future[bytes]] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(max_workers=_AT_ONCE, thread_name_prefix="shoal-blocks")

    def ask(self, shard: int, block: int) -> Future[bytes]:
        """Begin to read a block, unless it is here or under way; one that failed is read anew."""
        key = (shard, block)
        with self._lock:
            found = self._blocks.get(key)
            if found is None or (found.done() and found.exception() is not None):
                found = self._pool.submit(self._read, shard, block)
                self._blocks[key] = found
            self._blocks.move_to_end(key)
            while len(self._blocks) > self.room:
                self._blocks.popitem(last=False)
        return found

    def wait_for(self, shard: int, block: int) -> bytes:
        """The content of a block.

        Raises:
            UserError: it cannot be had.
        """
        while True:
            asked = self.ask(shard, block)
            if asked.done() and not asked.cancelled():
                return asked.result()
            start = time.monotonic()
            try:
                return asked.result()
            except CancelledError:
                continue  # another reader's block failed, and this one had not begun
            except UserError:
                self._forget_waiting()
                raise
            finally:
                self._stalls.waits += 1
                self._stalls.seconds += time.monotonic() - start

    def _forget_waiting(self) -> None:
        """Give up blocks that have not begun: a process that ends for an error would first wait for each of them."""
        with self._lock:
            for key in [key for key, block in self._blocks.items() if block.cancel()]:
                del self._blocks[key]
