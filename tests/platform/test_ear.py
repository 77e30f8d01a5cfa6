"""What workers say and how they go becomes events, and events are decided upon one after the other, whatever fails."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from shoal.control.desk import Desk, Ear
from shoal.control.lifelines import Line
from shoal.control.mishaps import Mishaps
from shoal.control.spawn import Spawner, Started
from shoal.decisions.actions import Action, Death, End, Fence, Journal, PutOnRecord
from shoal.decisions.bounds import ERRED
from shoal.decisions.events import Ending, Erred, Event, Joined, Lost, Recorded, RecordFull, Unborn
from shoal.decisions.state import State
from shoal.protocol.greeting import Greeting
from shoal.protocol.rendezvous import Want
from shoal.protocol.said import Beat, CannotStart, Committed, Moved, Noted, Phase
from tests.support.decisions import Run, one
from tests.support.fleet import FakeFleet


def line(worker: str, phase: Phase = Phase.SPARE) -> Line:
    return Line(Greeting(worker, "n1", 7, phase=phase), SimpleNamespace(abort=lambda: None))  # type: ignore[arg-type]


class Heard:
    """An ear, and what it tells."""

    def __init__(self, fleet: FakeFleet | None = None, **started: Started) -> None:
        self.events: list[Event] = []
        self.asked: list[Any] = []
        self.failures: list[Exception] = []
        fleet = fleet or FakeFleet()
        self.killed = fleet.killed
        mesh = Run().state.shape.mesh
        self.spawner = Spawner(fleet, lambda *_: None, lambda *_: None, "run", mesh)  # type: ignore[arg-type]
        self.spawner.started.update(started)
        asks = lambda line, question: self.asked.append(question)  # noqa: E731
        self.moved: list[Line] = []
        told = (self.failures.append, self.moved.append)
        self.ear = Ear(self.spawner, self.events.append, lambda *_: None, asks, *told)


def cold() -> Started:
    return Started("n1", 0.0)


def warm() -> Started:
    return Started("n1", 0.0, heard=True)


# ---- how workers come and go


def test_a_worker_that_was_asked_for_joins_and_a_stranger_does_not() -> None:
    heard = Heard(w0=cold())
    heard.ear.joined(line("w0"))
    heard.ear.joined(line("never asked for"))
    assert heard.events == [Joined("w0", "n1", None, 7)]
    assert heard.spawner.started["w0"].heard


def test_a_line_that_closes_is_a_death_even_if_the_order_to_kill_cannot_be_given(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class WithoutDescriptors(FakeFleet):
        def kill(self, name: str) -> None:
            raise OSError(24, "Too many open files")

    heard = Heard(WithoutDescriptors(), w0=warm())
    heard.ear.gone(line("w0"), "connection closed")
    (lost,) = heard.events
    assert isinstance(lost, Lost)
    assert (lost.worker, lost.how, lost.node, lost.pid) == ("w0", "connection closed", "n1", 7)
    assert "w0 could not be told to end: OSError: [Errno 24] Too many open files" in caplog.text


def test_a_worker_whose_only_word_is_why_it_cannot_start() -> None:
    heard, its = Heard(s0=cold()), line("s0", Phase.UNBORN)
    heard.ear.joined(its)
    heard.ear.said(its, CannotStart("s0", "RuntimeError: no", "Traceback ..."))
    assert heard.events == [Unborn("s0", "n1", "RuntimeError: no", "Traceback ...")]
    heard.spawner.kill("s0")  # as it is decided
    heard.ear.gone(its, "connection closed")
    heard.ear.unborn("s0", "its process ended")
    assert len(heard.events) == 1


def test_a_worker_that_obeys_another_controller_is_not_dead() -> None:
    heard, its = Heard(w0=warm()), line("w0")
    heard.ear.said(its, Moved())
    assert heard.moved == [its]
    assert heard.events == []
    assert heard.killed == []


def test_how_far_a_worker_was_heard_is_known_by_its_numbers() -> None:
    heard, its = Heard(w0=warm()), line("w0")
    heard.ear.said(its, Committed("w0", 0, 1, number=4))
    heard.ear.said(its, Beat(Phase.INSIDE, 1))
    assert its.told == 4


def test_a_process_that_ends_before_it_is_warm_is_told_and_one_that_was_warm_is_not() -> None:
    heard = Heard(s0=cold(), s1=warm())
    for worker in ("s0", "s1", "never asked for"):
        heard.ear.unborn(worker, "its process ended")
    assert heard.events == [Unborn("s0", "n1", "its process ended")]


def test_questions_about_memberships_are_no_events() -> None:
    heard = Heard(w0=warm())
    heard.ear.said(line("w0"), Want("cell/0/1", 1, ("a",)))
    heard.ear.said(line("w0"), Committed("w0", 0, 1))
    assert len(heard.asked) == 1
    assert heard.events == [Committed("w0", 0, 1)]


def test_while_a_run_is_taken_over_what_workers_say_waits() -> None:
    heard = Heard(w0=warm())
    heard.ear.early = []
    heard.ear.said(line("w0"), Committed("w0", 0, 1))
    heard.ear.gone(line("w0"), "connection closed")
    assert heard.events == []
    assert [word for _, word in heard.ear.early] == [Committed("w0", 0, 1)]
    assert heard.killed == ["w0"]


# ---- what is decided about words


def test_what_the_journal_holds_of_a_worker_is_not_written_again() -> None:
    run = Run()
    run.start()
    run.state.told = {"w00": 4}
    words = (("w00", 3), ("w00", 4), ("w00", 5), ("w01", 0))
    fresh = run.feed(*(Noted(worker, 0, number, "remark", number=number) for worker, number in words))
    told = [action for action in fresh if isinstance(action, Journal)]
    assert [(line.kind, line.fields["step"], line.fields["cell"]) for line in told] == [
        ("remark", 5, 0),
        ("remark", 0, 0),
    ]
    assert [(line.fields["actor"], line.fields["seq"]) for line in told] == [("w00", 5), ("w01", 0)]


def test_a_death_is_told_with_the_seat_it_had() -> None:
    run = Run()
    run.start()
    death = one(run.feed(Lost("w10", "connection closed", "n2", 7, 3.0)), Death)
    assert death.seat is not None
    assert (death.seat.cell, death.seat.rank, death.live) == (1, 0, True)
    assert "w10" not in run.state.workers


def test_own_failures_in_a_row_end_the_run_in_order() -> None:
    run = Run()
    run.start()
    run.feed(*(Erred("KeyError: 'x'") for _ in range(ERRED)))
    run.feed(Recorded(1))
    run.feed(*(Erred("KeyError: 'x'") for _ in range(ERRED)))
    assert run.state.halt is None
    run.feed(Erred("KeyError: 'x'"))
    assert run.state.halt is not None
    assert run.state.halt.by_controller
    assert run.state.halt.reason.endswith("over 21 words of workers in a row, the last time KeyError: 'x'")


def test_a_record_for_which_there_is_no_room_ends_the_run_in_order() -> None:
    run = Run()
    run.start()
    run.feed(RecordFull("No space left", 20_001))
    assert run.state.halt is not None
    assert run.state.halt.by_controller
    assert run.state.halt.reason == "the record could not be written (No space left) and 20001 lines wait for it"


def test_an_end_at_once_waits_for_nothing() -> None:
    run = Run()
    run.start()
    assert run.feed(Ending("stopped by a signal", "stopped", at_once=True)) == [End("stopped", "stopped by a signal")]


# ---- one after the other


def test_what_an_action_leads_to_is_taken_in_when_all_are_done() -> None:
    log: list[str] = []
    answers: dict[str, list[Action]] = {"a": [Fence("w0", ""), Fence("w1", "")], "b": [Fence("w2", "")]}

    def act(action: Action) -> None:
        assert isinstance(action, Fence)
        log.append(action.worker)
        if action.worker == "w0":
            desk.take(Erred("b"))

    desk = Desk(Run().state, act, lambda error: None, lambda _, event: answers[event.why])  # type: ignore[union-attr]
    desk.take(Erred("a"))
    assert log == ["w0", "w1", "w2"]


def test_an_action_that_fails_is_told_and_keeps_no_other_from_being_done() -> None:
    done, failures = [], []

    def act(action: Action) -> None:
        assert isinstance(action, Fence)
        if action.worker == "w0":
            raise KeyError("w0")
        done.append(action.worker)

    desk = Desk(Run().state, act, failures.append, lambda *_: [Fence("w0", ""), Fence("w1", "")])
    desk.take(Recorded(1))
    assert done == ["w1"]
    assert [str(error) for error in failures] == ["'w0'"]


def test_decisions_and_records_that_fail_are_counted() -> None:
    events: list[Event] = []

    def decide(_: State, event: Event) -> list[Action]:
        events.append(event)
        if event == Recorded(1):
            raise ValueError("a bug")
        return [PutOnRecord(Committed("w0", 0, 1), (0,))] if event == Recorded(2) else []

    def act(action: Action) -> None:
        raise OSError("no disk")

    desk = Desk(Run().state, act, lambda error: None, decide)
    desk.take(Recorded(1))
    desk.take(Recorded(2))
    assert events == [Recorded(1), Erred("ValueError: a bug"), Recorded(2), Erred("OSError: no disk")]


def test_nothing_is_taken_in_once_the_run_has_ended() -> None:
    done: list[Action] = []
    desk = Desk(Run().state, done.append, lambda error: None)
    desk.take(Ending("enough", at_once=True))
    desk.take(Ending("again", at_once=True))
    assert done == [End("failed", "enough")]
    desk = Desk(Run().state, done.append, lambda error: None)
    desk.close()
    desk.take(Ending("too late", at_once=True))
    assert len(done) == 1


def test_a_failure_is_told_ever_more_rarely() -> None:
    def fail(error: Exception) -> Exception:
        try:
            raise error
        except Exception as caught:
            return caught

    mishaps = Mishaps(lambda trace: None)
    told = [bool(mishaps.note(fail(ValueError(str(number))))) for number in range(10)]
    assert [number for number, one in enumerate(told, start=1) if one] == [1, 2, 4, 8]
    assert "TypeError: other" in mishaps.note(fail(TypeError("other")))
    secret = mishaps.note(fail(KeyError("token=sk-verysecret")))
    assert "KeyError" in secret
    assert "verysecret" not in secret


def test_a_failure_of_its_own_goes_into_the_journal(caplog: pytest.LogCaptureFixture) -> None:
    journal: list[str] = []
    Mishaps(journal.append).tell(replace_fails())
    assert "TypeError" in journal[0]
    assert "a failure of its own" in caplog.text


def replace_fails() -> Exception:
    try:
        replace(Lost("w0", "closed"), nothing=1)  # type: ignore[call-arg]
    except TypeError as error:
        return error
    raise AssertionError
