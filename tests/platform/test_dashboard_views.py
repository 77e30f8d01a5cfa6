"""What the page shows, made from records alone: curves of any length, who is where, and what is new."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.dashboard import palette
from shoal.dashboard.buckets import MOST, RATE, curves, size_for
from shoal.dashboard.crew import MOST_GONE, Crew
from shoal.dashboard.picture import Picture, Seen
from shoal.dashboard.watched import Reader
from shoal.record import layout
from shoal.record.columns import Columns, StepColumns
from shoal.record.generations import Membership, told
from shoal.record.rundir import RunDir
from shoal_core.errors import UserError
from tests.platform.test_report_page import BATCH, STEPS, demo_record


def line(step: int, **more: Any) -> dict[str, Any]:
    figures = {"loss": 2.0, "lm_loss": 2.0, "mtp_loss": None, "grad_norm": 1.0, "lr": 1e-3}
    where = {"step": step, "time": 100.0 + step, "samples": [step * 8, step * 8 + 8], "cells": 2, "generation": 0}
    return {**where, **figures, "tokens": 512, "seconds": 1.0, **more}


def columns(values: list[float | None], **more: list[float]) -> Columns:
    found = Columns()
    numbers = np.arange(len(values), dtype=np.float64)
    given = {name: np.array(told, dtype=np.float64) for name, told in more.items()}
    loss = np.array([math.nan if value is None else value for value in values])
    ones = np.ones(len(values))
    found.extend({"step": numbers, "time": 100 + numbers, "tokens": ones, "seconds": ones, "loss": loss, **given})
    return found


@given(st.lists(st.none() | st.floats(-1e6, 1e6), min_size=1, max_size=70), st.sampled_from([1, 2, 4, 16]), st.data())
def test_no_spike_is_lost_and_what_is_new_joins_what_was_there(
    values: list[float | None], size: int, data: st.DataObject
) -> None:
    """Each bucket against its own steps; and however far somebody has seen, what he is given makes the same whole."""
    whole = curves(columns(values), ["loss"], 0, len(values), size)
    for number, of in enumerate(cut(values, size)):
        known = [value for value in of if value is not None]
        expected = [None, None, None] if not known else [sum(known) / len(known), min(known), max(known)]
        found = [whole["of"]["loss"].get(part, whole["of"]["loss"]["mean"])[number] for part in ("mean", "low", "high")]
        assert found == [None if value is None else pytest.approx(value, rel=1e-5, abs=1e-5) for value in expected]
    seen = data.draw(st.integers(0, len(values)))
    after = seen // size
    before, new = (
        curves(columns(values), ["loss"], 0, last, size, first) for last, first in ((seen, 0), (len(values), after))
    )
    assert before["of"]["loss"]["mean"][:after] + new["of"]["loss"]["mean"] == whole["of"]["loss"]["mean"]
    assert before["step"][:after] + new["step"] == whole["step"]


def cut(values: list[Any], size: int) -> list[list[Any]]:
    return [values[at : at + size] for at in range(0, len(values), size)]


def test_a_run_of_a_hundred_thousand_steps_is_as_many_points_as_a_short_one() -> None:
    loss = [3.0] * 100_000
    loss[54_321] = 99.0
    found = curves(columns(list(loss)), ["loss", RATE], 0, len(loss), size_for(len(loss)))
    assert len(found["step"]) <= MOST
    assert max(found["of"]["loss"]["high"]) == 99.0
    assert found["step"][-1] == 99_999
    assert found["tokens"][-1] == 100_000
    assert set(found["of"][RATE]["mean"]) == {1.0}


@pytest.mark.parametrize("lines", [50, 3000])  # the latter are more bytes than are read line by line
def test_columns_grow_line_by_line_and_half_a_line_is_never_read(tmp_path: Path, lines: int) -> None:
    file, found = tmp_path / layout.STEPS, StepColumns(tmp_path)
    assert not found.look()
    texts = [json.dumps(line(step, loss=float(step), mfu=0.5 if step % 2 else None)) for step in range(lines)]
    file.write_text("\n".join(texts) + "\n" + json.dumps(line(lines))[:-9])
    assert found.look()
    assert found.columns.count == lines
    assert not found.look()
    with file.open("a") as more:
        more.write(json.dumps(line(lines))[-9:])
    assert not found.look()
    with file.open("a") as more:
        more.write("\n")
    assert found.look()
    assert found.columns["loss"].tolist() == [*map(float, range(lines)), 2.0]
    assert found.columns["step"].tolist() == [*map(float, range(lines + 1))]
    assert np.isnan(found.columns["mtp_loss"]).all()
    assert np.nansum(found.columns["mfu"]) == 0.5 * (lines // 2)
    assert "samples" not in found.columns.names


def test_steps_that_are_taken_back_leave_the_curves(tmp_path: Path) -> None:
    run, found = RunDir.create(tmp_path, "r", {}, resume=False), StepColumns(tmp_path / "r")
    for step in range(9):
        run.append_step(line(step))
    assert found.look()
    run.truncate_steps(5)
    run.append_step(line(5, loss=7.0))
    assert found.look()
    assert (found.epoch, found.columns["step"].tolist(), found.columns["loss"][-1]) == (1, [0, 1, 2, 3, 4, 5], 7.0)


@pytest.mark.parametrize("many", [0, 3000])
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"loss": "no"}, "'loss' that is no number"),
        ({"step": 1}, "tells of step 1 after step"),
        ({"time": None}, "'time'"),
    ],
)
def test_a_damaged_line_is_named_among_many_too(tmp_path: Path, many: int, wrong: dict[str, Any], said: str) -> None:
    lines = [line(step) for step in range(2 + many)] + [line(2 + many) | wrong]
    (tmp_path / layout.STEPS).write_text("".join(json.dumps(one) + "\n" for one in lines))
    with pytest.raises(UserError, match=said) as error:
        StepColumns(tmp_path).look()
    assert f"{layout.STEPS}:{3 + many}" in error.value.problem


def test_a_record_with_endless_figures_is_refused(tmp_path: Path) -> None:
    (tmp_path / layout.STEPS).write_text(json.dumps(line(0, **{f"figure{index}": 1.0 for index in range(300)})) + "\n")
    with pytest.raises(UserError, match="more than 256 figures"):
        StepColumns(tmp_path).look()


def crew_after(run: RunDir, kinds: int | None = None) -> dict[str, Any]:
    from shoal.record.read import events

    crew = Crew()
    for event in events(run.path)[:kinds]:
        crew.take(event)
    return crew.picture()


def test_who_is_where_after_two_nodes_died(tmp_path: Path) -> None:
    found = crew_after(demo_record(tmp_path))
    of = {one["actor"]: one for one in found["workers"]}
    assert [one["state"] for one in found["workers"]] == ["trains"] * 4 + ["gone"] * 4
    spare = of["demo/spare0@node3"]
    assert (spare["cell"], spare["stage"], spare["shard"], spare["state"]) == ("1", 0, 0, "trains")
    assert of["demo/cell0/stage0/shard1@node1"]["how"] == "connection lost"
    assert found["nodes"] == {"node1": "lost", "node2": "lost", "node3": "here", "node4": "here"}


def test_a_cell_of_stages_and_shards_and_one_of_another_shape() -> None:
    crew, names = Crew(), [f"r/cell0/stage{stage}/shard{shard}@n" for stage in range(2) for shard in range(3)]
    first = Membership(0, 0, 1.0, {"0": names}, {"0": 0})
    crew.take({"kind": "generation", "time": 1.0, **told(None, first)})
    seats = [(one["stage"], one["shard"]) for one in crew.picture()["workers"]]
    assert seats == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    shape = {"number": 1, "cells": 1, "pp": 1, "fsdp": 3, "ep": 2, "ep_node": 1}
    crew.take({"kind": "generation", "time": 2.0, **told(first, Membership(1, 5, 2.0, {"0": names}, {"0": 1}, shape))})
    assert [(one["stage"], one["shard"]) for one in crew.picture()["workers"]] == [(0, rank) for rank in range(6)]


def test_whoever_comes_takes_the_place_of_one_who_went_and_few_of_those_are_kept() -> None:
    crew = Crew()
    for index in range(3 * MOST_GONE):
        crew.take({"kind": "worker_ready", "time": 1.0, "actor": f"r/w{index}@n{index}", "node": f"n{index}"})
        crew.take({"kind": "death", "time": 2.0, "actor": f"r/w{index}@n{index}", "node": f"n{index}"})
    assert len(crew.picture()["workers"]) == MOST_GONE
    assert crew.counts == {"training": 0, "spares": 0, "cells": 0, "gone": 3 * MOST_GONE}
    last = f"n{3 * MOST_GONE - 1}"
    crew.take({"kind": "worker_ready", "time": 3.0, "actor": f"r/again@{last}", "node": last})
    assert [one["actor"] for one in crew.picture()["workers"] if one["node"] == last] == [f"r/again@{last}"]


def test_a_picture_tells_what_is_new_and_nothing_twice(tmp_path: Path) -> None:
    run = demo_record(tmp_path, status="done")
    reader = Reader(run.path)
    assert reader.look()
    found, seen = reader.picture.since(Seen())
    head = found["head"]
    assert (head["step"], head["deaths"], head["nodes_lost"], head["recoveries"], head["steps_lost"]) == (
        STEPS,
        4,
        2,
        2,
        0,
    )
    assert (head["status"], head["next_commit"], head["tokens"]) == ("done", 0.9, STEPS * 4096)
    assert found["heldout"]["bpb"] == [[0, 3.4], [STEPS, 2.1]]
    assert [told["rung"] for told in found["story"]["entries"] if "rung" in told] == ["heal", "heal"]
    assert {"loss", RATE, "lr"} <= set(found["curves"]["of"])
    assert not reader.look()
    assert reader.picture.since(seen) == ({}, seen)
    run.append_step(line(STEPS, samples=[STEPS * BATCH, (STEPS + 1) * BATCH]))
    run.append_event("death", actor="demo/spare1@node3", node="node3", pid=1, cell=1, how="<b>", step=STEPS)
    assert reader.look()
    found, _ = reader.picture.since(seen)
    assert (found["curves"]["at"], found["curves"]["step"]) == (STEPS, [float(STEPS)])
    assert [told["kind"] for told in found["story"]["entries"]] == ["death"]
    assert [one["state"] for one in found["map"]["workers"]].count("gone") == 5


def test_a_window_has_every_step_of_a_long_run() -> None:
    picture = Picture()
    picture.columns = columns([float(value) for value in range(5000)])
    found = picture.window(["loss"], 3000, 3099)
    assert (found["size"], found["of"]["loss"]["mean"]) == (1, [float(value) for value in range(3000, 3100)])


def test_what_is_damaged_is_told_and_what_was_read_before_stays(tmp_path: Path) -> None:
    run = demo_record(tmp_path)
    reader = Reader(run.path)
    reader.look()
    with (run.path / layout.EVENTS).open("a") as file:
        file.write("no json\n")
    assert reader.look()
    assert f"{layout.EVENTS}:" in str(reader.problem)
    assert not reader.look()
    assert reader.picture.head()["step"] == STEPS


def test_a_damaged_journal_hides_no_steps(tmp_path: Path) -> None:
    run = demo_record(tmp_path)
    lines = (run.path / layout.EVENTS).read_text().splitlines()
    (run.path / layout.EVENTS).write_text("\n".join([lines[0], "no json", *lines[2:]]) + "\n")
    reader = Reader(run.path)
    reader.look()
    assert f"{layout.EVENTS}:" in str(reader.problem)
    assert reader.picture.head()["step"] == STEPS


def test_an_event_whose_fields_are_wrong_is_told_and_the_page_goes_on(tmp_path: Path) -> None:
    run = demo_record(tmp_path)
    reader = Reader(run.path)
    reader.look()
    before, _ = reader.picture.since(Seen())
    run.append_event("worker_ready", actor=None, node=None)
    assert reader.look()
    assert "what docs/record.md says" in str(reader.problem)
    after, _ = reader.picture.since(Seen())
    assert {name: after[name] for name in ("map", "lanes", "heldout")} == {
        name: before[name] for name in ("map", "lanes", "heldout")
    }


def test_a_folder_that_is_gone_is_told_and_what_was_shown_stays(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "r", {}, resume=False)
    run.append_event("run_started", run_id="r", steps=9, cells=1, workers_per_cell=1)
    reader = Reader(run.path)
    assert reader.look()
    run.path.rename(tmp_path / "away")
    assert reader.look()
    assert not reader.look()
    assert str(reader.problem).startswith("what is shown is old: the run's folder is gone, and ")
    assert reader.picture.head()["run_id"] == "r"
    (tmp_path / "away").rename(run.path)
    assert reader.look()
    assert reader.problem is None


def test_a_controller_that_says_nothing_is_told(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "r", {}, resume=False)
    run.append_event("run_started", run_id="r", steps=9, cells=1, workers_per_cell=1)
    worker = {"actor": "r/cell0/stage0/shard0@n", "node": "n", "cell": 0, "step": 1, "heartbeat_age": 0.0}
    status = {"run_id": "r", "status": "running", "step": 1, "steps": 9, "workers": [worker], "written": 1000.0}
    run.write_status(status)
    reader = Reader(run.path)
    assert reader.look(now=1001.0)
    assert not reader.look(now=1002.0)
    assert reader.picture.head()["silent"] is False
    assert reader.look(now=1011.0)
    assert reader.picture.head()["silent"] is True
    assert reader.picture.quiet() == {}  # the controller is silent, not its worker
    run.write_status(status | {"workers": [worker | {"heartbeat_age": 6.0}], "written": 1012.0})
    assert reader.look(now=1015.0)
    assert reader.picture.quiet() == {worker["actor"]: 6.0}


SIMULATED = {  # Machado, Oliveira and Fernandes 2009, severity 1
    "none": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_LMS = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
          [0.0883024619, 0.2817188376, 0.6299787005]]  # fmt: skip
TO_LAB = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
          [0.0259040371, 0.7827717662, -0.8086757660]]  # fmt: skip


def linear(colour: str) -> Any:
    parts = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    light, dark = sorted((float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def oklab(colour: str, sight: str) -> Any:
    seen = np.clip(np.array(SIMULATED[sight]) @ linear(colour), 0, 1)
    return np.array(TO_LAB) @ np.cbrt(np.array(TO_LMS) @ seen)


@pytest.mark.parametrize("theme", [palette.LIGHT, palette.DARK], ids=["light", "dark"])
def test_text_and_marks_stand_out_from_whatever_they_stand_on(theme: dict[str, str]) -> None:
    for text in ("ink", "muted", "good", "bad", "warn"):
        for ground in ("ground", "paper", "sunk"):
            assert contrast(theme[text], theme[ground]) >= 4.5, (text, ground)
    for number in range(palette.SERIES):  # lines on the paper, and names in the paper's colour on them
        assert contrast(theme[f"c{number}"], theme["paper"]) >= 4.5, number
    for part in ("edge", "focus"):
        assert contrast(theme[part], theme["paper"]) >= 3, part


@pytest.mark.parametrize("sight", SIMULATED)
@pytest.mark.parametrize("theme", [palette.LIGHT, palette.DARK], ids=["light", "dark"])
def test_no_two_cells_look_alike_to_anybody(theme: dict[str, str], sight: str) -> None:
    """Distances in OKLab; 0.02 is what can just be told apart."""
    colours = [theme[f"c{number}"] for number in range(palette.SERIES)]
    distances = [
        float(np.linalg.norm(oklab(one, sight) - oklab(other, sight)))
        for one, other in itertools.combinations(colours, 2)
    ]
    assert min(distances) > 0.1
