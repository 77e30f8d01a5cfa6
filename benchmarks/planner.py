"""How long the planner takes for 2,048 nodes of 8: `python benchmarks/planner.py [--json]`.

Wall and CPU seconds (medians) of a first plan, of a plan after one node's loss, and after the cluster has doubled; and
of the choice of another shape, of all there are for a batch of `SAMPLES`, after a node of each of some cells was lost.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

from shoal.plan import Assignment, Mesh, Node, Place, Site, Wanted, plan
from shoal.plan.reshape import Bounds, Costs, Limits, Load, Present, Room, Survivor, choose
from shoal.plan.reshape.bounds import meshes_within

NODES, SLOTS, PER_RACK, ZONES = 2048, 8, 16, 4
SAMPLES = 15_360 * 128
BROKEN = 3
JOBS = {
    "pp 16 x ep 64, 15 cells": Wanted(Mesh(16, 1, 64), 15),
    "pp 16 x fsdp 4 x ep 64, 3 cells": Wanted(Mesh(16, 4, 64), 3),
    "pp 16 x ep 8, 126 cells": Wanted(Mesh(16, 1, 8), 126),
    "fsdp 128, 126 cells": Wanted(Mesh(1, 128, 1), 126),
}


def cluster() -> list[Node]:
    racks = NODES // PER_RACK
    return [
        Node(f"n{i:04}", f"n{i:04}", SLOTS, site=Site(f"r{i // PER_RACK}", f"z{i // PER_RACK * ZONES // racks}"))
        for i in range(NODES)
    ]


def choice(nodes: list[Node], job: Wanted, first: Assignment) -> Callable[[], Any]:
    """The choice of another shape once a node of each of the first cells is gone."""
    broken = range(min(BROKEN, job.cells - 1))
    lost = {first.places[seat].node for seat in first.places if seat.cell in broken and seat.rank == 0}
    held = {place: seat for seat, place in first.places.items()}
    living = {}
    for node in nodes:
        for slot in range(node.slots if node.name not in lost else 0):
            seat = held.get(Place(node.name, slot))
            rank = seat.rank if seat is not None and seat.cell not in broken else None
            living[f"{node.name}.{slot}"] = Survivor(node.name, rank)
    limits, load = Limits(), Load(SAMPLES, 1)
    bounds = Bounds(tuple(meshes_within(job.mesh, limits, SAMPLES)), limits)
    sites = {node.name: node.site for node in nodes}
    present = Present(job.mesh, job.cells - len(broken))
    costs, room = Costs(state_bytes=1e13, bandwidth=5e10, every=3600.0), Room(lambda node: 2e12)
    return lambda: choose(living, present, bounds, costs, load, sites.__getitem__, room)


def timed(act: Callable[[], Any], times: int) -> dict[str, float]:
    walls, cpus = [], []
    for _ in range(times):
        wall, cpu = time.perf_counter(), time.process_time()
        act()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return {"seconds": statistics.median(walls), "cpu_seconds": statistics.median(cpus)}


def measure(times: int) -> dict[str, Any]:
    nodes, rows = cluster(), {}
    for name, job in JOBS.items():
        first = plan(nodes, job)
        lost = first.places[min(first.places)].node
        left = [node for node in nodes if node.name != lost]
        again = plan(left, job, first)
        half = plan(nodes[: NODES // 2], job)
        grown = plan(nodes, job, half)
        rows[name] = {
            "apart": first.apart,
            "first": timed(lambda job=job: plan(nodes, job), times),
            "one node lost": timed(lambda left=left, job=job, first=first: plan(left, job, first), times),
            "moved": len(again.moved),
            "doubled": timed(lambda job=job, half=half: plan(nodes, job, half), times),
            "placed anew": len(grown.moved),
            "another shape": timed(choice(nodes, job, first), times),
            "found": choice(nodes, job, first)().why,
        }
    return rows


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--times", type=int, default=5)
    options.add_argument("--json", action="store_true")
    chosen = options.parse_args()
    rows = measure(chosen.times)
    if chosen.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{NODES} nodes x {SLOTS}, {NODES // PER_RACK} racks, {ZONES} zones: wall (CPU) seconds")
    for name, row in rows.items():
        parts = [
            f"{what} {row[what]['seconds']:.2f} ({row[what]['cpu_seconds']:.2f})"
            for what in ("first", "one node lost", "doubled", "another shape")
        ]
        print(f"{name:34} {', '.join(parts)}; {row['moved']} moved by a loss, {row['placed anew']} placed by growing")
        print(f"{'':34} {row['found']}")


if __name__ == "__main__":
    main()
