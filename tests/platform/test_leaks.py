"""A hundred recoveries in one run: what lives through them holds no more at the end than near the beginning."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from tests.support.backends import BOTH
from tests.support.lab import Lab, lab

KILLS, SETTLED, LAST = 100, 20, 10
STEPS_BETWEEN = 20  # so that no node loses workers at four of fifty steps and is set aside
SLACK = {"descriptors": 4, "sockets": 4, "threads": 4, "resident_mb": 16.0}


@dataclass(frozen=True)
class Holdings:
    """What a process holds of the system."""

    descriptors: int
    sockets: int
    threads: int
    resident_mb: float


def holdings(pid: int) -> Holdings:
    """Of a living process, from /proc."""
    links = []
    for entry in os.listdir(f"/proc/{pid}/fd"):
        try:
            links.append(os.readlink(f"/proc/{pid}/fd/{entry}"))
        except FileNotFoundError:
            continue  # closed since it was listed
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return Holdings(
        descriptors=len(links),
        sockets=sum(link.startswith("socket:") for link in links),
        threads=len(os.listdir(f"/proc/{pid}/task")),
        resident_mb=pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
    )


def living(one: Lab) -> dict[str, int]:
    """Pids of the workers in cells and of the controller, by name."""
    crew = [worker for cell in range(3) for worker in one.members(cell)]
    return {worker: one.processes[worker].pid for worker in crew} | {"controller": one.controller.pid}


@BOTH
@pytest.mark.long
def test_a_hundred_recoveries_leave_nothing_behind(tmp_path: Path, backend: str) -> None:
    """The first rank of cell 1 is killed again and again: the others of all cells live through every recovery, one as
    the dead's peer, which forms its world anew each time, one as the source of the copy."""
    seen: list[dict[str, Holdings]] = []
    nodes = {f"n{i}": 2 for i in range(4)}  # two spares: one takes the seat while the other's successor is on its way
    with lab(tmp_path, nodes, steps=10**6, workload={"seconds": 0.015}, backend=backend) as one:
        one.full(10, spares=2)
        through = living(one)
        del through[one.members(1)[0]]
        for kill in range(KILLS):
            one.kill(one.members(1)[0])
            one.until(lambda kill=kill: len(one.events("recovery")) > kill)
            one.full(STEPS_BETWEEN, spares=1)
            seen.append({name: holdings(pid) for name, pid in through.items()})
        recoveries = one.events("recovery")
        assert {event["rung"] for event in recoveries} == {"heal"}, one.story()
        assert sum(event["steps_lost"] for event in recoveries) == 0
        assert living(one).items() >= through.items(), "they are the processes of the beginning"
        begun = len(one.processes) - sum(process.is_alive() for process in one.processes.values())
        assert begun == KILLS, "each dead worker was replaced by one, and nobody else died"
    for name in through:
        early = [asdict(one[name]) for one in seen[SETTLED : SETTLED + LAST]]
        late = [asdict(one[name]) for one in seen[-LAST:]]
        print(name, "recoveries 20 to 29:", early[0], "the last:", late[-1])
        for what, slack in SLACK.items():
            grown = max(held[what] for held in late) - max(held[what] for held in early)
            assert grown <= slack, f"{name}: {what} grew by {grown} from recovery {SETTLED} to {KILLS}: {early}, {late}"
