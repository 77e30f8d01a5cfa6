"""What the controller looks after by the clock, with a controller of paper: nothing here waits."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from shoal.control.chores import Chores
from shoal.control.ear import Ear
from shoal.control.events import Ending, Event, Lost, Standstill, Unborn
from shoal.control.lifelines import Line
from shoal.control.mishaps import ROW, Mishaps
from shoal.control.modes import Draining, Pausing
from shoal.control.spawn import Spawner, Started
from shoal.control.watchdog import LEARNED, Watchdog
from shoal.plan import Node
from shoal.protocol.greeting import Greeting
from shoal.protocol.said import CannotStart, Failed, Noted, Phase
from shoal.record.pen import Stall
from shoal.timeouts import Timeouts
from shoal.worker.setup import Meeting
from tests.support.decisions import Run

TIMES = Timeouts(20.0)


class Paper:
    """Stands in for a controller: keeps what it is told."""

    def __init__(self, run: Run | None = None) -> None:
        self.state = (run or Run()).state
        self.heard: list[Event] = []
        self.journal: list[dict[str, Any]] = []
        self.failures: list[Exception] = []
        self.killed: list[str] = []
        self.timeouts, self.watchdog, self.mishaps = TIMES, Watchdog(TIMES), Mishaps()
        self.meeting = Meeting(("127.0.0.1", 1), "secret", "session")
        self.lifelines: Any = SimpleNamespace(lines={}, send=lambda *_: None)
        self.spawner: Any = SimpleNamespace(started={}, kill=self.kill, late=lambda *_: [])
        self.scribe: Any = SimpleNamespace(event=self.event, pen=self, status=lambda *_: None)
        self.mesh, self.recoveries = self.state.shape.mesh, SimpleNamespace(died=lambda *_: None)
        self.ended = asyncio.Event()
        self.stopped = 0.0
        self.stalls: list[Stall | None] = []
        self.full = False
        self.chores = Chores(self)  # type: ignore[arg-type]
        self.chores.moved = 0.0
        self.ear = Ear(self)  # type: ignore[arg-type]

    def on(self, event: Event) -> None:
        self.heard.append(event)

    def event(self, kind: str, **fields: Any) -> None:
        self.journal.append({"kind": kind, **fields})

    def mishap(self, error: Exception) -> None:
        self.failures.append(error)

    def kill(self, name: str) -> None:
        self.killed.append(name)
        self.spawner.started.pop(name, None)

    def stall(self) -> Stall | None:
        return self.stalls.pop(0)

    def stand(self, now: float) -> None:
        """Everybody has just been heard."""
        for line in self.lifelines.lines.values():
            line.heard = now
        self.chores.stand(now)

    def connect(self, phase: str, since: float, *workers: str) -> None:
        for worker in workers or self.state.crew():
            line = Line(Greeting(worker, "n1", 1), SimpleNamespace(abort=lambda: None))  # type: ignore[arg-type]
            line.phase, line.since, line.heard = Phase(phase), since, since
            self.lifelines.lines[worker] = line
            self.spawner.started[worker] = SimpleNamespace(node="n1", heard=True)


def training() -> Paper:
    run = Run()
    run.start()
    return Paper(run)


# ---- standing still


def test_workers_that_all_wait_for_each_other_are_noticed_once() -> None:
    one = training()
    one.connect("across", 100.0)
    one.stand(119.0)
    assert one.heard == []
    one.stand(121.0)
    one.stand(122.0)
    (event,) = one.heard
    assert isinstance(event, Standstill)
    assert event.reason == "step 0 was not committed: all workers were across for 21 s"


@pytest.mark.parametrize("phase", ["inside", "evaluating", "saving", "finished"])
def test_who_works_is_left_alone_for_long(phase: str) -> None:
    one = training()
    one.connect("across", 100.0)
    one.connect(phase, 100.0, "w00")
    one.stand(500.0)
    assert one.heard == []
    one.stand(10_000.0)
    assert [type(event) for event in one.heard] == [Standstill]


def test_one_that_moves_is_enough() -> None:
    one = training()
    one.connect("across", 100.0)
    one.connect("across", 199.0, "w11")
    one.stand(200.0)
    assert one.heard == []


def test_who_owes_an_answer_is_another_matter_but_not_during_a_pause() -> None:
    run = Run()
    run.start()
    run.feed(Lost("w10", "closed"))
    one = Paper(run)
    one.connect("across", 100.0)
    one.stand(10_000.0)
    assert one.heard == []
    one.state.mode = Pausing(one.state.live, set(), frozenset(), set())
    one.stand(10_000.0)
    assert [type(event) for event in one.heard] == [Standstill]


def test_a_cell_that_is_never_formed_is_noticed() -> None:
    one = Paper()
    one.stand(10_000.0)  # nobody is there yet: that is no standstill
    assert one.heard == []
    run = Run()
    run.start()
    run.spares()
    run.feed(Lost("w10", "closed"), Lost("w11", "closed"))
    run.ack("w00", 3)
    run.ack("w01", 3)
    one = Paper(run)  # one cell trains, the other is formed
    one.connect("inside", 9_999.0)
    one.connect("forming", 100.0, "s0", "s1")
    one.stand(10_000.0)
    (event,) = one.heard
    assert isinstance(event, Failed)
    assert (event.where, event.worker, event.attempt) == ("form", "s0", one.state.cells[1].attempt)


# ---- who is not heard


def unheard(phase: str) -> Paper:
    """The lifelines were cut for ten seconds; of all but w11 words have just arrived, as from their last step."""
    one = training()
    one.connect(phase, 100.0)
    one.connect("across", 110.0, "w00", "w01", "w10")
    for _ in range(LEARNED):
        one.watchdog.step(0.1)
    one.watchdog.gap(10.0)
    return one


def test_who_was_not_heard_is_not_taken_for_stuck_before_it_is() -> None:
    one = unheard("inside")
    one.chores.fence(110.0)
    assert one.heard == []
    one.lifelines.lines["w11"].heard = 110.0  # it computes still
    one.chores.fence(110.0)
    assert one.heard == [Lost("w11", "computed on one step for 10.0 s while others waited")]


def test_who_was_not_heard_has_not_refused_to_answer_a_stop_before_it_is() -> None:
    one = unheard("across")
    one.stopped = 101.0
    one.state.mode = Draining(one.state.live, awaited={"w11"})
    one.chores.fence(110.0)
    assert one.heard == []
    one.lifelines.lines["w11"].heard = 110.0
    one.chores.fence(110.0)
    assert one.heard == [Lost("w11", "did not answer a stop within 9.0 s")]


def test_who_is_not_heard_may_have_gone_on() -> None:
    one = training()
    one.connect("across", 100.0)
    one.stand(119.0)
    one.chores.stand(122.0)
    assert one.heard == []


# ---- timers


def test_a_timer_that_fails_is_told_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    one = training()
    one.timeouts = Timeouts(0.02)
    looks = 0

    def watch(now: float) -> None:
        nonlocal looks
        looks += 1
        raise RuntimeError("a bug")

    monkeypatch.setattr(one.chores, "watch", watch)

    async def scene() -> None:
        timer = asyncio.create_task(one.chores.quickly())
        while looks < 3:
            await asyncio.sleep(0.001)
        assert not timer.done()
        timer.cancel()

    asyncio.run(asyncio.wait_for(scene(), 60))
    assert [str(error) for error in one.failures[:3]] == ["a bug"] * 3


def test_one_worker_that_cannot_be_judged_keeps_no_other_from_being(monkeypatch: pytest.MonkeyPatch) -> None:
    one = training()
    one.connect("inside", 0.0)
    cut: list[str] = []

    def fence(line: Line, why: str) -> None:
        if line.worker == "w00":
            raise KeyError(line.worker)
        cut.append(line.worker)

    monkeypatch.setattr(one.chores, "cut", fence)
    one.chores.fence(1000.0)
    assert cut == ["w01", "w10", "w11"]
    assert len(one.failures) == 1


# ---- the record


def test_a_record_that_stalls_is_told_once_and_again_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    one = training()
    stall = Stall("No space left", 1.0, 5)
    one.stalls = [None, stall, stall, Stall("No space left", 1.0, 9, over=True), None]
    for _ in range(5):
        one.chores.record()
    printed = [line.getMessage() for line in caplog.records]
    assert len(printed) == 2
    assert "cannot be written (No space left)" in printed[0]
    assert "9 lines had waited" in printed[1]
    (event,) = one.journal
    assert (event["kind"], event["reason"], event["lines"]) == ("record_stalled", "No space left", 9)
    assert one.heard == []


def test_more_than_may_wait_ends_the_run_in_order() -> None:
    one = training()
    one.full = True
    one.stalls = [Stall("No space left", 1.0, 20_001)]
    one.chores.record()
    assert one.heard == [Ending("the record could not be written (No space left) and 20001 lines wait for it")]


# ---- own failures


def test_a_death_reaches_the_decisions_whatever_the_journal_does() -> None:
    one = training()
    one.connect("inside", 1.0)
    one.scribe.event = lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left"))
    with pytest.raises(OSError, match="No space"):
        one.ear.gone(one.lifelines.lines["w10"], "connection closed")
    assert one.heard == [Lost("w10", "connection closed")]
    assert one.killed == ["w10"]


def without_descriptors(_: str) -> None:
    raise OSError(24, "Too many open files")


def spawner(fleet: Any, **started: Started) -> Spawner:
    one = Spawner(fleet, lambda *_: None, lambda *_: None, "run", Run().state.shape.mesh)  # type: ignore[arg-type]
    one.started.update(started)
    return one


def test_an_order_to_kill_that_cannot_be_given_is_told_and_the_death_is_on_record(
    caplog: pytest.LogCaptureFixture,
) -> None:
    one = training()
    one.spawner = spawner(SimpleNamespace(kill=without_descriptors), w10=Started("n1", 0.0, heard=True))
    one.connect("inside", 1.0)
    one.ear.gone(one.lifelines.lines["w10"], "connection closed")
    assert one.heard == [Lost("w10", "connection closed")]
    assert [event["kind"] for event in one.journal] == ["death"]
    assert "w10 could not be told to end: OSError: [Errno 24] Too many open files" in caplog.text


def test_own_failures_in_a_row_end_the_run_in_order() -> None:
    one = training()
    for _ in range(ROW):
        one.ear.failed(KeyError("x"))
    assert one.heard == []
    one.ear.failed(KeyError("x"))
    (ending,) = one.heard
    assert isinstance(ending, Ending)
    assert "KeyError: 'x'" in ending.reason


def test_a_failure_is_told_ever_more_rarely() -> None:
    def fail(error: Exception) -> Exception:
        try:
            raise error
        except Exception as caught:
            return caught

    mishaps = Mishaps()
    told = [bool(mishaps.note(fail(ValueError(str(number))))) for number in range(10)]
    assert [number for number, one in enumerate(told, start=1) if one] == [1, 2, 4, 8]
    assert "TypeError: other" in mishaps.note(fail(TypeError("other")))


# ---- before the first word


def test_who_never_speaks_cannot_start_where_it_is_and_who_was_on_a_node_that_is_gone_is_lost() -> None:
    one = training()
    since = time.monotonic()
    slow, gone, fine = Started("n1", since - TIMES.start - 1), Started("n9", since), Started("n1", since)
    one.spawner = spawner(SimpleNamespace(kill=one.killed.append), slow=slow, gone=gone, fine=fine)
    one.chores.known = {"n1": Node("n1", "n1", 2)}
    one.chores.fence(since)
    late = "it did not start within 120 s"
    assert one.heard == [Unborn("slow", "n1", late), Lost("gone", "n9 is gone")]
    assert [(event["kind"], event["how"]) for event in one.journal] == [
        ("not_started", late),
        ("not_started", "n9 is gone"),
    ]
    assert one.killed == ["slow", "gone"]
    assert set(one.spawner.started) == {"fine"}


def test_a_worker_whose_only_word_is_why_it_cannot_start() -> None:
    one = training()
    one.connect("spare", 1.0, "s0")
    one.spawner.started["s0"].heard = False
    line = one.lifelines.lines["s0"]
    line.greeting = replace(line.greeting, phase=Phase.UNBORN)
    one.ear.joined(line)
    one.ear.said(line, CannotStart("s0", "RuntimeError: no", "Traceback ..."))
    one.ear.gone(line, "connection closed")
    one.ear.unborn("s0", "its process ended")
    assert one.heard == [Unborn("s0", "n1", "RuntimeError: no")]
    (event,) = one.journal
    assert (event["kind"], event["actor"], event["trace"]) == ("not_started", "s0", "Traceback ...")


def test_a_process_that_ends_before_it_is_warm_is_told_once_and_one_that_was_warm_is_not() -> None:
    one = training()
    one.connect("spare", 1.0, "s0", "s1")
    one.spawner.started["s0"].heard = False
    for worker in ("s0", "s0", "s1", "never asked for"):
        one.ear.unborn(worker, "its process ended")
    assert one.heard == [Unborn("s0", "n1", "its process ended")]


def test_what_the_journal_holds_of_a_worker_is_not_written_again() -> None:
    one = training()
    one.connect("inside", 1.0)
    one.ear.told = {"w00": 4}
    for worker, number in (("w00", 3), ("w00", 4), ("w00", 5), ("w01", 0)):
        one.ear.said(one.lifelines.lines[worker], Noted(worker, 0, number, "remark", number=number))
    assert [(event["actor"], event["seq"]) for event in one.journal] == [("w00", 5), ("w01", 0)]
    assert [(event["kind"], event["step"], event["cell"]) for event in one.journal] == [
        ("remark", 5, 0),
        ("remark", 0, 0),
    ]
