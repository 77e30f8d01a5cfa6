"""One communicator: operations in the order in which they were issued, one at a time, until it is aborted."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from shoal.testing.fakenccl.wires import Wire

__all__ = ["ABORTED", "GARBAGE", "Communicator", "Operation"]

GARBAGE = 123
"""What fills the outputs of an operation that was aborted: no NaN, which would give itself away."""
ABORTED = "NCCL communicator was aborted"

C10D: Any = torch._C._distributed_c10d  # of which the stubs do not know all


class Operation:
    """What was asked of a communicator. `start`: begins it on what a wire leads to; `outputs`: what it writes, once it
    has come to its end; `own`: what it writes until then."""

    def __init__(
        self, start: Callable[[Any], Any], outputs: Sequence[torch.Tensor], own: Sequence[torch.Tensor]
    ) -> None:
        self.start, self._outputs, self._own = start, list(outputs), list(own)
        self._future: Any = torch.futures.Future()
        self.work: dist.Work = C10D._create_work_from_future(self._future)

    def complete(self, *, whole: bool) -> None:
        """Once; with garbage unless it came to its end as a `whole`."""
        with torch.no_grad():
            for output, own in zip(self._outputs, self._own, strict=True):
                output.copy_(own) if whole else output.fill_(GARBAGE)
        self._future.set_result(self._outputs)


class Communicator:
    """`connect`: makes its wire, in the thread that runs its operations and ends with `abort`. `failed`: told why what
    is under way can come to no end any more."""

    def __init__(self, connect: Callable[[], Wire], failed: Callable[[str], None]) -> None:
        self._connect, self._failed = connect, failed
        self._operations: deque[Operation] = deque()
        """The first is under way."""
        self._wire: Wire | None = None
        self._changed = threading.Condition()
        self._stuck = self._aborted = False
        threading.Thread(target=self._serve, daemon=True, name="fakenccl").start()

    def ready(self) -> bool:
        return self._wire is not None

    def settle(self) -> bool:
        """Wait until it stands or never will; whether it stands."""
        with self._changed:
            self._changed.wait_for(lambda: self._wire is not None or self._stuck or self._aborted)
        return self.ready()

    def issue(self, operation: Operation) -> None:
        """Raises DistBackendError: it was aborted."""
        with self._changed:
            if self._aborted:
                raise dist.DistBackendError(ABORTED)
            self._operations.append(operation)
            self._changed.notify_all()

    def abort(self) -> None:
        """End all that is under way or waits. Any thread."""
        with self._changed:
            self._aborted = True
            left = list(self._operations)
            self._operations.clear()
            self._changed.notify_all()
            if self._wire is not None:
                self._wire.cut()
        for operation in left:
            operation.complete(whole=False)

    def _serve(self) -> None:
        wire = None
        try:
            wire = self._connect()
            with self._changed:
                self._wire = wire
                self._changed.notify_all()
            while (operation := self._next()) is not None:
                wire.run(operation.start)
                self._end(operation)
        except (RuntimeError, OSError) as error:
            with self._changed:
                if not self._aborted:
                    self._failed(str(error))
                self._stuck = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._aborted)
        finally:
            if wire is not None:
                wire.close()

    def _next(self) -> Operation | None:
        """The next operation; None when it was aborted."""
        with self._changed:
            self._changed.wait_for(lambda: self._operations or self._aborted)
            return None if self._aborted else self._operations[0]

    def _end(self, operation: Operation) -> None:
        with self._changed:
            if self._aborted:
                return  # it was completed already, with garbage
            self._operations.popleft()
        operation.complete(whole=True)
