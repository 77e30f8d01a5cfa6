"""The idle time of real pipeline runs, of processes that sleep instead of computing, against the simulator."""

from __future__ import annotations

import pytest

from shoal.testing import World, world
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


@pytest.mark.long
@pytest.mark.parametrize(("pp", "micro_batches"), [(4, 8), (8, 16)])
def test_measured_idle_share_is_the_simulated_one(pp: int, micro_batches: int) -> None:
    """Within a tenth, and DualPipe is the best. A busy machine disturbs it, the less the longer the run: one of three
    must do. On gloo alone: how long the imitation of NCCL takes says nothing."""
    shares: dict[str, float] = {}
    with world(pp) as ranks:
        for name in ("1f1b", "interleaved", "zb1p", "zbv", "dualpipev", "dualpipe"):
            ratios = []
            for unit in (0.06, 0.15, 0.4):
                found = measure(ranks, name, micro_batches, unit)
                ratios.append(found.run.idle_share / found.simulated.idle_share)
                shares[name] = found.run.idle_share
                if abs(ratios[-1] - 1) < 0.1:
                    break
            assert min(abs(ratio - 1) for ratio in ratios) < 0.1, (name, ratios)
    assert shares["dualpipe"] < shares["1f1b"]
