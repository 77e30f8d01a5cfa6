"""Deaths on the way to another shape: at each point of it, of everybody who has a part in it, on real processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch

from shoal.testing import Lab, Outcome, assert_exactly_once, outcome, preload
from shoal.testing import alone as by_itself
from tests.support.gates import POINTS, Gate
from tests.support.lab import WORKLOAD, hurry, lab

preload("tests.support.gated")

WANTED = WORKLOAD | {"global_batch": 24, "parameters": 3072}
STEPS = 40
PAUSED = ("pause", "paused")
"""Until then nobody has a part in the next shape."""
UNFILLED = (*PAUSED, "form", "left", "building", "fill", "filling")
"""Until then a shard that one worker holds is nowhere else."""
ROLES = ("only holder", "holder with a twin", "receiver", "bystander", "controller")
SHORT = {("only holder", "filled"), ("receiver", "filling"), ("controller", "joined")}
"""Not long: the others are of the same kinds."""
CASES = [
    pytest.param(
        role,
        point,
        id=f"{role} at {point}".replace(" ", "-"),
        marks=() if (role, point) in SHORT else pytest.mark.long,
    )
    for role in ROLES
    for point in POINTS
    if not (role == "bystander" and point in PAUSED)  # it is a receiver as well as any
]


@cache
def undisturbed() -> Outcome:
    return by_itself(WANTED | {"seconds": 0.0}, STEPS)


@contextmanager
def running(folder: Path, workers: int) -> Iterator[Lab]:
    """2 cells without a spare, each worker on a node of its own, that may take another shape of 2 cells."""
    nodes = {f"n{number}": 1 for number in range(2 * workers)}
    shape = {"cells": 2, "workers_per_cell": workers, "elastic": {"hold_s": 0.0, "cells": [2, 2]}}
    with lab(folder, nodes, steps=STEPS, audit={"samples": True}, workload=dict(WANTED), **shape) as one:
        one.full(3)
        yield one


def struck(one: Lab, role: str, point: str) -> None:
    """Have the run change its shape, and kill who plays this role when somebody is at this point."""
    if role == "holder with a twin":  # 2 cells of 3 become 2 of 4, and one more is there
        holders, others = [*one.members(0), *one.members(1)], []
        arriving, seats, lost = ["m0", "m1", "m2"], 8, None
    else:  # the 4 of a cell, of which another lost one, and the 3 others become 2 cells of 3
        holders, (*others, lost) = one.members(0), one.members(1)
        arriving, seats = [], 6
    holds = others if role == "receiver" and point not in PAUSED else holders if "holder" in role else None
    gate = Gate(one, point, holds)
    for node in arriving:
        one.add_node(node, 1)
    if lost is not None:
        one.kill_node(node_of(lost))
    victim = gate.held()
    if role == "only holder" and point not in UNFILLED:
        gate.came_to("filled", seats)  # so that another has filled each shard that it has
    if role == "bystander":
        (victim,) = {*holders, *others} - set(gate.came_to("form", seats))
    elif role == "receiver" and point in PAUSED:
        victim = others[0]
    if role == "controller":
        one.kill_controller()
    else:
        one.kill_node(node_of(victim))
        one.until(lambda: victim in [event["actor"] for event in one.events("death")])
    gate.open()


def node_of(worker: str) -> str:
    return worker.rpartition("@")[2]


@pytest.mark.parametrize(("role", "point"), CASES)
def test_a_death_on_the_way_to_another_shape(tmp_path: Path, role: str, point: str) -> None:
    """The run is done, every step and the state at its end are the undisturbed one's, and no step is lost wherever a
    copy of each shard lives."""
    with running(tmp_path, 3 if role == "holder with a twin" else 4) as one:
        struck(one, role, point)
        hurry(one)
        run = one.finished()
        rungs = [event["rung"] for event in one.events("decision")]
        print(f"{role} at {point}: {run['steps_lost']} steps lost, {rungs}, {len(one.events('reshaped'))} reshaped")
        assert (run["status"], run["steps"]) == ("done", STEPS), one.story()
        lives = role != "only holder" or point not in UNFILLED
        assert run["steps_lost"] == 0 or not lives, one.story()
        assert_exactly_once(one.path, STEPS)
        found = outcome(one.path)
    assert found.losses == pytest.approx(undisturbed().losses, rel=1e-5)
    for name, tensor in undisturbed().state.items():
        torch.testing.assert_close(found.state[name], tensor, rtol=1e-4, atol=1e-5)
