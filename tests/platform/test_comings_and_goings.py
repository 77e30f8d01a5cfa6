"""Nodes that come and go, workers and controllers that die, at random and without spares: cells change their shape all
the time, and no step is lost wherever a copy of each range of the state lives."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch

from shoal.record import read
from shoal.testing import Lab, Outcome, assert_exactly_once, outcome
from shoal.testing import alone as by_itself
from tests.support.lab import WORKLOAD, hurry, lab
from tests.support.lived import undue

STEPS, FAULTS = 80, 10
WANTED = WORKLOAD | {"global_batch": 24, "parameters": 3072, "seconds": 0.1}
SIZES = [(2, 3), (2, 4), (3, 2)]
BOUNDS = [(2, 2), (1, 2), (2, 3), (1, 8)]
GAPS = [0.05, 0.3, 0.8, 2.0]
"""Seconds between two faults: some are in the middle of what the one before brought about."""
FEWEST = 2
"""Nodes that stay."""


@cache
def undisturbed() -> Outcome:
    return by_itself(WANTED | {"seconds": 0.0}, STEPS)


@contextmanager
def running(folder: Path, dice: random.Random) -> Iterator[Lab]:
    """Cells of some size that may take others, and not a node more than they need."""
    cells, workers = dice.choice(SIZES)
    bounds = dice.choice([(fewest, most) for fewest, most in BOUNDS if fewest <= cells <= most])
    shape = {"cells": cells, "workers_per_cell": workers, "elastic": {"hold_s": 0.0, "cells": bounds}}
    nodes = {f"n{number}": 1 for number in range(cells * workers)}
    with lab(folder, nodes, steps=STEPS, audit={"samples": True}, workload=dict(WANTED), **shape) as one:
        one.full(3)
        yield one


def strike(one: Lab, dice: random.Random, whole: int) -> str:
    """Do one fault. Returns which."""
    here, missing = sorted(one.alive), whole - len(one.alive)
    kinds = ["worker", "controller"] + ["leave"] * 4 * (len(here) > FEWEST) + ["return"] * 2 * min(missing, 2)
    match dice.choice(kinds):
        case "worker":
            victim = dice.choice(one.living())
            one.kill(victim)
            return f"kill {victim}"
        case "controller":
            one.kill_controller()
            return "kill the controller"
        case "leave":
            node = dice.choice(here)
            one.kill_node(node)
            return f"{node} leaves"
        case _:
            come(one, 1)
            return "a node returns"


def come(one: Lab, count: int) -> None:
    """So many nodes come: others than have been there, as a cluster names them."""
    for _ in range(count):
        one.add_node(f"m{len(one.processes)}.{len(one.alive)}", 1)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20))
def test_nodes_come_and_go_at_random(tmp_path: Path, seed: int) -> None:
    """The run is done, every step and the state at its end are the undisturbed one's, and what was taken back lived
    nowhere any more."""
    dice = random.Random(seed)
    with running(tmp_path, dice) as one:
        whole = len(one.alive)
        told = []
        for _ in range(FAULTS):
            told.append(f"step {one.committed()}: {strike(one, dice, whole)}")
            time.sleep(dice.choice(GAPS))
        come(one, whole - len(one.alive))
        hurry(one)
        run = one.finished()
        shapes, back = len(one.events("reshaped")), [(event["lost"], event["to"]) for event in one.events("rewound")]
        print(f"seed {seed}: {len(told)} faults, {shapes} changes of shape, {run['steps_lost']} steps lost {back}")
        print(*told, sep="\n")
        assert (run["status"], run["steps"]) == ("done", STEPS), one.story()
        assert undue(read.events(one.path)) == [], one.story()
        assert_exactly_once(one.path, STEPS)
        found = outcome(one.path)
    assert found.losses == pytest.approx(undisturbed().losses, rel=1e-5)
    for name, tensor in undisturbed().state.items():
        torch.testing.assert_close(found.state[name], tensor, rtol=1e-4, atol=1e-5)
