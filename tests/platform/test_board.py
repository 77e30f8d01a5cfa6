"""The Grafana board that the installed Ray generates for Train: what of it finds a series of a run's, and what not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from ray.dashboard.modules.metrics import dashboards
from ray.dashboard.modules.metrics.dashboards.train_dashboard_panels import train_dashboard_config
from ray.util import metrics

from shoal.on_ray import board
from shoal.on_ray.board import STATE, TAGS, TIMES, Board
from shoal.record.raystate import RunState

NODES = "ray_node_"
"""What every node of a cluster reports by itself."""
SAMPLES = "ray_data_"
"""Ray Data's: samples do not come from it."""
NONE = {
    # a worker of Shoal's reports nothing and waits for no report, so there is no time that it was blocked
    "ray_train_report_total_blocked_time_s",
    # a checkpoint's folder is named by its step: no worker waits for others to agree on it
    "ray_train_checkpoint_sync_total_time_s",
    # it is written behind the steps, by all who hold a part: its seconds are the checkpoint's (the journal), not one's
    "ray_train_checkpoint_transfer_total_time_s",
}
OURS = {f"ray_{name}": {*TAGS} for name in TIMES} | {f"ray_{STATE[0]}": {*TAGS, STATE[1]}}
SERIES = re.compile(r"\b(ray_\w+)\s*\{([^}]*)\}")
ALWAYS = {"SessionName", "instance"}
"""Labels that Ray puts on every series."""


def asked(expression: str) -> list[tuple[str, set[str]]]:
    """The series of a PromQL expression, each with the labels that it is picked and grouped by."""
    text = expression.replace("{{", "{").replace("}}", "}").replace("{global_filters}", "")
    grouped = {label.strip() for names in re.findall(r"\bby \(([^)]*)\)", text) for label in names.split(",")}
    return [(name, set(re.findall(r"(\w+)=~?", labels)) | grouped) for name, labels in SERIES.findall(text)]


def expressions() -> list[str]:
    panels = [*train_dashboard_config.panels, *(panel for row in train_dashboard_config.rows for panel in row.panels)]
    found = [target.expr for panel in panels for target in panel.targets]
    base = Path(dashboards.__file__).parent / train_dashboard_config.base_json_file_name
    variables = json.loads(base.read_text())["templating"]["list"]
    asks = [one["definition"] for one in variables if one.get("definition")]  # label_values(series, label)
    assert len(asks) > 5
    return found + [f"{ask} by ({ask.rpartition(',')[2].strip(' )')})" for ask in asks]


def test_every_expression_finds_a_series_or_is_known_to_find_none() -> None:
    wanted = [series for expression in expressions() for series in asked(expression)]
    assert len(expressions()) > 40
    ours = [(name, labels) for name, labels in wanted if name in OURS]
    assert {name for name, _ in ours} == set(OURS)  # and nothing is exported that it does not read
    assert [(name, labels - OURS[name] - ALWAYS) for name, labels in ours if labels - OURS[name] - ALWAYS] == []
    others = {name for name, _ in wanted if not name.startswith((NODES, SAMPLES))} - set(OURS)
    assert others == NONE


def test_the_figures_are_set_under_these_names_and_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[tuple[str, str | None], float] = {}

    class Gauge:
        def __init__(self, name: str, about: str, tags: tuple[str, ...]) -> None:
            metrics.Gauge(name, about, tags)  # Ray takes them
            self.name, self.tags = name, tags

        def set_default_tags(self, tags: dict[str, str]) -> Gauge:
            assert tags == {"ray_train_run_name": "a", "ray_train_run_id": "s"}
            return self

        def set(self, value: float, tags: dict[str, str] | None = None) -> None:
            assert {*TAGS, *(tags or {})} == {*self.tags}
            seen[self.name, (tags or {}).get(STATE[1])] = value

    monkeypatch.setattr(board, "Gauge", Gauge)
    shown, state = Board("a", "s"), RunState("RUNNING")
    state.starting, state.leaving = 2.0, 1.0
    shown.show(state)
    state.status = "RESTARTING"
    shown.show(state)
    assert seen == {
        ("train_worker_group_start_total_time_s", None): 2.0,
        ("train_worker_group_shutdown_total_time_s", None): 1.0,
        ("train_controller_state", "RUNNING"): 0,
        ("train_controller_state", "RESTARTING"): 1,
    }
