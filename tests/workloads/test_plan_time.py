"""What `shoal plan` counts of messages against the real layouts, and the pieces of the benchmark that measures it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch.distributed as dist
import yaml
from torch.distributed.fsdp import FSDPModule

from shoal.testing import World, world
from shoal_core.mesh import Mesh
from shoal_workloads.config import PretrainConfig
from shoal_workloads.estimate import Cluster, estimate, hardware
from shoal_workloads.estimate.calibrate_messages import line
from shoal_workloads.estimate.hardware import Calibration, Line, Messages
from shoal_workloads.estimate.messages import sends, units
from shoal_workloads.estimate.recorded import Recorded, recorded
from shoal_workloads.parallel.schedule import LAYOUTS, actions_of, schedule_of, turns
from tests.support import synthetic

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def pair() -> Iterator[World]:
    with world(2) as found:
        yield found


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plan_time", BENCHMARKS / "plan_time.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found  # where its dataclasses look their types up
    spec.loader.exec_module(found)
    return found


def wrapped(config: PretrainConfig) -> int:
    """What FSDP gathers at once, in a real model."""
    assert dist.is_initialized()
    return sum(isinstance(module, FSDPModule) for module in synthetic.build(config).model.modules())


@pytest.mark.parametrize("ep", [1, 2])
def test_units_are_those_that_fsdp_wraps(pair: World, ep: int) -> None:
    config = synthetic.tiny(model={"n_layers": 4, "n_dense": 1, "mtp_depth": 2}, parallel={"ep": ep})
    assert pair.run(wrapped, config)[0] == units(config, Mesh.of({"ep": ep}, 2))


@pytest.mark.parametrize("name", LAYOUTS)
def test_sends_are_what_the_executor_hands_to_other_ranks(name: str) -> None:
    schedule = schedule_of(synthetic.tiny(parallel={"pp": 4, "schedule": name}).parallel, 8)
    for rank in range(schedule.ranks):
        theirs = sum(made is not None and not made.local for turn in turns(schedule, rank) for made in turn.makes)
        mine = sum(sends(schedule, one) for step in schedule.orders[rank] for one in actions_of(step))
        assert mine == theirs > 0


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_pipeline_multiplies_as_much_as_a_cell_without_one(name: str) -> None:
    """MTP modules and head among it, both gradients made at once or apart, on both kinds of device."""
    each = {"model": {"n_layers": 6, "mtp_depth": 1}, "batch": {"global_batch": 8, "micro_batch": 1}}
    for here in (hardware("H100"), recorded().hardware):
        cells = [synthetic.tiny(**each, parallel=parallel) for parallel in ({}, {"pp": 2, "schedule": name})]
        flat, piped = (estimate(one, Cluster(1, 2, "here", here), 2, 1).step["products"] for one in cells)
        assert piped == pytest.approx(flat)


def test_a_line_goes_through_both_ends_and_no_part_of_it_is_negative() -> None:
    assert line([(100.0, 3.0), (300.0, 5.0)]) == Line(fixed=2.0, byte=0.01)
    assert line([(100.0, 6.0), (300.0, 3.0)]) == Line(fixed=0.0, byte=0.01)  # the short one was disturbed
    assert line([(100.0, 0.1), (300.0, 3.0)]) == Line(fixed=0.0, byte=0.01)


def test_measured_messages_are_added_to_what_computes() -> None:
    """Seconds a call alone, so that calls can be counted: of FSDP a gather and a reduction of every unit."""
    calls = {name: Line(fixed=0.0, byte=0.0) for name in Messages.model_fields if name != "waiting"}
    calls["gather"], calls["reduce"] = (Line(fixed=fixed, byte=0.0) for fixed in (1.0, 100.0))
    known = Calibration(measured="now", versions={}, spread=0, busy=0, messages=Messages(waiting=0.0, **calls))
    here = hardware("H100").model_copy(update={"calibration": known})
    each = {"model": {"n_layers": 3, "mtp_depth": 0}, "batch": {"global_batch": 8, "micro_batch": 1}}
    count = units(synthetic.tiny(**each), Mesh(fsdp=2))

    def gathers(**parallel: object) -> float:
        found = estimate(synthetic.tiny(**each, parallel=parallel), Cluster(1, 2, "here", here), 2, 1)
        return found.step["gather and reduce"]

    assert gathers() == pytest.approx(4 * (1 + 100) * count)
    assert gathers(reduce_once=True) == pytest.approx(4 * count + 100 * count)
    assert gathers(reshard_after_forward=True) == pytest.approx(4 * (2 * count - 1) + 4 * 100 * count)


def test_the_benchmark_measures_a_step_of_each_kind_of_cell(benchmark: ModuleType, pair: World, tmp_path: Path) -> None:
    model = {"model": {"n_layers": 4, "mtp_depth": 0}, "batch": {"global_batch": 8, "micro_batch": 1}}
    for i, name in enumerate(("2 cells", "ep 2", "pp 2 zb1p")):
        layout = benchmark.LAYOUTS[name]
        folder = tmp_path / str(i)
        folder.mkdir()
        ranks = pair.run(benchmark.measured, benchmark.job(model, layout), layout, 2, str(folder))
        assert all(len(rank.walls) == 2 for rank in ranks)
        assert {kind: number for kind, (_, number) in ranks[0].actions.items()} == (
            {"F": 8, "I": 8, "W": 8} if layout.parallel.get("pp") else {}
        )
        found = benchmark.predicted(model, layout, hardware("H100"))
        parts = benchmark.compared(found, ranks)
        assert sum(mine for mine, _ in parts.values()) == pytest.approx(found.seconds)


def test_figures_are_medians_over_rounds_and_cells(benchmark: ModuleType) -> None:
    times = {"a": ((1.0, 2.0), (2.0, 2.0), (3.0, 2.0)), "b": ((1.1, 1.0),)}
    rows = [
        benchmark.Row("m", name, i, *both, {}, {}, 0.0) for name, each in times.items() for i, both in enumerate(each)
    ]
    found = benchmark.summary(rows)
    assert found["cells"]["m, a"]["error"] == 0.0
    assert (found["median"], found["worst"]) == (pytest.approx(0.05), pytest.approx(0.1))


def test_a_round_is_recorded_as_it_was_estimated(benchmark: ModuleType) -> None:
    """Written as YAML and read again, every cell is the job that was measured, and its estimate the same."""
    here = hardware("H100").model_copy(update={"device": "a machine"})
    rows = []
    for model in benchmark.MODELS:
        for name in ("one worker", "pp 2 zbv"):
            found = benchmark.predicted(benchmark.MODELS[model], benchmark.LAYOUTS[name], here)
            row = benchmark.Row(model, name, 1, found.seconds, 2.0, {}, {}, 0.0)
            rows += [vars(row), vars(row) | {"round": 0, "measured": 3.0}]
    kept = benchmark.record({"rows": rows, "hardware": {"1": here.model_dump()}})
    again = Recorded.model_validate(yaml.safe_load(yaml.safe_dump(benchmark.plain(kept))))
    assert again == kept
    ours = {(row["model"], row["layout"]): row["predicted"] for row in rows}
    compared = {(model, layout): (seconds, mine) for model, layout, seconds, mine in again.compared()}
    assert compared == {cell: (2.0, pytest.approx(seconds)) for cell, seconds in ours.items()}


def test_the_shipped_record_has_every_cell_of_the_benchmark(benchmark: ModuleType) -> None:
    kept = recorded()
    for model, each in benchmark.MODELS.items():
        for name, layout in benchmark.LAYOUTS.items():
            known = PretrainConfig.model_validate(kept.models[model] | {"parallel": kept.layouts[name].parallel})
            mine = benchmark.job(each, layout)
            assert known == mine.model_copy(update={"parallel": known.parallel})
            assert kept.seconds[model][name] > 0
