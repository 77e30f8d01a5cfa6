"""What a step should take is asked once for each shape, by a process that training never waits for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from shoal.config import Job
from shoal.control.forecast import END, Asked, Forecast
from shoal.control.foretell import Question, answer
from shoal.worker import memory
from shoal.worker.memory import Meter
from shoal_core.workload import Crew
from shoal_workloads.estimate.published import DEEPSEEK_V3
from shoal_workloads.footprint import footprint
from shoal_workloads.params import count_parameters
from shoal_workloads.pretrain import Pretrain

SECTION = {"path": "shoal_workloads.pretrain:Pretrain", **DEEPSEEK_V3}
CREW = Crew(1024, 256, 8, "NVIDIA H800", 80 * 10**9)


def device(shape: int = 0, mesh: Any = None) -> dict[str, Any]:
    crew = {"cells": 2, "workers": 1024, "device": "NVIDIA H800", "memory": 80 * 10**9}
    return {"kind": "device", "time": 1.0, "shape": shape, "mesh": mesh, "step": 0, **crew}


class Heard(NamedTuple):
    """A forecast, what it asked, and what it wrote."""

    one: Forecast
    asked: list[Question]
    told: list[dict[str, Any]]


class Instead:
    """An answer without a process."""

    asked: list[Question]

    def __init__(self, question: Question, shape: dict[str, Any]) -> None:
        self.asked.append(question)
        self.shape, self.answer = shape, {"step_seconds": 1.0}

    def wait(self, seconds: float) -> None:
        """It is there."""

    def end(self) -> None:
        raise AssertionError("what was answered needs no end")


@pytest.fixture
def forecast(monkeypatch: pytest.MonkeyPatch) -> Heard:
    told = list[dict[str, Any]]()
    Instead.asked = []
    monkeypatch.setattr("shoal.control.forecast.Asked", Instead)
    seated = {f"w{n}": SimpleNamespace(node=f"n{n // 8}") for n in range(2048)}
    state: Any = SimpleNamespace(workers=seated, seats=dict.fromkeys(seated))
    job = Job.model_validate({"steps": 1, "workload": SECTION})
    one = Forecast(job, lambda: state, lambda kind, **fields: told.append({"kind": kind, **fields}))
    return Heard(one, Instead.asked, told)


def test_each_shape_is_asked_for_once(forecast: Heard) -> None:
    one, asked, told = forecast
    for event in (device(), device(), {"kind": "death"}, device(1, {"pp": 8, "fsdp": 2, "ep": 64, "ep_node": 1})):
        one.event(event)
    one.close()
    one.event(device())
    assert [question.crew for question in asked] == [CREW, CREW]
    assert [question.mesh and question.mesh["pp"] for question in asked] == [None, 8]
    assert [(line["kind"], line["shape"], line["figures"]) for line in told] == [
        ("predicted", 0, {"step_seconds": 1.0}), ("predicted", 1, {"step_seconds": 1.0}),
    ]  # fmt: skip


def test_who_takes_over_asks_what_has_no_answer(
    forecast: Heard,
) -> None:
    one, asked, _ = forecast
    before = [{"kind": "run_started"}, device(1), {"kind": "run_started"}, device(), device(2)]
    one.again([*before, {"kind": "predicted", "shape": 0}])
    assert len(asked) == 1  # of this session shape 2 alone


class Slow:
    """Of a machine that has much to do: an answer that is not there, however long one waits by `clock`."""

    clock = 0.0
    ended = 0

    def __init__(self, question: Question, shape: dict[str, Any]) -> None:
        self.shape, self.answer = shape, None

    def wait(self, seconds: float) -> None:
        Slow.clock += seconds

    def end(self) -> None:
        Slow.ended += 1


def test_the_end_of_a_run_waits_once_for_all_and_says_what_has_no_answer(
    forecast: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _, told = forecast
    monkeypatch.setattr("shoal.control.forecast.Asked", Slow)
    monkeypatch.setattr("shoal.control.forecast.time", SimpleNamespace(monotonic=lambda: Slow.clock))
    for shape in range(3):
        one.event(device(shape))
    one.close()
    assert (Slow.clock, Slow.ended) == (END, 3)
    assert [line["shape"] for line in told] == [0, 1, 2]
    assert all("not reckoned" in line["figures"]["why"][0] for line in told)


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ([1.0], "its figures"),
        ({"step_seconds": "long"}, "step_seconds"),
        ({"step_seconds": float("nan")}, "step_seconds"),
        ({"learned": {"step": 1.0}}, "learned.memory"),
        ({"memory_over_step": {"times": [0.0, 1.0], "parts": {"weights": [5]}}}, "memory_over_step"),
        ({"why": "no idea"}, "why"),
    ],
)
def test_figures_that_readers_of_the_record_could_not_read_never_reach_it(
    monkeypatch: pytest.MonkeyPatch, said: Any, problem: str
) -> None:
    """One such line, and run.json would be refused as damaged."""
    workload = SimpleNamespace(predicted=lambda step, cells, crew: said)
    monkeypatch.setattr("shoal.control.foretell.make_workload", lambda section: workload)
    found = answer(Question({}, 0, 1, None, CREW))
    assert list(found) == ["why"]
    assert f"docs/record.md: {problem}: " in found["why"][0]


def test_the_answer_is_the_estimate_of_the_very_job() -> None:
    """DeepSeek-V3's own layout: memory as preflight reckons it, and a step that its parts and its tokens make up."""
    section = {**DEEPSEEK_V3, "batch": {"global_batch": 4096}}
    found = answer(Question({**SECTION, **section}, 0, 2, None, CREW))
    config = Pretrain.Config.model_validate(section)
    assert found["memory_peak_bytes"] == footprint(config, 1024).total == sum(found["memory_parts"].values())
    over = found["memory_over_step"]
    assert max(map(sum, zip(*over["parts"].values(), strict=True))) == found["memory_peak_bytes"]
    assert found["tokens_per_second"] * found["step_seconds"] == pytest.approx(4096 * 4096)
    assert sum(found["step_parts"].values()) == pytest.approx(found["step_seconds"])
    assert len(found["pipeline"]) == 16
    assert found["hardware"] == "H800"


def test_a_device_that_no_table_knows_has_its_memory_reckoned_and_the_remedy_said() -> None:
    section = {**SECTION, "device": "cpu", "precision": "fp32", "model": {"preset": "laptop-1m"}, "parallel": {}}
    found = answer(Question(section, 0, 2, None, Crew(1, 1, 2, "Abacus 9", 10**9)))
    assert "shoal plan --calibrate" in found["why"][0]
    assert "step_seconds" not in found
    parts = found["memory_parts"]
    assert not {"context", "communicators"} & set(parts)  # of GPUs
    own = {name: value for name, value in section.items() if name != "path"}
    count = count_parameters(Pretrain.Config.model_validate(own).model)
    assert parts["master parameters"] == 4 * (count.total + count.mtp)


SAYING = """
from pydantic import BaseModel
from shoal_core.workload import Workload

class One(Workload):
    class Config(BaseModel):
        pass
    preflight = samples = micro_batch = build = None

    def predicted(self, step, cells, crew):
        print("what is printed is no answer")
        return {"samples": step, "slots": crew.slots}

for name in ("preflight", "samples", "micro_batch", "build"):
    setattr(One, name, lambda self: None)
"""
"""A workload of somebody's, in a folder that is on this process's path alone."""


def test_another_process_answers_and_what_goes_wrong_is_the_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "cannot be loaded" in answer(Question({"path": "no.such:One"}, 0, 1, None, CREW))["why"][0]
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "saying.py").write_text(SAYING)
    one = Asked(Question({"path": "saying:One"}, 3, 2, None, CREW), {})
    one.wait(60.0)
    assert one.answer == {"samples": 3, "slots": 8}
    (tmp_path / "ending.py").write_text("import os\nos._exit(5)\n")
    one = Asked(Question({"path": "ending:One"}, 0, 1, None, CREW), {})
    one.wait(60.0)
    assert one.answer == {"why": ["the process that reckons it ended without an answer (exit code 5)"]}


# ---- what was taken


def test_the_peak_of_this_process_is_that_of_what_it_held() -> None:
    meter, size = Meter("cpu"), 256 * 2**20
    meter.begin()
    held = torch.ones(size // 4)
    held = torch.ones(1)
    for _ in range(memory.SOON - 1):
        meter.stepped()
        assert meter.news(last=False) is None
    meter.stepped()
    peak = meter.news(last=False)
    assert peak is not None
    assert 0.9 * size < peak < 1.5 * size  # a long-lived process gives back some of what it held before
    assert meter.news(last=True) is None  # no more since
    meter.begin()
    held = torch.ones(size // 16)
    assert (meter.news(last=True) or 0) > 0.9 * held.nbytes
    assert [meter.first_in(shape) for shape in (0, 0, 1)] == [True, False, True]


def test_of_a_gpu_it_is_all_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the allocator reserved at most, which is forgotten each step, and what lies outside of it: the context."""
    peaks, reserved, free, whole = iter([5, 9, 7]), 6, 100 - 6 - 3, 100
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: next(peaks))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: reserved)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, whole))
    meter = Meter("cuda")
    meter.begin()
    for _ in range(3):
        meter.stepped()
    assert meter.news(last=True) == 9 + 3
    assert (meter.measured, meter.of_all) == ("device", 100)
