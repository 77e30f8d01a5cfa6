"""The way of tensors out of a state that is trained on, beside what is computed: from a GPU into pinned memory, on a
stream of its own; in the CPU's memory in a thread.

What is copied is of three kinds, each with one who waits. The copy waits for whatever makes its sources (`follow`).
Whoever changes them next lets its own stream wait for the copy (`precede`), and goes on itself. Whoever reads what was
copied waits for that (`Copy.wait`). So nothing waits but what must, and a step's kernels run while its state leaves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch

__all__ = ["Copy", "DeviceLane", "HostLane", "Lane", "beside", "lane_of", "on_cpu", "room_for"]

T = TypeVar("T")
SMALL = 1 << 16
"""Bytes of a tensor in the CPU's memory that is copied at once: what changes before its owner's commit is smaller, and
to have it done by another thread takes longer."""


class Copy:
    """What `Lane.copy` began. It holds the sources: memory that is let go of is another tensor's at once, while it may
    still be read here. `done`: the event of its end; none: it has ended."""

    def __init__(self, sources: Sequence[torch.Tensor] = (), done: Any = None) -> None:
        self._sources, self._done = sources, done

    def wait(self) -> None:
        """Until the targets may be read. Any thread."""
        done = self._done
        if done is not None:
            done.synchronize()
            self._sources, self._done = (), None


class Lane:
    """Without anything beside it: what is copied is there."""

    def begin(self, work: Callable[[], T]) -> Future[T]:
        """Do what ends in `copy` but has to wait for somebody first. Raises: as `work`."""
        done: Future[T] = Future()
        done.set_result(work())
        return done

    def follow(self) -> None:
        """What is copied from now on is as the calling thread's stream leaves it."""

    def copy(self, targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> Copy:
        """Begin to copy each source into its target, of its shape and dtype; what lies in the CPU's memory is there
        when this returns. Any thread."""
        put(targets, sources)
        return Copy()

    def precede(self) -> None:
        """What the calling thread's stream is told from now on comes after what was copied so far."""


class HostLane(Lane):
    """Of the CPU's memory: threads copy what is large while the next step runs, which changes it only at its end."""

    def __init__(self) -> None:
        self._begun: Future[Any] = super().begin(lambda: None)
        self._copies: list[Future[None]] = []

    def begin(self, work: Callable[[], T]) -> Future[T]:
        """Have a thread do it, once what was begun before is done. Raises: as that."""
        self._begun.result()
        begun = self._begun = beside(work, "lane")
        return begun

    def copy(self, targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> Copy:
        """See `Lane`."""
        large: list[tuple[torch.Tensor, torch.Tensor]] = []
        for pair in zip(targets, sources, strict=True):
            if pair[1].numel() * pair[1].element_size() > SMALL:
                large.append(pair)
            else:
                put(pair[:1], pair[1:])
        if not large:
            return Copy()
        done = beside(partial(put, *zip(*large, strict=True)), "lane-copy")
        self._copies.append(done)
        return Copy(sources, Ended(done))

    def precede(self) -> None:
        """See `Lane`. Raises: what was met meanwhile."""
        self._begun.result()
        while self._copies:
            self._copies.pop().result()


@dataclass(frozen=True)
class Ended:
    """The end of a thread's work, as an event of a device."""

    done: Future[None]

    def synchronize(self) -> None:
        """Wait for it. Raises: what it met."""
        self.done.result()


class DeviceLane(Lane):
    """A stream of its own on the calling thread's device. `device`: what makes it, as `torch.cuda` does."""

    def __init__(self, device: Any = torch.cuda) -> None:
        self._device, self._stream = device, device.Stream()
        self._begun: Future[Any] = super().begin(lambda: None)

    def begin(self, work: Callable[[], T]) -> Future[T]:
        """Have a thread do it, once what was begun before is done. Raises: as that."""
        self._begun.result()
        begun = self._begun = beside(work, "lane")
        return begun

    def follow(self) -> None:
        """See `Lane`."""
        self._stream.wait_stream(self._device.current_stream())

    def copy(self, targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> Copy:
        """See `Lane`."""
        with self._device.stream(self._stream):
            put(targets, sources)
            done = self._device.Event()
            done.record(self._stream)
        return Copy(sources, done)

    def precede(self) -> None:
        """See `Lane`. The host waits for what was begun: its copies are known then. Raises: as that."""
        self._begun.result()
        self._device.current_stream().wait_stream(self._stream)


def lane_of(kind: str) -> Lane:
    """From a device of a kind (`Workload.runs_on`)."""
    return DeviceLane() if kind == "cuda" else HostLane()


def beside(work: Callable[[], T], name: str) -> Future[T]:
    """Have a thread of its own do it; whoever asks for the result is told what it raised."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name=name).start()
    return done


@torch.no_grad()
def put(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source, non_blocking=True)


def room_for(tensor: torch.Tensor) -> torch.Tensor:
    """CPU memory for a copy: pinned, of a tensor on a GPU. A DTensor of a DTensor, sharded the same."""
    form = torch.contiguous_format
    return torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda, memory_format=form, requires_grad=False)


def on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    """The same in the CPU's memory; from a GPU by way of pinned memory, in one wait for what was queued before it."""
    if not tensor.is_cuda:
        return tensor
    found, done = room_for(tensor), torch.cuda.Event()
    found.copy_(tensor, non_blocking=True)
    done.record()
    done.synchronize()
    return found
