"""A profile is wished for, ordered, made, and told of."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from typer.testing import CliRunner

from shoal.cli.main import app
from shoal.cli.profile import parsed
from shoal.control.wishes import Wishes
from shoal.protocol import orders
from shoal.record import layout
from shoal.record.jsonl import dumps
from shoal.record.rundir import RunDir
from shoal.record.sentences import sentence
from shoal.record.wish import Wish, leave, take
from shoal.worker.profiler import ENTRIES, Profiler
from shoal_core.errors import UserError
from shoal_core.store import open_store
from tests.support.lab import lab

CREW = ["r/cell0/stage0/shard0@n0", "r/cell0/stage0/shard1@n0", "r/cell1/stage0/shard0@n1"]


class Told:
    """What a profiler tells, once it is there."""

    def __init__(self) -> None:
        self.notes: list[dict[str, Any]] = []
        self._there = threading.Event()

    def __call__(self, step: int, note: dict[str, Any]) -> None:
        self.notes.append({"step": step, **note})
        self._there.set()

    def wait(self) -> dict[str, Any]:
        assert self._there.wait(60.0)
        return self.notes[-1]


def run_steps(profiler: Profiler, steps: range, fails_in: int = -1) -> None:
    for step in steps:
        with profiler.around(step):
            torch.ones(4, 4) @ torch.ones(4, 4)
            if step == fails_in:
                raise RuntimeError("a peer is gone")


def test_steps_are_profiled_on_order_and_no_others(tmp_path: Path) -> None:
    told = Told()
    profiler = Profiler(CREW[0], tmp_path, str(tmp_path), told)
    run_steps(profiler, range(2))
    profiler.wanted = orders.Profile(3, 4)
    run_steps(profiler, range(2, 8))
    note = told.wait()
    assert note == {"step": 4, "kind": "profile", "steps": [3, 4], "path": note["path"], "problem": None}
    assert note["path"] == "profiles/cell0.stage0.shard0@n0-3..4.trace.json"
    names = [event.get("name") for event in json.loads((tmp_path / note["path"]).read_text())["traceEvents"]]
    assert [name for name in names if str(name).startswith("step ")] == ["step 3", "step 4"]
    assert names.count("aten::mm") == 2


def test_a_step_that_is_left_ends_the_profile_and_an_order_that_came_late_is_none(tmp_path: Path) -> None:
    told = Told()
    profiler = Profiler(CREW[0], tmp_path, str(tmp_path), told)
    profiler.wanted = orders.Profile(0, 9)
    with pytest.raises(RuntimeError, match="a peer is gone"):
        run_steps(profiler, range(10), fails_in=1)
    assert told.wait()["steps"] == [0, 1]
    profiler.wanted = orders.Profile(0, 1)
    run_steps(profiler, range(2, 4))
    assert len(told.notes) == 1


def test_what_a_gpus_memory_holds_is_recorded_for_the_steps_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch's own functions take it, which a CPU build has but cannot run."""
    memory, asked = torch.cuda.memory, mock.Mock()
    for name in ("_record_memory_history", "_dump_snapshot"):
        asked.attach_mock(mock.create_autospec(getattr(memory, name)), name)
        monkeypatch.setattr(memory, name, getattr(asked, name))
    told = Told()
    profiler = Profiler(CREW[0], tmp_path, str(tmp_path), told)
    profiler.wanted = orders.Profile(1, 2, memory=True)
    run_steps(profiler, range(4))
    note = told.wait()
    assert (note["steps"], note["problem"]) == ([1, 2], None)
    assert asked.mock_calls == [
        mock.call._record_memory_history(max_entries=ENTRIES),
        mock.call._dump_snapshot(str(tmp_path / note["path"])),
        mock.call._record_memory_history(enabled=None),
    ]


def test_a_wish_is_taken_once_and_handed_to_whom_it_names(tmp_path: Path) -> None:
    sent: list[tuple[list[str], orders.Order]] = []
    journal: list[dict[str, Any]] = []

    def send(workers: list[str], order: orders.Order) -> None:
        sent.append((workers, order))

    def event(kind: str, **fields: Any) -> None:
        journal.append({"kind": kind, **fields})

    wishes = Wishes(open_store(tmp_path), 1.0, lambda: CREW, send, event)
    leave(open_store(tmp_path), Wish(3, 5, ("cell1", "shard1")))
    for _ in range(2):
        asyncio.run(wishes.look())
    assert sent == [(CREW[1:], orders.Profile(3, 5))]
    assert (sentence(journal[0]) or "").startswith("Steps 3 to 5 of cell0/stage0/shard1")
    leave(open_store(tmp_path), Wish(3, 5, ("nobody",)))
    asyncio.run(wishes.look())
    assert sent[1][0] == []
    assert "not profiled: no worker that trains has nobody in its name" in (sentence(journal[1]) or "")
    assert Wish(0, 0).chosen(CREW) == CREW[:1]
    (tmp_path / ".profile").write_text("{}")
    assert take(open_store(tmp_path)) is None


@pytest.mark.parametrize(("steps", "found"), [("20..22", (20, 22)), ("7", (7, 7))])
def test_steps_are_written_as_first_and_last(steps: str, found: tuple[int, int]) -> None:
    assert parsed(steps) == found


@pytest.mark.parametrize("steps", ["", "22..20", "a..b", "0..100", "1...2", "-1"])
def test_other_steps_are_refused(steps: str) -> None:
    with pytest.raises(UserError, match="--steps"):
        parsed(steps)


@pytest.mark.parametrize(
    ("status", "options", "problem"),
    [
        ({"status": "done"}, [], "does not train now"),
        ({"written": 0.0}, [], "does not train now"),
        ({"step": 20}, [], "has begun step 20 already"),
        ({}, ["--memory"], "computes on CPUs"),
    ],
)
def test_what_cannot_be_profiled_is_refused(
    tmp_path: Path, status: dict[str, Any], options: list[str], problem: str
) -> None:
    workload = {"path": "shoal_workloads.synthetic:Synthetic", "seconds": 0.0, "global_batch": 4, "parameters": 8}
    run = RunDir.create(tmp_path, "r", {"workload": workload}, resume=False)
    run.write_status({"run_id": "r", "status": "running", "step": 3, "steps": 100, **status})
    run.close()
    said = CliRunner().invoke(app, ["profile", str(run.path), "--steps", "20..22", *options])
    assert isinstance(said.exception, UserError), dumps(said.output)
    assert problem in said.exception.problem
    assert take(open_store(run.path)) is None
    if not status:
        assert CliRunner().invoke(app, ["profile", str(run.path), "--steps", "20..22"]).exit_code == 0
        assert take(open_store(run.path)) == Wish(20, 22)
    assert layout.EVENT_FIELDS["profile"]


def test_a_run_is_profiled_while_it_trains(tmp_path: Path) -> None:
    with lab(tmp_path, {"n0": 2}, cells=2, workers_per_cell=1, steps=100_000, workload={"seconds": 0.005}) as one:
        one.full(1)
        last = 0
        while not one.events("profile"):  # the controller looks once a second, and may be late: once more
            first = one.committed() + 80
            last = first + 4
            leave(open_store(one.path), Wish(first, last, ("cell1",)))
            one.until(lambda last=last: one.events("profile") or one.committed() > last + 60)  # type: ignore[misc]
        (told,) = one.events("profile")
        assert (told["actor"], told["steps"][1], told["problem"]) == (one.members(1)[0], last, None)
        assert (one.path / told["path"]).stat().st_size > 0
