"""What is decided at a look at the clock: who is fenced, who is given up, what stands still. No clock runs."""

from __future__ import annotations

import pytest

from shoal.decisions.actions import Action, Fence, Form, Journal, Release, Stop
from shoal.decisions.events import Asked, Looked, Lost, Sign
from shoal.decisions.modes import Stopping
from shoal.decisions.watchdog import LEARNED
from shoal.protocol.said import Committed
from tests.support.decisions import Run, one

EVERYBODY = ("w00", "w01", "w10", "w11")


def training(seconds: float | None = None) -> Run:
    """A run that trains and was looked at at 100 s. `seconds`: of its steps, if some were taken."""
    run = Run()
    run.start()
    run.now = 100.0
    run.look(100.0)
    for step in range(LEARNED if seconds else 0):
        run.feed(Committed("w00", 0, step + 1, seconds or 0.0))
    return run


def at(run: Run, now: float, phase: str, since: float, *others: Sign) -> list[Action]:
    """A look at workers that have just been heard, all in one phase but `others`."""
    run.now = now
    named = {sign.worker for sign in others}
    return run.look(
        now, *(run.sign(w, phase, since) for w in EVERYBODY if w in run.state.workers and w not in named), *others
    )


def fenced(actions: list[Action]) -> dict[str, str]:
    return {action.worker: action.how for action in actions if isinstance(action, Fence)}


# ---- standing still


def test_workers_that_all_wait_for_each_other_are_noticed_once() -> None:
    run = training()
    assert at(run, 119.0, "across", 100.0) == []
    journal, stop = at(run, 121.0, "across", 100.0)
    assert isinstance(journal, Journal)
    assert journal.fields["reason"] == "step 0 was not committed: all workers were across for 21 s"
    assert isinstance(stop, Stop)
    assert at(run, 122.0, "across", 100.0) == []


@pytest.mark.parametrize("phase", ["inside", "evaluating", "saving", "finished"])
def test_who_works_is_left_alone_for_long(phase: str) -> None:
    run = training()
    for now, stops in ((500.0, 0), (10_000.0, 1)):
        run.now = now
        one_works = run.sign("w00", phase, 100.0)._replace(steps=-1)  # not one that others wait for
        fresh = at(run, now, "across", 100.0, one_works)
        assert [isinstance(action, Stop) for action in fresh].count(True) == stops


def test_one_that_moves_is_enough() -> None:
    run = training()
    run.now = 200.0
    assert at(run, 200.0, "across", 100.0, run.sign("w11", "across", 199.0)) == []


def test_a_standstill_is_none_where_an_answer_is_owed_and_one_in_a_pause() -> None:
    run = training()
    run.feed(Lost("w10", "closed"))
    run.look(100.0)
    assert not any(isinstance(action, Stop) for action in at(run, 119.0, "stopped", 100.0))
    assert set(fenced(at(run, 10_000.0, "stopped", 100.0))) == {"w00", "w01", "w11"}  # each for itself
    run = training()
    run.spares()
    run.feed(Lost("w10", "closed"), Lost("w11", "closed"))
    run.ack("w00", 0)
    run.ack("w01", 0)
    run.stand_up_to_pause()
    run.look(10_001.0)
    one(at(run, 30_000.0, "across", 100.0), Stop)


def test_a_cell_that_is_never_formed_while_another_trains_is_formed_again() -> None:
    assert Run().look(10_000.0) == []  # nobody is there yet: that is no standstill
    run = training()
    run.spares()
    run.feed(Lost("w10", "closed"), Lost("w11", "closed"))
    run.ack("w00", 3)
    run.ack("w01", 3)
    run.look(200.0)
    run.now = 10_000.0
    signs = [run.sign(w, "inside", 9_999.0) for w in ("w00", "w01")]
    signs += [run.sign(w, "forming", 100.0) for w in ("s0", "s1")]
    before = run.state.cells[1].attempt
    fresh = run.look(10_000.0, *signs)
    assert one(fresh, Journal).fields["actor"] == "s0"
    assert one(fresh, Form).attempt == before + 1


# ---- who is fenced


def test_who_is_silent_is_fenced() -> None:
    run = training(0.1)
    run.now = 110.0
    fresh = at(run, 110.0, "across", 109.9, run.sign("w11", "inside", 109.0, heard=109.0))
    assert fenced(fresh) == {"w11": "silent for 1.0 s"}
    assert "w11" in run.state.workers  # until it is lost


def test_silence_counts_less_after_a_gap_and_where_all_are_silent() -> None:
    run = training(0.1)
    run.now = 110.0
    quiet = run.sign("w11", "inside", 109.0, heard=109.0)
    others = tuple(run.sign(w, "across", 109.9) for w in EVERYBODY[:3])
    assert fenced(run.feed(Looked(110.0, (*others, quiet), gap=0.5))) == {}
    run = training(0.1)
    run.now = 110.0
    silent = tuple(run.sign(w, "across", 109.0, heard=109.0) for w in EVERYBODY)
    assert fenced(run.look(110.0, *silent)) == {}


def test_who_was_not_heard_is_not_taken_for_stuck_before_it_is() -> None:
    run = training(0.1)
    run.now = 110.0
    silent = run.sign("w11", "inside", 100.0, heard=100.0)._replace(silent=0.0)
    assert at(run, 110.0, "across", 110.0, silent) == []
    computes = run.sign("w11", "inside", 100.0)
    assert fenced(at(run, 110.0, "across", 110.0, computes)) == {
        "w11": "computed on one step for 10.0 s while others waited"
    }


def test_who_computes_while_nobody_waits_is_left_alone() -> None:
    run = training(0.1)
    assert at(run, 110.0, "inside", 100.0) == []


def test_who_was_not_heard_has_not_refused_to_answer_a_stop_before_it_is() -> None:
    run = training(0.1)
    run.feed(Lost("w10", "closed"))
    run.now = 101.0
    run.look(101.0)
    for worker in ("w00", "w01"):
        run.ack(worker, LEARNED)
    silent = run.sign("w11", "across", 100.0, heard=100.0)._replace(silent=0.0)
    assert fenced(run.look(110.0, silent)) == {}
    run.now = 110.0
    assert fenced(run.look(110.0, run.sign("w11", "across", 100.0))) == {"w11": "did not answer a stop within 9.0 s"}


def test_time_by_which_a_look_comes_late_counts_for_no_stop() -> None:
    run = training(0.1)
    run.feed(Lost("w10", "closed"))
    run.look(101.0)
    run.now = 110.0
    assert fenced(run.feed(Looked(110.0, (run.sign("w11", "across", 100.0),), late=8.0))) == {}
    assert isinstance(run.state.mode, Stopping)
    assert run.state.mode.since == 109.0


def test_who_is_not_heard_may_have_gone_on() -> None:
    run = training()
    run.now = 122.0
    assert run.look(122.0, *(run.sign(w, "across", 100.0, heard=119.0) for w in EVERYBODY)) == []


# ---- before the first word


def test_who_never_speaks_cannot_start_where_it_is_and_who_was_on_a_node_that_is_gone_is_lost() -> None:
    run = training()
    asked = (Asked("slow", "n1", 121.0), Asked("gone", "n9", 1.0, there=False), Asked("fine", "n1", 119.0))
    fresh = run.feed(Looked(100.0, (), asked))
    assert [action.workers for action in fresh if isinstance(action, Release)] == [("slow",), ("gone",)]
    told = [action.fields for action in fresh if isinstance(action, Journal)]
    assert [(fields["actor"], fields["how"]) for fields in told] == [
        ("slow", "it did not start within 120 s"),
        ("gone", "n9 is gone"),
    ]
    assert run.state.tally.unborn == {"n1": 1}
    assert run.state.tally.spent == 2
