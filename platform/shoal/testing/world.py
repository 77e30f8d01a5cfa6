"""Functions run on every rank of a small world, whose processes are forked once, as those of a lab, and used again."""

from __future__ import annotations

import gc
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from shoal.testing import fakenccl
from shoal.testing.processes import FORK

__all__ = ["World", "world"]


def _serve(rank: int, size: int, pipe: Any) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    while True:
        job = pipe.recv()
        if job is None:
            return
        backend, store, function, args = job
        try:
            if backend == fakenccl.NAME:
                fakenccl.register()
            dist.init_process_group(
                backend, store=dist.FileStore(store, size), rank=rank, world_size=size, timeout=timedelta(seconds=60)
            )
            dist.barrier()  # nobody may leave while others still connect
            pipe.send((True, function(*args)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
            gc.collect()


class World:
    """`run` calls a module-level function on all ranks, each time in a new process group, and returns their answers.
    `backend`: torch's name of it, where a call names no other."""

    def __init__(self, size: int, backend: str = "gloo") -> None:
        self.size, self.backend, self._pipes, self._processes = size, backend, [], []
        for rank in range(size):
            here, there = FORK.Pipe()
            process = FORK.Process(target=_serve, args=(rank, size, there), daemon=True)
            process.start()
            self._pipes.append(here)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *args: Any, backend: str | None = None) -> list[Any]:
        with tempfile.TemporaryDirectory() as folder:
            for pipe in self._pipes:
                pipe.send((backend or self.backend, os.path.join(folder, "store"), function, args))
            answers = [pipe.recv() for pipe in self._pipes]
        for rank, (fine, answer) in enumerate(answers):
            assert fine, f"rank {rank}:\n{answer}"
        return [answer for _, answer in answers]

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join(20)


@contextmanager
def world(size: int) -> Iterator[World]:
    found = World(size)
    try:
        yield found
    finally:
        found.close()
