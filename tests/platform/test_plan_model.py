"""`shoal plan --model`: the bill before it comes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shoal.cli.estimate import Asked, config_of
from shoal.cli.failing import Rates
from shoal.cli.main import app
from shoal.report.planned import GROUPS, group_of
from shoal_workloads.estimate import Cluster, hardware
from shoal_workloads.estimate.published import DEEPSEEK_V3
from shoal_workloads.estimate.search import search
from shoal_workloads.footprint import footprint

KEYS = {
    "memory_peak_bytes", "memory_parts", "step_seconds", "step_parts", "tokens_per_second", "mfu",
    "gpu_hours_per_trillion_tokens", "gpu_hours", "days", "dollars", "dollars_with_failures", "layout", "reasons",
}  # fmt: skip
V3 = ["plan", "--model", "deepseek-v3", "--cluster", "256x8xH800", "--pp", "16", "--ep", "64"]


def need() -> str:
    """What preflight says that V3 takes so, in GB."""
    asked = Asked(model="deepseek-v3", cluster="", pp=16, ep=64, recompute="dispatch", waiting=4)
    return f"{footprint(config_of(asked), 1024).total / 1e9:.1f}"


def test_a_model_that_fits_is_priced() -> None:
    done = CliRunner().invoke(app, [*V3, "--recompute", "dispatch", "--waiting", "4", "--tokens", "14.8T", "--json"])
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert found.keys() >= KEYS
    assert found["fits"]
    assert sum(found["memory_parts"].values()) == found["memory_peak_bytes"]
    assert found["dollars"] == pytest.approx(2.0 * found["gpu_hours"])
    assert found["gpu_hours"] == pytest.approx(14.8 * found["gpu_hours_per_trillion_tokens"])
    assert any("2024-12" in reason for reason in found["reasons"])  # a default price is told with its date


def test_what_does_not_fit_ends_with_2_and_says_by_how_much() -> None:
    done = CliRunner().invoke(app, [*V3, "--json"])
    assert done.exit_code == 2
    found = json.loads(done.stdout)
    assert not found["fits"]
    assert found["dollars"] is None
    more = found["memory_peak_bytes"] / 1e9 - hardware("H800").memory_gb
    assert f"needs {more:.1f} GB more" in found["reasons"][0]


SMALL = [
    "plan", "--model", "v3-small-16b", "--cluster", "8x8xH100", "--pp", "1", "--ep", "8", "--global-batch", "512",
    "--workers-per-cell", "16", "--precision", "bf16", "--json",
]  # fmt: skip


def test_failures_are_priced_by_the_controllers_own_decisions() -> None:
    done = CliRunner().invoke(app, [*SMALL, "--tokens", "20B", "--failures", "--spot", "--seeds", "2"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    policies = {one["name"]: one for one in found["policies"]}
    assert len(policies) == 8
    for name, one in policies.items():
        assert len(one["trains"]) == 2
        assert all(0 < share <= 1 for share in one["trains"])
        price = 1.25 if one["spot"] else 2.5
        paid = found["gpu_hours"] * (8 + one["spare_nodes"]) / 8 * price
        assert one["dollars"] == pytest.approx(paid / (sum(one["trains"]) / 2)), name
        assert one["dollars_least"] == pytest.approx(paid / max(one["trains"]))
        assert one["dollars_least"] <= one["dollars"] <= one["dollars_most"]
        assert found["dollars_with_failures"][name] == one["dollars"]
    assert list(found["dollars_with_failures"].values()) == sorted(found["dollars_with_failures"].values())
    told = " ".join(found["reasons"])
    assert all(word in told for word in ("2024-07", "2026-11", "--rate", "--spot-price", "--preemptions"))
    again = CliRunner().invoke(app, [*SMALL, "--tokens", "20B", "--failures", "--spot", "--seeds", "2"])
    assert json.loads(again.stdout) == found


def test_a_budget_or_days_say_how_far_a_run_gets() -> None:
    money, days = (
        json.loads(CliRunner().invoke(app, [*SMALL, *said]).stdout) for said in (["--budget", "5000"], ["--days", "3"])
    )
    assert money["dollars"] == pytest.approx(5000)
    assert days["days"] == pytest.approx(3)
    assert days["tokens"] == pytest.approx(3 * 86400 * days["tokens_per_second"])
    failing = json.loads(CliRunner().invoke(app, [*SMALL, "--budget", "5000", "--failures", "--seeds", "1"]).stdout)
    best = failing["policies"][0]
    assert best["dollars"] == pytest.approx(5000)
    assert failing["tokens"] < money["tokens"]
    ended = json.loads(CliRunner().invoke(app, [*SMALL, "--days", "3", "--failures", "--seeds", "1"]).stdout)[
        "policies"
    ]
    near = [one["dollars"] for one in ended if one["days"] <= 1.005 * min(other["days"] for other in ended)]
    assert ended[0]["days"] == pytest.approx(3)
    assert ended[0]["dollars"] == min(near)
    clash = CliRunner().invoke(app, [*SMALL, "--budget", "5000", "--days", "3"])
    assert "--budget and --days" in str(clash.exception)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ([*SMALL, "--spot"], "--spot"),
        (["plan", "--scaling", "--cluster", "8x8xH100"], "--scaling: of which model"),
        ([*SMALL, "--tokens", "1e400"], "is no number of tokens"),
        ([*SMALL, "--budget", "0.01"], "not enough for one step"),
        ([*SMALL, "--tokens", "5"], "not enough for one step"),
        ([*SMALL, "--failures", "--price", "0"], "at 0 dollars"),
        ([*SMALL, "--failures", "--spot", "--spot-price", "0"], "at 0 dollars"),
        (["plan", "job.yaml", "--model", "v3-small-16b"], "both say what is trained"),
        (
            ["plan", "--cluster", "8x8xH100", "--days", "30", "--failures"],
            "--failures: not for --budget or --days",
        ),
    ],
)
def test_what_would_be_left_out_is_refused(asked: list[str], told: str) -> None:
    assert told in str(CliRunner().invoke(app, asked).exception)


def test_cells_of_other_sizes_and_intervals_are_priced() -> None:
    """Each cell in its best layout and by its cheapest policy; the cheapest of all is said, with its checkpoints."""
    free = ["plan", "--model", "v3-small-16b", "--cluster", "8x8xH100", "--global-batch", "512", "--precision", "bf16"]
    asked = [*free, "--ep", "8", "--tokens", "20B", "--failures", "--seeds", "1", "--json"]
    found = json.loads(CliRunner().invoke(app, asked).stdout)
    cells = {one["layout"]["workers_per_cell"]: one for one in found["cells"]}
    assert len(cells) == len(found["cells"]) > 1
    assert list(cells.values()) == sorted(cells.values(), key=lambda one: one["dollars"])
    own = cells.pop(found["layout"]["workers_per_cell"])
    assert own["dollars"] == min(one["dollars"] for one in found["policies"])
    size, one = next(iter(cells.items()))
    held = [*free, "--ep", "8", "--workers-per-cell", str(size), "--tokens", "20B", "--json", "--failures"]
    alone = json.loads(CliRunner().invoke(app, [*held, "--seeds", "1"]).stdout)
    assert alone["layout"] == one["layout"]
    assert {other["name"]: other["dollars"] for other in alone["policies"]}[one["name"]] == one["dollars"]
    best = found["cells"][0]
    assert any(f"the cheapest of all: {best['name']}" in reason for reason in found["reasons"])
    assert best["checkpoint_every"] in [one["every"] for one in found["intervals"]]


def test_a_spot_price_of_ones_own_table_is_taken_and_said() -> None:
    gpu = hardware("H100")
    rates = Rates(rate=1.0, spot=True, spot_price=None, preemptions=0.1, seeds=1, seed=0)
    assert rates.price(gpu.price, paid=3.0) == (1.5, " (half of the price: assumed; --spot-price says otherwise)")
    own = gpu.price.model_copy(update={"spot": 0.9, "source": "a quote", "of": "2026-12"})
    assert rates.price(own, paid=3.0)[0] == 0.9
    assert "$0.90 a GPU and hour (a quote, 2026-12;" in rates.words(own, paid=3.0)[1]
    assert replace(rates, spot_price=0.7).price(own, paid=3.0) == (0.7, "")


@pytest.mark.long  # every model is searched
def test_without_a_model_all_are_told_and_where_none_fits_the_smallest_cluster() -> None:
    asked = ["plan", "--cluster", "1x8xA100", "--days", "3", "--precision", "bf16", "--global-batch", "256", "--json"]
    rows = {one["model"]: one for one in json.loads(CliRunner().invoke(app, asked).stdout)}
    assert rows["laptop-100m"]["days"] == pytest.approx(3)
    assert rows["deepseek-v3"]["tokens"] is None
    (told,) = re.findall(r"but on (\d+) nodes of 8", rows["deepseek-v3"]["why"])
    nodes = int(told)
    cluster = Cluster(nodes, 8, "A100", hardware("A100"))
    config = config_of(Asked(model="deepseek-v3", cluster="", global_batch=256, precision="bf16"))
    assert search(config, cluster, keep=1).best
    assert not search(config, Cluster(nodes // 2, 8, "A100", hardware("A100")), keep=1).best


def test_a_picture_shows_memory_pipeline_and_cost(tmp_path: Path) -> None:
    asked = [
        *V3,
        "--recompute",
        "dispatch",
        "--waiting",
        "4",
        "--tokens",
        "14.8T",
        "--picture",
        str(tmp_path / "p.svg"),
    ]
    assert CliRunner().invoke(app, asked).exit_code == 0
    drawn = (tmp_path / "p.svg").read_text()
    named = ("exchange, hidden", "exchange, exposed", "sum across cells", "From the middle")
    for words in (*named, f"over a step: {need()} GB", "84.9 GB", "gradients of weights that wait", "rank 15"):
        assert words in drawn
    policies = [*SMALL, "--failures", "--seeds", "1", "--picture", str(tmp_path / "flat.svg")]
    assert CliRunner().invoke(app, policies).exit_code == 0
    drawn = (tmp_path / "flat.svg").read_text()
    assert "when it needs most" in drawn
    assert "other shapes" in drawn
    assert "How often to save" in drawn
    assert "rank 0" not in drawn
    wrong = CliRunner().invoke(app, [*V3, "--picture", str(tmp_path / "p.jpg")])
    assert "neither .svg nor .png" in str(wrong.exception)


def test_every_part_of_a_memory_has_a_colour() -> None:
    found = json.loads(CliRunner().invoke(app, [*V3, "--recompute", "dispatch", "--waiting", "4", "--json"]).stdout)
    groups = {group_of(part) for part in found["memory_parts"]}
    assert groups == set(GROUPS) - {"commit"}  # of another moment
    assert group_of("gradients, flat") == group_of("bucket") == "commit"


def test_a_job_is_reckoned_as_its_model_is(tmp_path: Path) -> None:
    parallel = {**DEEPSEEK_V3["parallel"], "recompute": "dispatch", "waiting": 4}
    job = {
        "run_id": "big", "steps": 1000, "cells": 2, "workers_per_cell": 1024, "storage": str(tmp_path),
        "workload": {"path": "shoal_workloads.pretrain:Pretrain", **DEEPSEEK_V3, "parallel": parallel},
    }  # fmt: skip
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    done = CliRunner().invoke(app, ["plan", str(tmp_path / "job.yaml"), "--cluster", "256x8xH800", "--json"])
    assert done.exit_code == 0, (done.output, done.exception)
    found = json.loads(done.stdout)
    model = [*V3, "--recompute", "dispatch", "--waiting", "4", "--json"]
    same = json.loads(CliRunner().invoke(app, model).stdout)
    for key in ("memory_parts", "step_seconds", "mfu", "layout"):
        assert found[key] == same[key]
    assert found["tokens"] == 1000 * 15_360 * 4096
    assert found["days"] == pytest.approx(1000 * found["step_seconds"] / 86400)
    more = CliRunner().invoke(app, ["plan", str(tmp_path / "job.yaml"), "cells=3", "--cluster", "256x8xH800"])
    assert "3 cells of 1024 workers" in str(more.exception)


def test_people_are_told_the_layout_the_parts_and_the_bill() -> None:
    done = CliRunner().invoke(app, [*V3, "--recompute", "dispatch", "--waiting", "4", "--tokens", "14.8T"])
    assert done.exit_code == 0
    told = " ".join(done.stdout.split())
    assert "deepseek-v3 on 256x8 H800: 2 cells of pp 16 x fsdp 1 x ep 64, dualpipe, waiting 4" in told
    assert f"memory: fits at p99 routing, {need()} of 84.9 GB" in told
    assert "$6,2" in told
    assert "bubble" in told


def test_the_errors_against_published_figures_are_told() -> None:
    done = CliRunner().invoke(app, ["plan", "--validate", "--json"])
    figures = {one["name"]: one for one in json.loads(done.stdout)}
    assert figures["the step"]["error"] == pytest.approx(figures["the step"]["ours"] / 19.926 - 1)
    assert [one["of"] for one in figures.values() if one["fitted"] and "Llama" not in one["of"]] == [
        "DeepSeek-V3, a step of rank 0"
    ] * 2
    llama = {one["name"]: one for one in figures.values() if "Llama" in one["of"]}
    assert llama["interruptions"]["ours"] == pytest.approx(466, abs=3 * 466**0.5)
    assert llama["time that trains, above"]["error"] >= 0
