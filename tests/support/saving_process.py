"""A process that saves one checkpoint after the other until it is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from multiprocessing.context import ForkServerContext
from typing import Any

import torch

from shoal_core.ckpt.boxes import Box
from shoal_core.ckpt.folder import Folder, name_of
from shoal_core.store import join
from tests.support import ranks

__all__ = ["killed_while_saving", "save", "state"]

HALVES: dict[str, list[Box | None]] = {
    "w": [Box((0, 0), (32, 9)), Box((32, 0), (32, 9))],
    "moment": [Box((0,), (30,))] * 2,
    "step": [Box((), ())] * 2,
}


def state(steps: int) -> dict[str, torch.Tensor]:
    """Another for each number of steps, of the same kinds."""
    generator = torch.Generator().manual_seed(steps)
    return {
        "w": torch.randn(64, 9, generator=generator),
        "moment": torch.randn(30, generator=generator).bfloat16(),
        "step": torch.tensor(steps),
    }


def save(root: str, steps: int) -> str:
    """By two ranks; the checkpoint's address."""
    address = join(root, name_of(steps))
    sizes = ranks.save(Folder.at(address), state(steps), HALVES, 2, steps, samples=8 * steps)
    assert sizes[0] == sizes[1] > 0, sizes
    return address


def work(root: str, first: int, environment: dict[str, str], said: Any) -> None:
    os.environ.update(environment)
    for steps in range(first, first + 10_000):
        save(root, steps)
        said.send(steps)


def context() -> ForkServerContext:
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["tests.support.saving_process", "boto3"])
    return found


def killed_while_saving(root: str, first: int, seconds: float) -> int:
    """Have a process save from `first` steps on and kill it `seconds` after its first checkpoint is whole. Returns the
    steps of the last that it said is."""
    here, there = multiprocessing.Pipe(duplex=False)
    known = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    process = context().Process(target=work, args=(root, first, known, there), daemon=True)
    process.start()
    there.close()
    last = int(here.recv())
    time.sleep(seconds)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    try:
        while True:
            last = int(here.recv())
    except EOFError:
        return last
