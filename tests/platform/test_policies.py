"""Ways to live with failures, beside each other: what is simulated of them, and how often to save."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from shoal.simulate.failures import PREEMPTED, preemptions
from shoal.simulate.many import Task, side_by_side
from shoal.simulate.policies import LONGEST, Policy, best_interval, intervals, policies, run, simulated
from shoal.simulate.settings import Settings, Times
from shoal.simulate.simulation import Simulation

SMALL = Settings(8, 4, 16, days=1.0, spare_nodes=0, micro_batches=15, rate=400.0)


def test_nodes_are_taken_away_as_often_as_is_said() -> None:
    drawn = [len(list(preemptions(64, 10 * 86400, 0.5, Random(seed)))) for seed in range(20)]
    assert abs(sum(drawn) / 20 - 320) < 4 * (320 / 20) ** 0.5
    assert not list(preemptions(64, 10 * 86400, 0.0, Random(0)))
    assert {one.cause for one in preemptions(8, 86400, 3.0, Random(0))} == {PREEMPTED}


def test_the_best_interval_is_that_of_trying_all() -> None:
    """Saving costs `stall` of a step each time; going back costs so much more as checkpoints lie further apart."""
    step, base, redone, stall = 20.0, 100, 0.004, 0.04

    def cost(every: int) -> float:
        return stall / every + redone * every / base

    best = best_interval(step, base, redone, stall)
    assert cost(best) <= min(cost(every) for every in range(1, 2000)) * 1.001
    assert best_interval(step, base, 0.0, stall) == LONGEST / step
    assert best_interval(step, base, 1e9, stall) == 1


def test_spares_train_more_and_seeds_are_seen() -> None:
    none, spares = (simulated(SMALL, Policy(count), range(3)) for count in (0, 2))
    assert all(0 <= share <= 1 for tried in (none, spares) for share in tried.trains)
    assert spares.mean > none.mean
    assert len(set(none.trains)) == 3
    assert simulated(SMALL, Policy(0), range(3)) == none


def test_spot_nodes_alone_are_taken_away() -> None:
    settings = Settings(8, 4, 16, days=1.0, spare_nodes=0, micro_batches=15, rate=0.0, preemptions=2.0)
    asked, spot = (simulated(settings, Policy(0, spot=taken), [0]) for taken in (False, True))
    assert asked.mean == pytest.approx(1.0, abs=1e-3)
    assert spot.mean < 0.99


def test_a_run_that_cannot_go_on_is_told_and_trains_no_more() -> None:
    """Of one cell on one node nothing is left when the node goes for longer than a run waits; or it comes back."""
    tried = simulated(Settings(1, 2, 2, days=2.0, spare_nodes=0, rate=3000.0, times=Times(step=5.0)), Policy(0), [1])
    assert tried.mean < 0.5


def test_every_policy_has_a_name_of_its_own() -> None:
    found = list(policies(256, spot=True))
    assert len({one.name for one in found}) == len(found) == 8
    assert [one.spare_nodes for one in policies(256, spot=False)] == [0, 0, 4, 8]


def test_nodes_as_one_worker_do_what_their_workers_would() -> None:
    """Where nodes go and no worker alone does, nothing changes but that an answer takes fewer messages."""
    settings = Settings(8, 4, 16, days=1.0, spare_nodes=0, micro_batches=15, rate=0.0, preemptions=2.0)
    coarse = settings.by_node()
    assert (coarse.slots, coarse.workers, coarse.each, coarse.cells) == (1, 4, 4, settings.cells)
    for policy in (Policy(0, spot=True), Policy(2, spot=True)):
        fine, by_node = run_as_it_is(settings, policy), run(settings, policy, 3)
        assert fine == pytest.approx(by_node.steps, abs=1)
    small = Settings(8, 4, 2, spare_nodes=0)
    assert small.by_node() is small


def run_as_it_is(settings: Settings, policy: Policy) -> int:
    """Steps of seed 3, worker by worker."""
    asked = replace(settings, spare_nodes=policy.spare_nodes, seed=3)
    simulation = Simulation(asked, timed=False)
    simulation.run()
    return simulation.ledger.useful


def test_runs_side_by_side_are_those_one_after_the_other() -> None:
    tasks = [Task(SMALL, Policy(count), seed) for count in (0, 1) for seed in (0, 1)]
    with side_by_side(worth=True) as many, side_by_side(worth=False) as one:
        assert list(many(tasks)) == list(one(tasks))


def test_gpus_of_no_cell_stand_by() -> None:
    """Of 5 nodes 4 train: the fifth takes the place of one that is lost, as a spare node does."""
    more = replace(SMALL, nodes=5, workers=16, at_most=1)
    lone = replace(SMALL, nodes=4, workers=16)
    assert more.cells == lone.cells == 1
    assert simulated(more, Policy(0), range(2)).mean > simulated(lone, Policy(0), range(2)).mean


def test_intervals_lie_around_the_best_and_within_what_can_be() -> None:
    assert intervals(10.0, 40) == [10, 20, 40, 80, 160]
    assert intervals(10.0, 300) == [75, 150, 300, 360]
    assert intervals(5000.0, 1) == [1]
