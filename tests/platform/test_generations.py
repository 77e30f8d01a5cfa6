"""A record grows with what happens to a run: generations told by their changes, and a plan that is not always due."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.decisions.readopt import Past
from shoal.record import generations, layout, pen, read
from shoal.record.generations import Membership, Newest, history, membership, told
from shoal.record.pen import Pen
from shoal.record.rundir import RunDir, journal_entry
from shoal_core.errors import UserError

CELLS, SIZE = 128, 128
"""16,384 workers."""


def crew(cell: int, size: int = SIZE) -> tuple[str, ...]:
    return tuple(
        f"a-run/cell{cell}/stage{rank // 16}/shard{rank % 16}@node{cell * 8 + rank // 16}" for rank in range(size)
    )


def counted(real: Callable[..., None], counts: list[int]) -> Callable[..., None]:
    """`RunDir.replace_plan`, and how many generations it was given each time."""

    def replace(run: RunDir, entries: list[dict[str, Any]]) -> None:
        real(run, entries)
        counts.append(len(entries))

    return replace


def test_a_cells_death_among_16384_workers_writes_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[int] = []
    monkeypatch.setattr(pen, "PAUSE", 0.0)
    monkeypatch.setattr(pen, "DUTY", 0)
    monkeypatch.setattr(RunDir, "replace_plan", counted(RunDir.replace_plan, plans))
    RunDir.create(tmp_path, "a", {}, resume=False).close()
    path = tmp_path / "a"
    one = Pen(RunDir(path))
    cells = {str(cell): crew(cell) for cell in range(CELLS)}
    without = {cell: members for cell, members in cells.items() if cell != "5"}
    healed = cells | {"5": (*crew(5)[:-8], *(f"a-run/spare{number}@node9999" for number in range(8)))}

    def tell(number: int, crews: dict[str, tuple[str, ...]], attempt: int) -> None:
        one.generation(number, number, crews, {cell: attempt if cell == "5" else 0 for cell in crews})
        with one._changed:  # a loop would hardly ever let the record's thread have its lock
            one._changed.wait_for(lambda: not one._waiting and not one._loose)

    tell(0, cells, 0)
    first = (path / layout.EVENTS).stat().st_size
    for number in range(1, 21, 2):  # ten deaths
        tell(number, without, number)
        tell(number + 1, healed, number)
    assert first > 500_000
    assert (path / layout.EVENTS).stat().st_size - first < 10 * 10_000
    assert one.close(60.0) == 0
    assert plans == [1, 1]  # at first and at the end

    found = read.plan(path)
    assert [entry["generation"] for entry in found] == list(range(21))
    for number, expected in ((0, cells), (19, without), (20, healed)):
        assert found[number]["assignment"] == {cell: list(members) for cell, members in expected.items()}
    assert json.loads((path / layout.PLAN).read_text()) == {"generations": found[-1:]}
    past = Past.read(read.events(path), 20, 0)
    assert past.cells == {int(cell): members for cell, members in healed.items()}
    assert past.attempts == {cell: 19 if cell == 5 else 0 for cell in range(CELLS)}


names = st.sampled_from(["w0", "w1", "w2", "w3", "w4"])
memberships = st.lists(
    st.dictionaries(st.sampled_from(["0", "1", "2"]), st.tuples(st.tuples(names, names), st.integers(0, 3))), max_size=6
)


@given(memberships, st.sampled_from([0, 3, 9]))
def test_what_is_told_is_what_is_read(wanted: Sequence[dict[str, tuple[tuple[str, str], int]]], whole: int) -> None:
    """However small the generations are that are told whole."""
    before: Membership | None = None
    lines, expected = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generations, "WHOLE", whole)
        for number, cells in enumerate(wanted):
            crews = {cell: members for cell, (members, _) in cells.items()}
            now = Membership(number, number, 1.0, crews, {cell: attempt for cell, (_, attempt) in cells.items()})
            line = journal_entry("generation", {"time": 1.0, **told(before, now)})
            assert line["live"] == len(crews)
            before = membership(before, line)
            expected.append(now)
            lines.append(json.loads(json.dumps(line)))
    found = history(lines)
    as_told = [json.loads(json.dumps([one.generation, one.step, one.cells, one.attempts])) for one in expected]
    assert [[one.generation, one.step, dict(one.cells), dict(one.attempts)] for one in found] == as_told


def test_a_change_without_what_it_changes_is_damage(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "a", {}, resume=False)
    change: dict[str, Any] = {"generation": 7, "since": 6, "changed": {}, "gone": [], "attempts": {}}
    run.append_event("generation", generation=5, cells={"0": ["w"]}, attempts={"0": 1})
    run.append_event("generation", **change)
    with pytest.raises(UserError, match="generation 7 is told by its changes against 6"):
        read.plan(run.path)


def test_the_plan_holds_what_there_is_room_for_and_at_least_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generations, "ROOM", 10)
    one = Newest([{"generation": number, "time": 0.0, "assignment": {"0": ["w"]}} for number in range(3)])

    def add(number: int, workers: int, changed: int) -> bool:
        return one.add(Membership(number, 0, 0.0, {"0": ["w"] * workers}), changed)

    assert add(3, 4, 1)
    assert [entry["generation"] for entry in one.entries] == [0, 1, 2, 3]
    assert add(4, 5, 1)
    assert [entry["generation"] for entry in one.entries] == [2, 3, 4]
    due = [add(number, 20, 7) for number in range(5, 11)]
    assert due == [False, False, True, False, False, True]
    assert [entry["generation"] for entry in one.entries] == [10]


def test_a_resumed_run_keeps_the_plan_of_before(tmp_path: Path) -> None:
    RunDir.create(tmp_path, "a", {}, resume=False).close()
    for _ in range(2):
        one = Pen(RunDir(tmp_path / "a"))
        one.generation(0, 0, {"0": ("w0", "w1")}, {"0": 0})
        one.generation(1, 3, {"0": ("w0", "w2")}, {"0": 1})
        assert one.close(60.0) == 0
    expected = [(0, {"0": ["w0", "w1"]}), (1, {"0": ["w0", "w2"]})] * 2
    assert [(entry["generation"], entry["assignment"]) for entry in read.plan(tmp_path / "a")] == expected
    file = json.loads((tmp_path / "a" / layout.PLAN).read_text())
    assert file == {"generations": read.plan(tmp_path / "a")}
