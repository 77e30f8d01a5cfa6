"""Worker hours by rule: every hour is accounted for, and what each rule leaves idle is what it says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from shoal.cli.simulate import simulate
from shoal.simulate.measured import by_benchmark
from shoal.simulate.rules import Change, compared, rules_of, told
from shoal.simulate.settings import Settings, Times
from shoal_core.errors import UserError

SMALL = Settings(8, 2, 4, days=0.1, spare_nodes=0, micro_batches=15, times=Times(regroup=1.0, form=2.0, copy=3.0))
ALL = 16 * 8640.0


def hours(rule: str, *changes: Change) -> tuple[float, float, float, float]:
    found = told(SMALL, sorted(changes), rules_of(SMALL)[rule])
    assert found.trained + found.idle + found.changing + found.dead == pytest.approx(ALL)
    return found.trained, found.idle, found.changing, found.dead


@pytest.mark.parametrize("rule", rules_of(SMALL))
def test_without_failures_everybody_trains(rule: str) -> None:
    assert hours(rule) == pytest.approx((ALL, 0.0, 0.0, 0.0))


def test_a_nodes_loss_idles_its_cell_unless_cells_change_shape() -> None:
    """4 cells of 4 on 8 nodes: without one node 3 cells train 60 micro-batches in 20 rounds; or 7 cells of 2 train 120
    in 18."""
    loss = Change(1000.0, ("n3.0", "n3.1"), noticed=0.5)
    dropped = hours("drop cells", loss)
    assert dropped == pytest.approx((16 * 1000 + 12 * (7640 - 1.5), 2 * (7640 - 1.5), 14 * 1.5, 2 * 7640))
    trained, idle, _, dead = hours("reshape", loss)
    assert dead == dropped[3]
    assert trained > 16 * 1000 + 13 * (7640 - 30)
    assert idle < dropped[1]


def test_two_broken_cells_make_one_whole_but_not_by_torchfts_rule() -> None:
    losses = [Change(1000.0, ("n0.0", "n0.1")), Change(1000.0, ("n2.0", "n2.1"))]
    trained = {rule: hours(rule, *losses)[0] for rule in rules_of(SMALL)}
    assert trained["torchft's rule"] == pytest.approx(16 * 1000 + 8 * 7639)
    assert trained["drop cells"] == pytest.approx(16 * 1000 + 12 * (7640 - 1 - 3))
    assert trained["reshape"] > trained["drop cells"] - 16 * 10  # it has changed shape twice


def test_who_comes_back_trains_again() -> None:
    away = [Change(1000.0, ("n0.0", "n0.1")), Change(2000.0, ("n0.0", "n0.1"), comes=True)]
    for rule in rules_of(SMALL):
        assert hours(rule, *away)[0] > ALL - 16 * 1100


def test_the_command_prints_and_draws_the_rules(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(simulate)
    argv = ["--cluster", "8x2", "--workers-per-cell", "4", "--days", "4", "--rate", "600", "--rules"]
    done = CliRunner().invoke(app, [*argv, "--json", "--plot", str(tmp_path / "rules.svg")])
    assert done.exit_code == 0, done.output
    rules = json.loads(done.output)["rules"]
    assert rules["reshape"]["trained"] >= rules["drop cells"]["trained"] >= rules["torchft's rule"]["trained"] > 0.3
    assert all(sum(v for k, v in shares.items() if k != "changes") == pytest.approx(1.0) for shares in rules.values())
    assert "<svg" in (tmp_path / "rules.svg").read_text()
    assert "worker hours" in CliRunner().invoke(app, argv).output
    assert compared(SMALL).keys() == rules.keys()


def test_times_are_taken_from_what_the_benchmark_measured(tmp_path: Path) -> None:
    """Of its medians: 0.5 s from hearing of a death to the next commit but for a step, 0.4 s more to the first step in
    another shape but for filling it and a step."""
    medians = {"noticed": 0.02, "next_commit": 0.62, "reshaped": 1.22, "fill": 0.1, "step": 0.1}
    file = tmp_path / "measured.json"
    file.write_text(json.dumps({f"{name}_median": value for name, value in medians.items()}))
    app = typer.Typer()
    app.command()(simulate)
    argv = ["--cluster", "8x2", "--workers-per-cell", "4", "--days", "1", "--rules", "--json"]
    found = CliRunner().invoke(app, [*argv, "--measured", str(file)], catch_exceptions=False)
    times = json.loads(found.output)["settings"]["times"]
    assert times["closed"] == 0.02
    assert times["regroup"] == pytest.approx(0.5 + 2.0 * 16 / 16_384)
    assert times["form"] == pytest.approx(0.4)
    assert times["copy"] == Times().copy
    for text in ('{"noticed_median": 1}', '{"noticed_median": true}', "[]"):
        file.write_text(text)
        with pytest.raises(UserError, match=re.escape(str(file))):
            by_benchmark(Times(), file, 16)
    with pytest.raises(UserError, match="no such file"):
        by_benchmark(Times(), tmp_path / "none", 16)
