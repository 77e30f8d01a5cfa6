"""The demo itself, with its real model: killing two nodes loses nothing, and it stays beside the run without kills."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from shoal.demo.run import Outcome, demo
from shoal.record import layout, read
from shoal.record.jsonl import read_json

pytestmark = [pytest.mark.cluster, pytest.mark.long]
STEPS = 45


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Outcome]:
    storage = tmp_path_factory.mktemp("demo")
    return {
        kill: demo(storage, [f"steps={STEPS}", f"run_id=kill-{kill}"], kill=kill, keep=False, say=print)
        for kill in (True, False)
    }


def losses(path: Path) -> list[float]:
    return [line["loss"] for line in read.steps(path)]


def test_two_nodes_killed_and_nothing_lost(runs: dict[bool, Outcome]) -> None:
    outcome = runs[True]
    run = read_json(outcome.path / layout.RUN)
    assert run is not None
    assert len(outcome.kills) == 2
    assert (run["status"], run["steps"], run["steps_lost"], run["nodes_lost"]) == ("done", STEPS, 0, 2)
    ids = sorted(index for line in read.samples(outcome.path) for index in line["ids"])
    assert ids == list(range(STEPS * 16))
    assert (read_json(outcome.path / layout.MLFLOW) or {})["complete"]
    assert (outcome.path / layout.REPORT).exists()


def test_the_loss_is_that_of_the_undisturbed_run(runs: dict[bool, Outcome]) -> None:
    assert losses(runs[True].path) == pytest.approx(losses(runs[False].path), rel=0.01)


def test_it_learns_more_than_counting_would_tell(runs: dict[bool, Outcome]) -> None:
    path = runs[True].path
    entropy = next(event["unigram_entropy"] for event in read.events(path) if event["kind"] == "run_started")
    last = [line["lm_loss"] for line in read.steps(path)[-5:]]
    assert entropy < math.log(4096)
    assert sum(last) / len(last) < entropy - 0.3
