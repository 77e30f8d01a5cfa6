"""The simulation: time adds up, and the controller's own decisions carry a run through every kind of failure."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
import typer
from typer.testing import CliRunner

from shoal.cli.simulate import simulate
from shoal.simulate.failures import CAUSES, OBSERVED_GPU_HOURS, Cause, Failure, draw
from shoal.simulate.result import result
from shoal.simulate.settings import Settings, Times, parse_cluster
from shoal.simulate.simulation import Simulation
from shoal_core.errors import UserError

SMALL = {"nodes": 8, "slots": 2, "workers": 2, "spare_nodes": 2, "days": 0.1, "rate": 0.0}
NODE, WORKER = Cause("node", 1, repair=600.0), Cause("worker", 1, takes="worker")
SILENT, NOTICE = Cause("silent", 1, shows="silent", repair=600.0), Cause("notice", 1, shows="notice", repair=600.0)


def run(*failures: Failure, **changes: float) -> Simulation:
    """A small run with these failures and no others."""
    simulation = Simulation(Settings(**{**SMALL, **changes}))  # type: ignore[arg-type]
    for failure in failures:
        simulation.clock.at(failure.time, lambda failure=failure: simulation.cluster.strike(failure))  # type: ignore[misc]
    simulation.run()
    return simulation


def test_the_causes_are_those_of_the_paper() -> None:
    planned = sum(cause.count for cause in CAUSES if cause.name == "planned maintenance")
    assert (planned, sum(cause.count for cause in CAUSES)) == (47, 466)
    drawn = [sum(1 for _ in draw(16_384, 54 * 86400, 1.0, Random(seed))) for seed in range(20)]
    assert abs(sum(drawn) / 20 - 466) < 4 * (466 / 20) ** 0.5
    assert OBSERVED_GPU_HOURS == 54 * 24 * 16_384


def test_without_failures_all_time_is_training() -> None:
    found = result(run())
    assert found["steps"] == 864  # 8,640 s of 10 s
    assert found["ettr"] == pytest.approx(1.0)
    assert not any(found["lost"].values())


def test_a_node_is_healed_on_a_spare_and_its_seconds_are_named() -> None:
    times = Times()
    simulation = run(Failure(1003.0, NODE, 0.1))
    found = result(simulation)
    assert found["generations"] == 2  # without the cell, and with it again
    lost = found["lost_by_cause"]["node"]
    assert lost["copy"] == times.copy
    assert lost["regroup"] == 2 * times.regroup
    assert simulation.strength[-1][1] == 8
    assert [cells for _, cells in simulation.strength] == [8, 7, 8]
    assert sum(lost.values()) < 60.0


@pytest.mark.parametrize("cause", [NODE, WORKER, SILENT, NOTICE], ids=lambda cause: cause.name)
@pytest.mark.parametrize("spares", [0, 2])
def test_every_kind_of_failure_is_survived_and_every_second_accounted_for(cause: Cause, spares: int) -> None:
    failures = [Failure(700.0 + 611.0 * i, cause, (0.37 * i) % 1) for i in range(8)]
    simulation = run(*failures, spare_nodes=spares)
    found = result(simulation)
    assert found["outcome"] == "runs on"
    assert found["steps"] == simulation.state.committed > 600
    assert 0.0 <= found["unfinished"] < 120.0  # the step that ran when the time was over
    assert found["ettr"] * found["seconds"] + sum(found["lost"].values()) + found["unfinished"] == pytest.approx(8640)


def test_silence_costs_the_watchdogs_time() -> None:
    closed, silent = (run(Failure(1003.0, cause, 0.1)) for cause in (NODE, SILENT))
    more = sum(result(silent)["lost"].values()) - sum(result(closed)["lost"].values())
    assert more > Times().silent - Times().step - 1.0


def test_without_spares_a_run_goes_on_smaller_until_the_node_is_back() -> None:
    back = Cause("node", 1, repair=1800.0)
    simulation = run(Failure(1003.0, back, 0.1), spare_nodes=0)
    assert [cells for _, cells in simulation.strength] == [8, 7, 8]
    assert simulation.strength[2][0] - simulation.strength[1][0] > 1800.0
    assert result(simulation)["lost"]["fewer"] > 0.0


def test_cells_take_another_shape_and_the_controller_says_so_in_time() -> None:
    """4 cells of 4 on 8 nodes lose one: 3 cells train on, then 7 cells of 2; and 4 of 4 or 8 of 2 once it is back."""
    changes = {"nodes": 8, "slots": 2, "workers": 4, "spare_nodes": 0, "micro_batches": 15}
    back = Cause("node", 1, repair=3600.0)
    kept, taken = (run(Failure(1003.0, back, 0.1), **changes, elastic=elastic) for elastic in (False, True))
    assert [cells for _, cells in kept.strength] == [4, 3, 4]
    assert [cells for _, cells in taken.strength[:3]] == [4, 3, 3.5]
    assert taken.strength[-1][1] == 4
    assert taken.strength[2][0] - taken.strength[1][0] < 60.0
    for simulation in (kept, taken):
        found = result(simulation)
        assert found["steps"] == simulation.state.committed
        assert found["ettr"] * found["seconds"] + sum(found["lost"].values()) + found["unfinished"] == pytest.approx(
            8640
        )
    assert result(taken)["steps"] > result(kept)["steps"]


@pytest.mark.parametrize(("ranks", "again"), [((0,) * 8, 500.0), ((0, 1) * 4, 0.0)], ids=["restore", "combine"])
def test_when_every_cell_breaks_at_once_what_is_left_decides(ranks: tuple[int, ...], again: float) -> None:
    """450 steps are committed, 400 saved. With all workers of rank 0 dead a shard is lost; else one cell is left."""
    simulation = Simulation(Settings(**{**SMALL, "spare_nodes": 8}, checkpoint=100))  # type: ignore[arg-type]
    victims = [simulation.state.cells[cell].people()[rank] for cell, rank in enumerate(ranks)]
    simulation.clock.at(4503.0, lambda: simulation.cluster.kill(victims, "all at once", 0.2))
    simulation.run()
    assert result(simulation)["lost_by_cause"]["all at once"].get("redone", 0.0) == again
    assert simulation.strength[-1][1] == 8


def test_the_same_seed_is_the_same_run() -> None:
    found = []
    for seed in (3, 3, 4):
        simulation = Simulation(Settings(16, 8, 16, days=1.0, rate=200.0, seed=seed))
        simulation.run()
        found.append(result(simulation) | {"decisions": None, "settings": None})
    assert found[0] == found[1] != found[2]


def test_a_cluster_is_written_nodes_x_slots() -> None:
    assert parse_cluster("2048x8") == (2048, 8)
    with pytest.raises(UserError, match="NODESxSLOTS"):
        parse_cluster("2048")
    with pytest.raises(UserError, match="--workers-per-cell"):
        Settings(3, 8, 16)


def test_the_command_prints_json_and_draws(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(simulate)
    picture = tmp_path / "cells.svg"
    argv = ["--cluster", "16x8", "--workers-per-cell", "16", "--days", "2", "--rate", "300", "--seed", "5", "--json"]
    done = CliRunner().invoke(app, [*argv, "--plot", str(picture)])
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert found["settings"]["seed"] == 5
    assert 0.0 < found["ettr"] < 1.0
    assert found["decisions"]["Acked"]["calls"] > 0
    assert "<svg" in picture.read_text()
    table = CliRunner().invoke(app, argv[:-1])
    assert "effective training time ratio" in table.output
