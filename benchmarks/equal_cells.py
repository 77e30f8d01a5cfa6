"""What cells of one size leave idle, for every number of survivors: `python benchmarks/equal_cells.py [--json]`.

Of 2 to 64 survivors, the share that is kept busy by the best number of equal cells (two or more) of at least so many
workers as the model's memory asks for, when a step has so many samples; beside dropping cells, which keep their size.
Cells that differ in size could at best keep everybody busy. No clock: a closed form, which the planner chooses by.
"""

from __future__ import annotations

import argparse
import json
from statistics import mean

from shoal.plan import Mesh
from shoal.plan.reshape import Limits, Load, busy
from shoal.plan.reshape.bounds import meshes_within

MOST = 64
BATCHES = {"1,024 samples": 1024, "15,360 (DeepSeek-V3)": 15_360, "any cell's size": 720_720}
LEAST = (1, 2, 4, 8)


def kept(survivors: int, least: int, samples: int) -> float:
    """Share of the survivors that the best equal cells keep busy."""
    found = [0.0]
    for mesh in meshes_within(Mesh(fsdp=least), Limits(ep=[1], pp=[1]), samples):
        cells = min(survivors // mesh.workers, samples // mesh.workers)
        if mesh.workers >= least and cells >= 2:
            found.append(busy(mesh, cells, Load(samples, 1)) / survivors)
    return max(found)


def dropped(survivors: int, size: int) -> float:
    """The same where cells keep their size."""
    return survivors // size * size / survivors


def measure() -> dict[str, dict[str, dict[int, float]]]:
    """By workers that a cell needs at least: of each batch, the share kept by number of survivors."""
    return {
        str(least): {
            "dropping cells": {n: dropped(n, least) for n in range(2 * least, MOST + 1)},
            **{name: {n: kept(n, least, batch) for n in range(2 * least, MOST + 1)} for name, batch in BATCHES.items()},
        }
        for least in LEAST
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--json", action="store_true")
    rows = measure()
    if options.parse_args().json:
        print(json.dumps(rows, indent=2))
        return
    print("| cells of at least | batch | 7 | 15 | 31 | 63 | mean of all to 64 | more than a tenth idle at |")
    print("|---|---|---|---|---|---|---|---|")
    for least, batches in rows.items():
        for name, shares in batches.items():
            some = [f"{1 - shares[n]:.0%}" if n in shares else "" for n in (7, 15, 31, 63)]
            many = [str(n) for n, share in shares.items() if share < 0.9]
            told = ", ".join(many) if len(many) <= 6 else f"{len(many)} numbers up to {many[-1]}"
            average = f"{1 - mean(shares.values()):.1%}"
            print("| " + " | ".join([least, name, *some, average, told or "none"]) + " |")


if __name__ == "__main__":
    main()
