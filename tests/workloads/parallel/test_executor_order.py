"""Real pipeline runs, of processes that sleep instead of computing, against their schedules. How long they are idle is
measured by `benchmarks/parallel.py`."""

from __future__ import annotations

import pytest

from shoal.testing import World
from shoal_workloads.parallel.schedule import actions_of, build, needs, product, simulate
from tests.support.backends import BOTH
from tests.support.sleeping import measure


@BOTH
@pytest.mark.parametrize("name", ["zbv", "dualpipe"])
def test_a_run_follows_its_schedule(four: World, name: str) -> None:
    """What can be said on any machine: every rank did its order, and nothing began before its data was computed."""
    schedule, unit = build(name, 4, 8), 0.002
    found = measure(four, name, 8, unit)
    assert [[span.step for span in rank] for rank in found.run.spans] == [list(order) for order in schedule.orders]
    assert found.run.peak_in_flight == simulate(schedule).peak_in_flight
    begun = {action: span.start for rank in found.run.spans for span in rank for action in actions_of(span.step)}
    made = {
        product(action): start + unit * (2 if action.kind == "B" else 1)  # it slept at least this long
        for action, start in begun.items()
    }
    waits = [start >= made[need] for action, start in begun.items() for need in needs(action, schedule.stages)]
    assert len(waits) > len(begun)
    assert all(waits)
