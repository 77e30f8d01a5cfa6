"""What a worker does in some steps, on order: a trace of its threads and kernels, or what its device's memory holds."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile, record_function

from shoal.names import profile_file
from shoal.protocol import orders
from shoal.record.beside import publish
from shoal_core.errors import UserError

__all__ = ["Profiler"]

ENTRIES = 1_000_000
"""Allocations that a snapshot of memory remembers."""

Done = Callable[[int, dict[str, Any]], None]


class Profiler:
    """Of the worker `name` of the run at the address `place`, whose folder on this node is `run`. `done`: called with a
    step and the fields of an event, whose `kind` is `profile`, when a file is there or will not be."""

    def __init__(self, name: str, run: Path, place: str, done: Done) -> None:
        self._name, self._run, self._place, self._done = name, run, place, done
        self.wanted: orders.Profile | None = None
        """Written by the link's thread; the newest counts."""
        self._going: tuple[orders.Profile, Any] | None = None
        self._steps: list[int] = []

    @contextlib.contextmanager
    def around(self, step: int) -> Iterator[None]:
        """Run a step in here. One that is left before its end ends the profile; what there is of it is kept."""
        if self.wanted is not None and self.wanted.first <= step and self._going is None:
            order, self.wanted = self.wanted, None
            if step <= order.last:
                self._going = (order, begin(memory=order.memory))
        if self._going is None:
            yield
            return
        self._steps.append(step)
        whole = False
        try:
            with record_function(f"step {step}"):
                yield
            whole = True
        finally:
            if not whole or step >= self._going[0].last:
                self._end()

    def _end(self) -> None:
        """Written in a thread of its own: training goes on meanwhile."""
        assert self._going is not None
        (order, running), self._going = self._going, None
        first, last = self._steps[0], self._steps[-1]
        self._steps = []
        path = profile_file(self._name, first, last, memory=order.memory)
        save = finish(running, memory=order.memory)

        def write() -> None:
            problem = None
            try:
                (self._run / path).parent.mkdir(exist_ok=True)
                save(self._run / path)
                publish(self._place, self._run, path)
            except UserError as error:
                problem = f"it stays on its node: {error.problem}"
            except (OSError, RuntimeError) as error:
                problem = f"{type(error).__name__}: {error}"
            self._done(last, {"kind": "profile", "steps": [first, last], "path": path, "problem": problem})

        threading.Thread(target=write, daemon=True, name="profile").start()


def begin(*, memory: bool) -> Any:
    """Begin to record, in the calling thread and those that it starts."""
    if memory:
        torch.cuda.memory._record_memory_history(max_entries=ENTRIES)
        return None
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    running = profile(activities=activities, experimental_config=_ExperimentalConfig(profile_all_threads=True))
    running.start()
    return running


def finish(running: Any, *, memory: bool) -> Callable[[Path], None]:
    """End the recording; returns what writes it."""
    if not memory:
        running.stop()
        return lambda path: running.export_chrome_trace(str(path))

    def save(path: Path) -> None:
        torch.cuda.memory._dump_snapshot(str(path))
        torch.cuda.memory._record_memory_history(enabled=None)

    return save
