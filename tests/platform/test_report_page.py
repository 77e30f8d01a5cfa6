"""The report, made from a record like the demo's: two nodes killed, both cells healed on spares."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from shoal.record.rundir import RunDir
from shoal.report import build
from shoal.report.history import Clock, History, Stay, stays, unigram_entropy
from shoal.report.lanes import lanes
from shoal.report.page import waits
from shoal_core.errors import UserError

BATCH, STEPS = 8, 90
START = 1_700_000_000.0


def demo_record(storage: Path, status: str = "done") -> RunDir:
    """Cells 0 and 1 of two workers on node1 and node2, spares on node3 and node4; node2 dies at 30, node1 at 60."""
    config = {
        "run_id": "demo",
        "steps": STEPS,
        "mlflow": {"uri": "http://me:hunter2@host"},
        "note": "<script>alert(1)</script>",
    }
    run = RunDir.create(storage, "demo", config, resume=False)
    crews = {"0": ["demo/cell0/stage0/shard0@node1", "demo/cell0/stage0/shard1@node1"],
             "1": ["demo/cell1/stage0/shard0@node2", "demo/cell1/stage0/shard1@node2"]}  # fmt: skip
    spares = [f"demo/spare{index}@node{3 + index // 2}" for index in range(4)]
    run.append_event("run_started", run_id="demo", steps=STEPS, cells=2, workers_per_cell=2, time=START)
    now, generation = START + 4.0, 0
    for crew in crews.values():
        for actor in crew:
            run.append_event("worker_ready", actor=actor, node=actor[-5:], pid=1, time=START + 3.0)
    run.append_event("generation", generation=0, step=0, cells=crews, time=now)
    run.append_event("evaluation", step=0, bpb=3.4, unigram_entropy=6.9, time=now + 0.2)
    for index, actor in enumerate(spares):
        run.append_event("worker_ready", actor=actor, node=actor[-5:], pid=1, time=now + 2 + index / 10)
    for step in range(STEPS):
        seconds = 0.5 + 0.05 * math.sin(step)
        if step in (30, 60):
            cell = "1" if step == 30 else "0"
            node = crews[cell][0][-5:]
            killed = now + 0.2
            for actor in crews[cell]:
                run.append_event("death", actor=actor, node=node, pid=1, cell=int(cell), coords={"shard": 0},
                                 how="connection lost", step=step, time=killed + 0.1)  # fmt: skip
            run.append_event("node_lost", node=node, actors=crews[cell], time=killed + 1.2)
            run.append_event("decision", rung="heal", cells=[int(cell)], reason="spares are there", time=killed + 0.2)
            dead = crews[cell]
            crews = {**crews, cell: [spares.pop(0), spares.pop(0)]}
            generation += 1
            run.append_event("generation", generation=generation, step=step, cells=crews, time=killed + 1.0)
            now = killed + 0.9
            run.append_event(
                "recovery", rung="heal", cell=int(cell), nodes=[node], actors=dead, reason="spares are there",
                phases={"detect": 0.1, "decide": 0.1, "place": 0.05, "join": 0.6, "state": 0.15, "first_step": 0.4},
                next_commit=0.9, full_strength=1.4, steps_lost=0, time=killed + 1.4,
            )  # fmt: skip
            seconds = 1.1
        now += seconds if step not in (30, 60) else 0.0
        loss = 8.3 * math.exp(-step / 40) + 3.0
        run.append_step({
            "step": step, "time": now, "loss": loss * 1.1, "lm_loss": loss, "mtp_loss": loss + 0.2,
            "grad_norm": 1 + 1 / (step + 1), "lr": 1e-3 * min(1, step / 10), "tokens": 4096,
            "samples": [step * BATCH, (step + 1) * BATCH], "cells": 2,
            "generation": generation, "seconds": seconds,
        })  # fmt: skip
        if step % 30 == 29:
            run.append_event(
                "checkpoint", step=step + 1, path=f"checkpoints/{step + 1}", seconds=0.4, bytes=5_000_000, time=now
            )
    run.append_event("evaluation", step=STEPS, bpb=2.1, time=now + 0.5)
    run.append_event("run_ended", status=status, reason="all steps are committed", time=now + 1)
    return run


class Page(HTMLParser):
    """Collects what a browser would fetch or run, and the text of the page; checks that tags are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag != "script"
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_answers_and_refers_to_nothing_outside(tmp_path: Path) -> None:
    run = demo_record(tmp_path)
    text = build(run.path).read_text()
    page = Page(text)
    assert page.open == []
    assert page.links
    assert all(link.startswith("#") for link in page.links)
    assert not re.search(r"url\((?!#)", text)
    assert "hunter2" not in text
    for words in ("Lost anything?", "nothing", "3.400 → 2.100", "2 nodes", "4 workers, 2 recoveries", "0.90 s (median)",
                  "after the loss of node2", "checkpoints/60", "5.0 MB", "entropy of the tokens"):  # fmt: skip
        assert words in page.text
    assert "<script>" in page.text  # the setting's text, shown and not run


def test_every_reference_inside_the_pictures_has_its_target(tmp_path: Path) -> None:
    text = build(demo_record(tmp_path).path).read_text()
    ids = re.findall(r'\bid="([^"]+)"', text)
    used = set(re.findall(r'href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text))
    assert used <= set(ids)
    repeated = {name for name in used if ids.count(name) > 1}
    assert not repeated


def test_a_loss_of_steps_or_samples_is_said_first(tmp_path: Path) -> None:
    run = demo_record(tmp_path, status="failed")
    run.append_samples({"step": 0, "cell": 0, "worker": "w", "ids": [0, 1, 1]})
    page = Page(build(run.path).read_text())
    assert f"{STEPS * BATCH - 2} samples skipped, 1 sample seen twice" in page.text
    assert "failed" in page.text


def test_a_run_without_a_step_or_without_most_figures_has_a_page(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "young", {}, resume=False)
    assert "No step is committed yet" in Page(build(run.path).read_text()).text
    run.append_event("run_started", run_id="young", steps=3, cells=1, workers_per_cell=1)
    run.append_step({"step": 0, "loss": float("nan"), "lm_loss": None, "mtp_loss": None, "grad_norm": None, "lr": 0.0,
                     "tokens": 0, "samples": [0, 8], "cells": 1, "generation": 0, "seconds": 0.0})  # fmt: skip
    run.append_event("recovery", rung="shrink", phases={"detect": 0.1, "join": None})
    assert "unknown" in Page(build(run.path).read_text()).text


def test_a_held_out_loss_stands_where_bits_a_byte_would(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "tuned", {}, resume=False)
    run.append_event("run_started", run_id="tuned", steps=2, cells=1, workers_per_cell=1, time=START)
    run.append_event("evaluation", step=0, heldout_loss=3.5, time=START + 1)
    for step in range(2):
        run.append_step({"step": step, "time": START + 2 + step, "loss": 3.0, "lm_loss": 3.0, "tokens": 10,
                         "samples": [step, step + 1], "cells": 1, "generation": 0, "seconds": 1.0})  # fmt: skip
    run.append_event("evaluation", step=2, heldout_loss=2.25, time=START + 4)
    text = Page(build(run.path).read_text()).text
    assert "3.500 → 2.250" in text
    assert "Held-out loss" in text


def test_long_runs_make_small_pages(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "long", {}, resume=False)
    run.append_event("run_started", run_id="long", steps=30_000, cells=1, workers_per_cell=1, time=START)
    for step in range(30_000):
        run.append_step({"step": step, "time": START + step, "loss": 2.0, "lm_loss": math.sin(step), "mtp_loss": None,
                         "grad_norm": 1.0, "lr": 0.1, "tokens": 64, "samples": [step, step + 1], "cells": 1,
                         "generation": 0, "seconds": 1.0})  # fmt: skip
    assert build(run.path).stat().st_size < 600_000


def test_stays_follow_the_journal() -> None:
    events: list[dict[str, Any]] = [
        {"time": 0.0, "kind": "worker_ready", "actor": "r/a@n1"},
        {"time": 1.0, "kind": "worker_ready", "actor": "r/b@n2"},
        {"time": 2.0, "kind": "generation", "cells": {"0": ["r/a@n1"]}},
        {"time": 3.0, "kind": "generation", "cells": {"0": ["r/a@n1"]}},
        {"time": 5.0, "kind": "death", "actor": "r/a@n1"},
        {"time": 6.0, "kind": "generation", "cells": {"0": ["r/b@n2"]}},
    ]
    assert stays(events, end=9.0) == [
        Stay("r/a@n1", "n1", None, 0.0, 2.0),
        Stay("r/a@n1", "n1", "0", 2.0, 5.0),
        Stay("r/b@n2", "n2", None, 1.0, 6.0),
        Stay("r/b@n2", "n2", "0", 6.0, 9.0),
    ]


def test_workers_share_the_lane_of_one_slot_and_huge_runs_keep_the_struck_nodes(tmp_path: Path) -> None:
    history = History.read(demo_record(tmp_path).path)
    assert [node for node, _ in lanes(history.stays, ())] == [f"node{1 + index // 2}" for index in range(8)]
    many = [Stay(f"r/w{i}@n{i:04}", f"n{i:04}", "0", START, START + 9) for i in range(2048)]
    found = lanes(many, {"n2000"})
    assert len(found) == 64
    assert "n2000" in [node for node, _ in found]


def test_the_clock_leaves_out_the_time_between_sessions() -> None:
    clock = Clock([{"start": 100, "end": 110, "seconds": 10}, {"start": 500, "end": 520, "seconds": 20}])
    assert [clock(time) for time in (100, 105, 300, 500, 507, 900)] == [0, 5, 10, 10, 17, 30]
    assert clock.seams == [10]


@pytest.mark.parametrize(("places", "value"), [
    (({"a": {"unigram_entropy": 6.5}},), 6.5),
    (([], [{"unigram_entropy": 7}]), 7.0), (({"unigram_entropy": ""},), None),
])  # fmt: skip
def test_the_entropy_is_found_wherever_it_is_told(places: Any, value: float | None) -> None:
    assert unigram_entropy(*places) == value


def test_names_are_no_formulas_no_markup_and_no_escapes(tmp_path: Path) -> None:
    node = "$\\frac{$<b>&[red]\x1b[2J\u202e\ud800"
    run = demo_record(tmp_path)
    run.append_event("worker_ready", actor=f"demo/spare9@{node}", node=node, pid=1, time=START + 5.0)
    run.append_event("death", actor=f"demo/spare9@{node}", node=node, how="$\\frac{$ \x9b \ud800", time=START + 6.0)
    run.append_event("checkpoint", step=5, path="\ud800\x1b[2J", seconds=0.4, bytes=5, time=START + 7.0)
    text = build(run.path).read_text(encoding="utf-8")
    assert "$\\frac{$&lt;b&gt;&amp;[red]\\x1b[2J\\u202e\\ud800" in text
    assert not set(text) & set("\x1b\x9b\u202e")
    Page(text)


@pytest.mark.parametrize("figure", ["loss", "lm_loss", "mtp_loss", "grad_norm", "lr"])
def test_a_figure_that_is_nowhere_known_leaves_the_page_whole(tmp_path: Path, figure: str) -> None:
    run = RunDir.create(tmp_path, "job", {}, resume=False)
    run.append_event("run_started", run_id="job", steps=9, cells=1, workers_per_cell=1, time=START)
    for step in range(3):
        figures = dict.fromkeys(("loss", "lm_loss", "mtp_loss", "grad_norm", "lr"), 1.0) | {figure: math.nan}
        run.append_step({
            "step": step, "time": START + step, **figures, "tokens": 5, "samples": [step, step + 1], "cells": 1,
            "generation": 0, "seconds": 1.0,
        })  # fmt: skip
    Page(build(run.path).read_text())


def test_a_field_of_the_wrong_kind_is_one_sentence(tmp_path: Path) -> None:
    run = demo_record(tmp_path)
    run.append_event("recovery", rung="heal", phases=7, next_commit="soon", time=START + 90.0)
    with pytest.raises(UserError, match=r"a field of the record is not what docs/record\.md says"):
        build(run.path)


def test_waiting_for_a_store_is_told(tmp_path: Path) -> None:
    run = demo_record(tmp_path)
    assert "waited for the corpus" not in build(run.path).read_text()
    history = History.read(run.path)
    for step in history.steps:
        step.update(data_waits=2.0 if step["step"] in (0, 30) else 0.0, data_wait_seconds=0.25)
    assert "2 steps of 90 waited for the corpus, which lies on a store: 4 batches, 0.50 s" in waits(history)
    assert "in step 1, 31." in waits(history)
