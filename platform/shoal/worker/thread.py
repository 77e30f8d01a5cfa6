"""The training thread of a worker, and how it is left behind.

A thread that waits in a collective of its cell waits in C++, where nothing can be said to it. To shut its connections
down frees it, as a rule: gloo tells every receive that waits on a connection that it is closed, but not a send that it
queued because the connection was shut down a moment before (`Pair::signalException` in gloo/transport/tcp/pair.cc goes
through `tx_` for bound buffers only). That send waits out the timeout of its group. So a thread that does not come out
is left behind, where it changes nothing any more, and another one serves the orders in its place, with the state.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from shoal.worker.groups import Stopped

__all__ = ["TrainingThread"]

logger = logging.getLogger(__name__)


class TrainingThread:
    """Whoever runs `serve` now; that returns when its thread has been left behind. `patience`: seconds for a thread to
    come out of a world whose connections were shut down."""

    def __init__(self, serve: Callable[[], None], patience: float) -> None:
        self.serve = serve
        self._patience = patience
        self._lock = threading.Lock()
        self._current: threading.Thread | None = None
        self._inside: object = None

    def begin(self) -> None:
        """Serve in the calling thread, the first one."""
        self._current = threading.current_thread()
        self.serve()

    def current(self) -> bool:
        """Whether the caller is the training thread, and was not left behind."""
        return threading.current_thread() is self._current

    @contextmanager
    def inside(self, world: object) -> Iterator[None]:
        """Around what may be left behind: collectives of a cell's world that read the state and change none of it.

        Raises:
            Stopped: it was left behind, whatever has come of the body.
        """
        self._inside = world
        try:
            yield
        finally:
            with self._lock:
                if not self.current():
                    raise Stopped
                self._inside = None

    def release(self, world: object) -> None:
        """Leave the thread behind if it does not come out of this world, which was shut down. Any other thread."""
        timer = threading.Timer(self._patience, self.leave_behind, (world,))
        timer.daemon = True
        timer.start()

    def leave_behind(self, world: object) -> bool:
        """Let another thread serve if the present one is inside this world; false if it is not. Any other thread."""
        with self._lock:
            if self._inside is not world:
                return False
            self._inside = None
            self._current = threading.Thread(target=self.serve, daemon=True, name="train")
        logger.warning("blocked in a cell that was shut down: another thread goes on with the state")
        self._current.start()
        return True
