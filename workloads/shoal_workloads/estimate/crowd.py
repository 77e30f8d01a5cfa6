"""How many times as long computing takes while other workers of the machine compute: processes that begin at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from statistics import median

from shoal_core.errors import UserError

__all__ = ["factor"]


def factor(workers: int, seconds: float) -> float:
    """Of `workers`, in about so many seconds; at least 1. Who takes turns with them does not count.

    Raises:
        UserError: a process failed: what it said.
    """
    if workers < 2:
        return 1.0
    # One after the other, and again, so that a machine that is busy for a while counts in both.
    alone, beside = list[float](), list[float]()
    for _ in range(2):
        alone += together(1, seconds / 4)
        beside += together(workers, seconds / 4)
    return max(1.0, median(beside) / median(alone))


def together(workers: int, seconds: float) -> list[float]:
    """Seconds of what each computes."""
    command = [sys.executable, "-m", __spec__.name, str(seconds)]
    env, pipe = os.environ | {"OMP_NUM_THREADS": "1"}, subprocess.PIPE
    ranks = [
        subprocess.Popen(command, text=True, env=env, stdin=pipe, stdout=pipe, stderr=pipe) for _ in range(workers)
    ]
    try:
        for rank in ranks:  # imported, and waiting
            assert rank.stdout is not None
            rank.stdout.readline()
        for rank in ranks:
            assert rank.stdin is not None
            rank.stdin.write("\n")
            rank.stdin.flush()
        found = list[float]()
        for rank in ranks:
            told, said = rank.communicate()
            if rank.returncode:
                last = (said.strip().splitlines() or ["nothing"])[-1]
                raise UserError(f"--calibrate: a process that computes failed ({last})", "see what it says above")
            found.append(float(json.loads(told)))
        return found
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


def main(seconds: float) -> None:
    import torch

    from shoal_workloads.estimate import probes
    from shoal_workloads.estimate.calibrate_cpu import LAYERS
    from shoal_workloads.estimate.probes import probe_config

    torch.set_num_threads(1)
    jobs = [probe_config(model, length, "fp32", "cpu", samples) for model, length, samples in LAYERS[-2:]]
    works = [probes.layer(job, "cpu", dense=False) for job in jobs]
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(sum(sum(one.seconds) for one in probes.run(works, seconds))), flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]))
