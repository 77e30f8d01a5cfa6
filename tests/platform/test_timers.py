"""The controller's clocks, with ports of paper: what they tell, and that none of them stops unseen."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from shoal.control.lifelines import Line
from shoal.control.timers import Bulletin, Survey, Watch, every, keep
from shoal.decisions.events import Asked, Event, Looked, Preemption, RecordFull, Surveyed
from shoal.plan import Node
from shoal.protocol.greeting import Greeting
from shoal.protocol.said import Phase
from shoal.record.pen import Stall
from tests.support.fleet import FakeFleet


def line(worker: str, heard: float, since: float) -> Line:
    one = Line(Greeting(worker, "n1", 1), SimpleNamespace())  # type: ignore[arg-type]
    one.phase, one.heard, one.since = Phase.INSIDE, heard, since
    return one


def scene(work: Any) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


# ---- clocks go on


def test_a_look_that_fails_is_told_and_the_next_is_taken_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, told = 0, []

    async def look() -> float:
        nonlocal looks
        looks += 1
        if looks % 2:
            raise RuntimeError(f"a bug in look {looks}")
        return 0.0

    async def work() -> None:
        clock = asyncio.create_task(every(look, lambda error: told.append(str(error)), in_a_row=2))
        while looks < 5:
            await asyncio.sleep(0.001)
        assert not clock.done()
        clock.cancel()

    monkeypatch.setattr("shoal.control.timers.AGAIN", 0.0)
    scene(work())
    assert told[:3] == ["a bug in look 1", "a bug in look 3", "a bug in look 5"]


def test_a_clock_that_cannot_go_on_ends_what_it_looks_after(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Exception] = []

    async def look() -> float:
        raise RuntimeError("a bug")

    async def well() -> float:
        return 0.0

    async def work() -> None:
        await keep([every(look, told.append, in_a_row=3), every(well, told.append)], asyncio.Event())

    monkeypatch.setattr("shoal.control.timers.AGAIN", 0.0)
    with pytest.raises(RuntimeError, match="a bug"):
        scene(work())
    assert len(told) == 2


def test_clocks_are_kept_until_it_is_over() -> None:
    over = asyncio.Event()

    async def look() -> float:
        over.set()
        return 0.0

    scene(keep([every(look, lambda error: None)], over))


# ---- what they tell


def test_a_look_tells_what_was_last_heard_of_everybody() -> None:
    told: list[Event] = []
    asked = Asked("w9", "n1", 3.0)
    gaps = [0.0, 0.5]
    watch = Watch(0.1, {"w0": line("w0", 99.0, 97.0)}, gaps.pop, lambda now: [asked], told.append)
    watch.look_at(100.0)
    watch.look_at(100.1)
    first, second = told
    assert isinstance(first, Looked)
    assert isinstance(second, Looked)
    (sign,) = first.signs
    assert sign == ("w0", Phase.INSIDE, -1, 99.0, 97.0, 1.0)
    assert (first.asked, first.late, first.gap, second.gap) == ((asked,), 0.0, 0.5, 0.0)


def test_time_by_which_a_look_comes_late_is_nobodys_silence() -> None:
    told: list[Event] = []
    watch = Watch(0.1, {"w0": line("w0", 99.0, 97.0)}, lambda: 0.0, lambda now: [], told.append)
    watch.due = 101.0
    watch.look_at(103.5)
    (look,) = told
    assert isinstance(look, Looked)
    assert (look.late, look.signs[0].silent, look.signs[0].since) == (2.5, 2.0, 99.5)


def test_a_survey_tells_of_nodes_that_go_and_are_gone_and_of_room() -> None:
    told: list[Event] = []
    journal: list[Any] = []
    fleet = FakeFleet([Node("n1", "r1", 2), Node("n2", "r2", 2)], {"r2": 7.0})
    survey = Survey(fleet, lambda: {"s0": "n1"}, told.append, lambda kind, **fields: journal.append((kind, fields)))
    survey.spoke("w0", "n2")
    scene(survey.look())
    preemption, surveyed = told
    assert preemption == Preemption("n2", 7.0)
    assert isinstance(surveyed, Surveyed)
    assert ([node.name for node in surveyed.nodes], surveyed.asked) == (["n1", "n2"], {"s0": "n1"})
    fleet.there.pop()
    scene(survey.look())
    assert journal == [("node_lost", {"node": "n2", "actors": ["w0"]})]


# ---- the record


def bulletin(stalls: list[Stall | None], *, full: bool = False) -> tuple[Bulletin, list[Event], list[Any]]:
    told: list[Event] = []
    journal: list[Any] = []
    port = lambda kind, **fields: journal.append({"kind": kind, **fields})  # noqa: E731
    return Bulletin(lambda stall: None, lambda: (stalls.pop(0), full), told.append, port), told, journal


def test_a_record_that_stalls_is_told_once_and_again_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    stall = Stall("No space left", 1.0, 5)
    one, told, journal = bulletin([None, stall, stall, Stall("No space left", 1.0, 9, over=True), None])
    for _ in range(5):
        one.look_now()
    printed = [line.getMessage() for line in caplog.records]
    assert len(printed) == 2
    assert "cannot be written (No space left)" in printed[0]
    assert "9 lines had waited" in printed[1]
    (event,) = journal
    assert (event["kind"], event["reason"], event["lines"]) == ("record_stalled", "No space left", 9)
    assert told == []


def test_that_more_than_may_waits_is_told() -> None:
    one, told, _ = bulletin([Stall("No space left", 1.0, 20_001)], full=True)
    one.look_now()
    assert told == [RecordFull("No space left", 20_001)]
