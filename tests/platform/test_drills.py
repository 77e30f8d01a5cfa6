"""Full disks, slow ones, a frozen controller and lifelines that are cut, each while a worker dies: real processes, and
the very faults of `shoal chaos`."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shoal.chaos.passing import Passing
from shoal.chaos.plan import Fault, choose_victim, schedule
from shoal.chaos.strike import seen, strike_run
from shoal.record.audit import committed_ids_audit
from shoal.testing import Cable
from tests.support.backends import BOTH_LONG
from tests.support.lab import Lab, alone, lab

Took = dict[str, list[float]]
"""By kind, the seconds from a fault until the run was whole again."""
KINDS = ["fill-disk", "freeze-controller", "cut-store", "slow-disk"]
PATIENCE = 20.0


@contextmanager
def passing(seconds: float) -> Iterator[Passing]:
    under_way = Passing(seconds)
    try:
        yield under_way
    finally:
        under_way.end()


def strike(one: Lab, under_way: Passing, fault: Fault) -> None:
    """The fault, and a worker's death: just before, so that its cell is being formed, or while the fault lasts."""
    deaths, decided = len(one.events("death")), len(one.events("decision"))
    victim = choose_victim(Fault(0.0, "kill-worker", fault.pick), seen(one.path), [])
    assert victim is not None
    assert not isinstance(victim, str)
    if forming := fault.pick * 2 % 1 < 0.5:
        one.kill(victim.actor)
        one.until(lambda: len(one.events("decision")) > decided)
    if fault.kind == "cut-store":
        assert one.cable is not None
        under_way.begin(fault.kind, one.cable.cut)
    else:
        strike_run(under_way, fault.kind, one.path, one.controller.pid, seen(one.path))
    if not forming:
        one.kill(victim.actor)
    one.until(lambda: len(one.events("death")) > deaths)


@contextmanager
def drill(
    folder: Path, faults: list[Fault], lasting: float, steps: int, backend: str = "gloo"
) -> Iterator[tuple[Lab, Took]]:
    """A run that has suffered these faults, each once it was whole again after the one before."""
    took: Took = {}
    settings = {"patience": PATIENCE, "audit": {"samples": True}, "checkpoint": {"every": 50}}
    settings |= {"workload": {"seconds": 0.1}, "cable": Cable(), "backend": backend}
    nodes = {f"n{number}": 2 for number in range(4)}
    with lab(folder, nodes, steps=steps, **settings) as one, passing(lasting) as under_way:
        one.full(5, spares=1)
        for fault in faults:
            began = time.monotonic()
            strike(one, under_way, fault)
            one.full(5, spares=1)
            took.setdefault(fault.kind, []).append(time.monotonic() - began)
            print(f"step {len(one.steps())}: {fault.kind} {took[fault.kind][-1]:.1f} s")
        yield one, took


def whole(one: Lab, steps: int) -> None:
    """Each step and sample is there once, and each loss is the undisturbed run's."""
    run, audit = one.finished(), committed_ids_audit(one.path)
    assert (run["steps"], run["steps_lost"]) == (steps, 0), one.story()
    assert (audit.steps, audit.seen, audit.source) == (steps, audit.expected, "samples")
    assert (audit.repeated, audit.skipped, audit.outside) == (0, 0, 0)
    assert [line["loss"] for line in one.steps()] == pytest.approx(alone(steps).losses, rel=1e-4)


@BOTH_LONG
def test_each_fault_while_a_worker_dies(tmp_path: Path, backend: str) -> None:
    order = random.Random(0).sample(KINDS, len(KINDS))
    faults = [Fault(0.0, kind, 0.2 + 0.2 * place) for place, kind in enumerate(order)]
    with drill(tmp_path, faults, lasting=1.0, steps=100_000, backend=backend) as (one, took):
        one.stop(save=True)
        run = one.finished()
        assert run["status"] == "stopped"
        whole(one, run["steps"])
        assert set(took) == set(KINDS)
        assert any("File too large" in event["reason"] for event in one.events("record_stalled"))


def test_a_cable_that_is_cut_holds_back_what_is_said() -> None:
    cable, server = Cable(), socket.create_server(("127.0.0.1", 0))
    here = socket.create_connection(cable.towards(*server.getsockname()))
    with server, here, server.accept()[0] as there:
        here.sendall(b"a")
        assert there.recv(1) == b"a"
        there.settimeout(0.2)
        with cable.cut():
            here.sendall(b"b")
            with pytest.raises(TimeoutError):
                there.recv(1)
        there.settimeout(60)
        assert there.recv(1) == b"b"


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10))
def test_a_hundred_faults(tmp_path: Path, seed: int) -> None:
    """On gloo alone: they strike the record and the control, which no tensor passes."""
    faults = schedule(KINDS, 1.0, seed)
    with drill(tmp_path, [next(faults) for _ in range(10)], lasting=2.0, steps=600) as (one, took):
        assert one.finished()["status"] == "done", one.story()
        whole(one, 600)
    for kind, seconds in took.items():
        print(f"seed {seed}: {kind} {len(seconds)}, {max(seconds):.1f} s at most")
