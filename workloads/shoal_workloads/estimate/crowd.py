"""How many times as long computing takes while other workers of the machine compute: processes that begin at once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from statistics import median

from shoal_core.errors import UserError

__all__ = ["factor"]

TURNS = 3


def factor(workers: int, seconds: float) -> float:
    """Of `workers`, in about so many seconds; at least 1. That they take turns with others does not count.

    Raises:
        UserError: a process failed: what it said.
    """
    if workers < 2:
        return 1.0
    with ExitStack() as stack:
        env, pipe = os.environ | {"OMP_NUM_THREADS": "1"}, subprocess.PIPE
        command = [sys.executable, "-m", __spec__.name, str(seconds / TURNS / 2)]
        ranks = list[subprocess.Popen[str]]()
        for _ in range(workers):
            rank = subprocess.Popen(command, text=True, env=env, stdin=pipe, stdout=pipe, stderr=pipe)
            stack.callback(rank.wait)
            stack.callback(rank.kill)
            ranks.append(rank)
        for rank in ranks:
            answer(rank)  # it is there
        # Alone and together in turns: a machine that is busy for a while counts in both.
        alone, beside = list[float](), list[float]()
        for _ in range(TURNS):
            alone += together(ranks[:1])
            beside += together(ranks)
        return max(1.0, median(beside) / median(alone))


def together(ranks: Sequence[subprocess.Popen[str]]) -> list[float]:
    """Seconds of what each computes."""
    for rank in ranks:
        assert rank.stdin is not None
        rank.stdin.write("\n")
        rank.stdin.flush()
    return [float(answer(rank)) for rank in ranks]


def answer(rank: subprocess.Popen[str]) -> str:
    """Raises: UserError: there is none."""
    assert rank.stdout is not None
    assert rank.stderr is not None
    found = rank.stdout.readline()
    if not found:
        last = (rank.stderr.read().strip().splitlines() or ["nothing"])[-1]
        raise UserError(f"--calibrate: a process that computes failed ({last})", "see that python runs here as it does")
    return found


def main(seconds: float) -> None:
    import torch

    from shoal_workloads.estimate import probes
    from shoal_workloads.estimate.calibrate_cpu import LAYERS

    torch.set_num_threads(1)
    jobs = [probes.probe_config(model, length, "fp32", "cpu", samples) for model, length, samples in LAYERS[-3:]]
    works = [probes.layer(job, "cpu", dense=False) for job in jobs]
    print("ready", flush=True)
    for _ in sys.stdin:
        print(sum(sum(one.seconds) for one in probes.run(works, seconds)), flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]))
