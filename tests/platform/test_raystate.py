"""A run's journal as Ray Train's state, and the shape of Ray's internal modules that it needs."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train.v2._internal.execution.controller.state import TrainControllerStateType
from ray.train.v2._internal.state import schema, state_actor

from shoal.config import Job
from shoal.on_ray.slots import Slot
from shoal.on_ray.train_state import train_attempt, train_run
from shoal.record import raystate
from shoal.record.raystate import RunState

pytestmark = pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20")  # Ray's own
Event = dict[str, Any]
A, B, C, D, S = "r/cell0/x@n0", "r/cell0/y@n0", "r/cell1/x@n1", "r/cell1/y@n1", "r/spare0@n2"
WHOLE = {"0": [A, B], "1": [C, D]}
JOB = Job.model_validate({
    "run_id": "r", "storage": "/runs", "steps": 9,
    "workload": {"path": "m:W", "api_token": "abc", "lr": 0.1},
})  # fmt: skip


def ready(actor: str, pid: int, device: int | None = None) -> Event:
    return {"kind": "worker_ready", "actor": actor, "node": actor.rpartition("@")[2], "pid": pid, "device": device}


def generation(number: int, cells: dict[str, list[str]]) -> Event:
    attempts = dict.fromkeys(cells, 0)
    return {"kind": "generation", "generation": number, "step": 3, "live": len(cells), "cells": cells} | {
        "attempts": attempts, "since": None, "shape": None,
    }  # fmt: skip


def decision(rung: str, *cells: int) -> Event:
    return {"kind": "decision", "rung": rung, "cells": list(cells), "reason": "so it is"}


def recovery(rung: str, cell: int, **phases: float | None) -> Event:
    known = {"decide": 1.0, "place": None, "join": None, "state": None}
    return {"kind": "recovery", "rung": rung, "cell": cell, "phases": known | phases, "sentence": f"{rung} is done"}


STARTED: Event = {"kind": "run_started", "run_id": "r", "steps": 9, "cells": 2, "workers_per_cell": 2}
DIES: Event = {"kind": "death", "actor": C, "node": "n1", "cell": 1, "how": "connection closed", "step": 3}
LEFT: Event = {"kind": "drain", "generation": 0, "reason": "r/cell1/x@n1 is gone"}
JOINS: Event = {"kind": "drain", "generation": 1, "reason": "cell 1 joins"}
BEGUN = [STARTED, *(ready(actor, 10 + pid) for pid, actor in enumerate((A, B, C, D, S))), generation(0, WHOLE)]
LESS = [DIES, LEFT, generation(1, {"0": [A, B]}), decision("shrink", 1)]
BACK = decision("restore", 0, 1)
HEALED = {"0": [A, B], "1": [S, D]}
ENDS: Event = {"kind": "run_ended", "status": "done", "reason": "every step is committed"}


def told(*events: Event) -> tuple[RunState, list[str]]:
    """What the journal comes to, a second a line, and the statuses on the way."""
    state, ways = RunState(), list[str]()
    for second, event in enumerate(events, start=1):
        state.take({"time": float(second), **event})
        ways += [state.status] if ways[-1:] != [state.status] else []
    return state, ways


def test_a_cell_that_is_healed() -> None:
    heal = [DIES, LEFT, generation(1, {"0": [A, B]}), decision("heal", 1), JOINS, generation(2, HEALED)]
    state, ways = told(*BEGUN, *heal, recovery("heal", 1, place=0.5, join=2.0, state=0.25))
    assert ways == ["SCHEDULING", "RUNNING", "RESTARTING", "RUNNING"]
    assert [(one.status, one.workers) for one in state.attempts.values()] == [
        ("ERRORED", (A, B, C, D)),
        ("FINISHED", (A, B)),
        ("RUNNING", (A, B, S, D)),
    ]
    first = state.attempts[0]
    assert (first.dead, first.detail, first.began, first.ended) == ({C}, LEFT["reason"], 7.0, 9.0)
    assert state.detail == "heal is done"
    assert state.starting == 6.0 + 2.75  # from the beginning to the first generation, and the phases
    assert state.leaving == 1.0
    state.take({"time": 20.0, "kind": "run_ending", "status": "done"})
    state.take({"time": 23.0, **ENDS})
    assert (state.status, state.detail, state.ended, state.leaving) == ("FINISHED", ENDS["reason"], 23.0, 4.0)
    assert state.attempts[2].status == "FINISHED"


@pytest.mark.parametrize(
    ("events", "ways"),
    [
        (  # no spare: smaller, and later as large as before
            [*LESS, recovery("shrink", 1), JOINS, generation(2, HEALED), recovery("grow", 1)],
            ["RESTARTING", "RESIZING", "RUNNING", "RESIZING", "RUNNING"],
        ),
        (  # whoever would have told of the smaller run's first step dies too
            [*LESS, {"kind": "controller_back"}],
            ["RESTARTING", "RESIZING", "RUNNING"],
        ),
        (
            [
                DIES,
                DIES | {"actor": A, "cell": 0},
                LEFT,
                BACK,
                generation(1, {"0": [B, D]}),
                JOINS,
                generation(2, WHOLE),
            ],
            ["RESTARTING", "RUNNING", "RESIZING", "RUNNING"],
        ),
        (
            [LEFT, decision("reshape", 0), generation(1, {"0": [A, B, C]})],
            ["RESTARTING", "RESIZING", "RUNNING"],
        ),
        ([LEFT, generation(1, WHOLE), decision("retry", 0, 1)], ["RESTARTING", "RUNNING"]),
        ([DIES | {"actor": S, "cell": None}], []),  # a spare
        ([ENDS | {"status": "failed", "reason": "the training code raised"}], ["ERRORED"]),
        ([ENDS | {"status": "failed", "reason": "KeyError", "by_controller": True}], ["ABORTED"]),
        ([ENDS | {"status": "failed", "reason": "my-controller/cell0/x@n0: ValueError: bad"}], ["ERRORED"]),
        ([ENDS | {"status": "stopped", "reason": "stopped by SIGINT"}], ["ABORTED"]),
        ([ENDS, STARTED, generation(0, WHOLE)], ["FINISHED", "SCHEDULING", "RUNNING"]),
    ],
    ids=["shrink", "died", "restore", "reshape", "retry", "spare", "failed", "controller", "name", "stopped", "again"],
)
def test_the_ways_a_run_goes(events: list[Event], ways: list[str]) -> None:
    assert told(*BEGUN, *events)[1] == ["SCHEDULING", "RUNNING", *ways]


def test_a_large_generation_is_told_by_what_changed_and_old_ones_by_their_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(raystate, "ROOM", 6)
    changed = {"kind": "generation", "generation": 1, "step": 3, "live": 2, "cells": None, "since": 0, "gone": []}
    changed |= {"changed": {"1": [S, D]}, "attempts": {"1": 1}}
    state, _ = told(*BEGUN, LEFT, changed)
    assert state.attempts[1].workers == (A, B, S, D)
    assert state.attempts[0].workers == ()
    assert "its 4 workers" in (state.attempts[0].detail or "")


def test_what_a_record_may_hold_is_refused_and_changes_nothing_else() -> None:
    state, _ = told(*BEGUN)
    with pytest.raises((LookupError, TypeError, ValueError)):
        state.take({"time": 9.0, "kind": "decision", "rung": "fly", "cells": [1]})
    assert state.status == "RUNNING"


def test_the_installed_rays_schema_takes_it() -> None:
    """And has every name that is used: what is internal there may change."""
    known = {(D, 13): {"ActorID": "a13", "Address": {"NodeID": "n", "IPAddress": "10.0.0.1"}}}
    heal = [ready(D, 13, 5), DIES, LEFT, generation(1, {"0": [A, B]})]
    state, _ = told(*BEGUN, *heal)
    attempt = train_attempt("s", Slot("GPU"), state.attempts[0], state, known)
    assert isinstance(attempt, schema.TrainRunAttempt)
    assert (attempt.run_id, attempt.status) == ("s", schema.RunAttemptStatus.ERRORED)
    assert [(one.world_rank, one.local_rank, one.node_rank, one.pid) for one in attempt.workers] == [
        (0, 0, 0, 10), (1, 1, 0, 11), (2, 0, 1, 12), (3, 1, 1, 13),
    ]  # fmt: skip
    assert [one.status.value for one in attempt.workers] == ["ALIVE", "ALIVE", "DEAD", "ALIVE"]
    last = attempt.workers[3]
    assert (last.actor_id, last.node_id, last.node_ip, last.gpu_ids) == ("a13", "n", "10.0.0.1", [5])
    assert last.resources.resources == {"GPU": 1.0}
    myself: Any = SimpleNamespace(job="01000000", actor="c", log=None)
    run = train_run("s", JOB, state, myself)
    assert (run.id, run.name, run.status) == ("s", "r", schema.RunStatus.RESTARTING)
    shown = schema.DecoratedTrainRun.model_validate({**run.model_dump(), "attempts": [attempt.model_dump()]})
    text = schema.TrainRunsResponse(train_runs=[shown]).model_dump_json()
    assert "abc" not in text  # a secret
    assert run.run_settings.scaling_config.num_workers == 4
    assert run.start_time_ns == 1_000_000_000


def test_the_names_are_rays() -> None:
    statuses = {"SCHEDULING", "RUNNING", "RESTARTING", "RESIZING", "FINISHED", "ERRORED", "ABORTED"}
    assert statuses <= {one.value for one in schema.RunStatus}
    assert statuses <= {one.name for one in TrainControllerStateType}
    assert {"RUNNING", "FINISHED", "ERRORED", "ABORTED"} <= {one.value for one in schema.RunAttemptStatus}
    assert not inspect.signature(state_actor.get_or_create_state_actor).parameters
    for method in ("create_or_update_train_run", "create_or_update_train_run_attempt"):
        assert len(inspect.signature(getattr(state_actor.TrainStateActor, method)).parameters) == 2
