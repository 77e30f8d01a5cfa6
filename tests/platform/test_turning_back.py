"""How often a run may go back to what was saved, and what counts as a preemption."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shoal.control.takeover import went_back
from shoal.decisions.actions import Decision, End
from shoal.decisions.events import Lost, Preemption
from shoal.ladder import Rung
from shoal.protocol.said import Committed
from tests.support.decisions import HOMES, NODES, Run, one


def run_of(failures: int | None, preemptions: int | None, announced: set[str]) -> Run:
    """All of whose workers die at once after a step, on nodes of which some were announced to go."""
    run = Run(checkpoint=20)
    run.state.shape = replace(run.state.shape, failures=failures, preemptions=preemptions)
    run.start()
    run.feed(Committed("w00", run.state.generation, 21))
    run.feed(*(Preemption(node) for node in sorted(announced)))
    for worker in HOMES.values():
        run.feed(Lost(worker, "killed", NODES[worker]))
    return run


@pytest.mark.parametrize(
    ("failures", "preemptions", "announced", "ends"),
    [
        (None, None, set(), False),
        (1, 0, set(), False),
        (0, None, set(), True),
        (0, None, {"n1"}, True),  # the others were not
        (0, None, {"n1", "n2"}, False),
        (None, 0, {"n1", "n2"}, True),
        (0, 1, {"n1", "n2"}, False),
    ],
)
def test_going_back_is_counted_by_why(
    failures: int | None, preemptions: int | None, announced: set[str], ends: bool
) -> None:
    run = run_of(failures, preemptions, announced)
    if ends:
        end = one(run.actions, End)
        assert end.status == "failed"
        what = "preemptions" if announced == {"n1", "n2"} else "failures"
        assert f"after {what}: to go back to what was saved, none is allowed" in end.reason
    else:
        assert [a.rung for a in run.actions if isinstance(a, Decision)] == [Rung.RESTORE]
        assert run.state.tally.backs == ((0, 1) if announced == {"n1", "n2"} else (1, 0))


def test_what_is_healed_counts_as_nothing() -> None:
    run = Run()
    run.state.shape = replace(run.state.shape, failures=0, preemptions=0)
    run.start()
    run.spares()
    run.feed(Lost("w10", "killed", "n2"))
    for worker in ("w00", "w01", "w11"):
        run.ack(worker, 0, out=worker == "w11")
    assert [a.rung for a in run.actions if isinstance(a, Decision)] == [Rung.HEAL]
    assert run.state.tally.backs == (0, 0)


def test_a_controller_that_takes_over_counts_the_same() -> None:
    events: list[dict[str, Any]] = [
        {"kind": "decision", "rung": "restore"},  # of a session before
        {"kind": "run_started"},
        {"kind": "generation"},
        {"kind": "node_draining", "node": "n1"},
        {"kind": "death", "node": "n1", "cell": 0},
        {"kind": "death", "node": "n3", "cell": None},  # a spare
        {"kind": "decision", "rung": "recall"},
        {"kind": "generation"},
        {"kind": "death", "node": "n1", "cell": 0},
        {"kind": "death", "node": "n2", "cell": 1},
        {"kind": "decision", "rung": "heal"},
        {"kind": "decision", "rung": "restore"},
    ]
    assert went_back(events) == ((1, 1), (1, 1))
    assert went_back([]) == ((0, 0), (0, 0))
