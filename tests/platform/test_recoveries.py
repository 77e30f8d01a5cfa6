"""Every rung of the ladder on real processes that are really killed, without Ray."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from shoal.chaos.plan import choose_victim, schedule
from shoal.testing import Lab, Outcome, assert_no_trace, fakenccl, outcome
from shoal_core.ckpt import among
from shoal_core.store import open_store
from tests.support.backends import BOTH, BOTH_LONG
from tests.support.lab import alone, hurry, lab, with_defaults
from tests.support.target import LabTarget

NODES = {f"n{i}": 2 for i in range(4)}


def check(one: Lab, steps: int, rungs: list[str]) -> None:
    """Once these recoveries are over the run is done, with nothing lost, and every step is the undisturbed one's."""
    hurry(one, recoveries=len(rungs))
    run = one.finished()
    assert (run["status"], run["steps"], run["steps_lost"]) == ("done", steps, 0), one.story()
    assert (run["samples_repeated"], run["samples_skipped"]) == (0, 0)
    assert [line["loss"] for line in one.steps()] == pytest.approx(alone(steps).losses, rel=1e-4)
    assert [event["rung"] for event in one.events("decision")] == rungs, one.story()


@BOTH
def test_a_killed_worker_is_healed(tmp_path: Path, backend: str) -> None:
    with lab(tmp_path, NODES, steps=100, audit={"samples": True}, backend=backend) as one:
        one.full(10, spares=2)
        one.kill(one.members(1)[0])
        check(one, 100, ["heal"])
        (recovery,) = one.events("recovery")
        assert recovery["full_strength"] is not None


@BOTH_LONG
def test_a_lost_node_two_at_once_and_the_healer_are_survived(tmp_path: Path, backend: str) -> None:
    with lab(tmp_path, {f"n{i}": 2 for i in range(5)}, steps=200, audit={"samples": True}, backend=backend) as one:
        one.full(10, spares=4)
        healthy = one.members(0)[0].rpartition("@")[2]
        one.kill_node(one.members(1)[0].rpartition("@")[2])
        one.until(lambda: one.events("decision"))
        one.kill(one.members(0)[1])  # the cell that is copied from, while cell 1 is on its way back
        one.full(10)
        assert healthy in one.alive
        node = one.members(2)[0].rpartition("@")[2]
        one.kill_node(node)
        one.until(lambda: any(event["node"] == node for event in one.events("death")))
        hurry(one)
        run = one.finished()
        assert (run["status"], run["steps_lost"]) == ("done", 0), one.story()
        assert (run["samples_repeated"], run["samples_skipped"]) == (0, 0)
        assert [line["loss"] for line in one.steps()] == pytest.approx(alone(200).losses, rel=1e-4)


@BOTH_LONG
def test_what_is_left_of_all_cells_is_put_together(tmp_path: Path, backend: str) -> None:
    nodes = {f"n{i}": 1 for i in range(4)}
    with lab(tmp_path, nodes, cells=2, steps=100, audit={"samples": True}, backend=backend) as one:
        one.full(10)
        one.kill(one.members(0)[0])
        one.kill(one.members(1)[1])
        one.until(lambda: any(event["rung"] == "combine" for event in one.events("decision")))
        hurry(one)
        run = one.finished()
        assert (run["status"], run["steps_lost"]) == ("done", 0), one.story()
        assert [line["loss"] for line in one.steps()] == pytest.approx(alone(100).losses, rel=1e-4)


@pytest.mark.parametrize(
    ("backend", "slots"), [("gloo", 2), pytest.param(fakenccl.NAME, 1, marks=[pytest.mark.fakenccl, pytest.mark.long])]
)
def test_a_frozen_worker_is_fenced_and_healed(tmp_path: Path, backend: str, slots: int) -> None:
    """By its neighbour; where it has none, by the controller, which is on this machine too."""
    nodes = {f"n{i}": slots for i in range(8 // slots)}
    with lab(tmp_path, nodes, steps=120, audit={"samples": True}, backend=backend) as one:
        one.full(20, spares=2)
        one.freeze(one.members(1)[0])
        check(one, 120, ["heal"])
        (fenced,) = one.events("fenced")
        said = (one.path / fenced["stacks"]).read_text()
        assert "Read from its memory by py-spy" in said or "took more than" in said, said


@BOTH_LONG
def test_the_controller_dies_and_training_never_notices(tmp_path: Path, backend: str) -> None:
    with lab(tmp_path, NODES, steps=200, audit={"samples": True}, backend=backend) as one:
        one.full(10, spares=2)
        generations = len(one.events("generation"))
        pids = {name: process.pid for name, process in one.processes.items()}
        one.kill_controller()
        one.until(lambda: one.events("controller_back"))
        one.full(10)
        assert len(one.events("generation")) == generations
        assert pids == {name: process.pid for name, process in one.processes.items()}
        one.kill(one.members(0)[1])  # and it still does its work
        check(one, 200, ["heal"])


@BOTH_LONG
def test_a_frozen_controller_costs_no_step(tmp_path: Path, backend: str) -> None:
    with lab(tmp_path, NODES, steps=120, backend=backend) as one:
        one.full(5)
        os.kill(one.controller.pid, signal.SIGSTOP)
        before = one.committed()
        one.until(lambda: one.committed() >= before + 40)
        os.kill(one.controller.pid, signal.SIGCONT)
        hurry(one)
        assert one.finished()["status"] == "done"
        assert [step["step"] for step in one.steps()] == list(range(120))
        assert len(one.events("generation")) == 1, "nobody was taken for dead"


@BOTH_LONG
def test_a_worker_dies_while_there_is_no_controller(tmp_path: Path, backend: str) -> None:
    with lab(tmp_path, NODES, steps=120, audit={"samples": True}, backend=backend) as one:
        one.full(10, spares=2)
        victim = one.members(2)[0]
        one.controller.kill()
        one.controller.join()
        one.kill(victim)
        one.kill_controller()
        check(one, 120, ["heal"])
        assert one.events("death")[0]["actor"] == victim


@BOTH_LONG
def test_a_node_that_drains_is_left_with_nothing_done_twice(tmp_path: Path, backend: str) -> None:
    with lab(tmp_path, NODES, steps=120, audit={"samples": True}, backend=backend) as one:
        one.full(10, spares=2)
        node = one.members(1)[0].rpartition("@")[2]
        one.drain(node)
        one.until(lambda: not set(one.living()) & set(one.on(node)))
        one.kill_node(node)
        check(one, 120, ["drain"])
        assert one.events("death") == []
        assert [(event["rung"], event["nodes"]) for event in one.events("recovery")] == [("drain", [node])]


@pytest.mark.long  # `test_exact_pretrain.py` holds it with a real model
@BOTH
def test_in_exact_mode_recoveries_leave_no_trace(tmp_path: Path, backend: str) -> None:
    """Other cells, other sharing, other order of sums: the same bits."""

    def kill_two(one: Lab) -> None:
        one.full(10, spares=2)
        one.kill(one.members(1)[0])
        one.full(10)
        one.kill(one.members(0)[1])

    settings = with_defaults({"workload": {"seconds": 0.01}, "steps": 100, "backend": backend})
    one = assert_no_trace(tmp_path, NODES, kill_two, **settings)
    assert len(one.events("death")) == 2


POINTS = ("accumulate", "accumulated", "across", "vote", "commit", "committed")


def fault(at: str, step: int, cell: int = 1, how: str = "kill") -> dict[str, Any]:
    return {"at": at, "step": step, "cell": cell, "rank": 0, "how": how}


@BOTH_LONG
def test_a_death_between_two_commits_of_one_step_is_survived(tmp_path: Path, backend: str) -> None:
    """In the vote, after it, and after applying what nobody has heard of: everyone alive ends at the same step."""
    inject = [fault(at, 30 + 40 * number, number) for number, at in enumerate(("vote", "commit", "committed"))]
    settings: dict[str, Any] = {"workload": {"seconds": 0.03}, "backend": backend}
    with lab(tmp_path, NODES, steps=160, inject=inject, audit={"samples": True}, **settings) as one:
        one.until(lambda: len(one.events("death")) >= 3)
        hurry(one)
        run = one.finished()
        assert (run["status"], run["steps_lost"], run["deaths"]) == ("done", 0, 3), one.story()
        assert (run["samples_repeated"], run["samples_skipped"]) == (0, 0)
        assert [line["loss"] for line in one.steps()] == pytest.approx(alone(160).losses, rel=1e-4)


@pytest.mark.long
@BOTH
@pytest.mark.parametrize("how", ["kill", "freeze"])
@pytest.mark.parametrize("at", [*POINTS, "join", "heal", "checkpoint"])
def test_a_worker_fails_at_any_point_of_a_step(tmp_path: Path, at: str, how: str, backend: str) -> None:
    """Where groups are built and during a heal: of the cell that is copied from, after a first death."""
    inject = [fault(at, 50, cell=0, how=how)]
    if at in ("join", "heal"):
        inject = [fault("accumulate", 50), *(fault(at, step, cell=0, how=how) for step in range(51, 56))]
    settings: dict[str, Any] = {"backend": backend}
    if at == "checkpoint":
        settings["checkpoint"] = {"every": 50}
    with lab(tmp_path, NODES, steps=200, inject=inject, audit={"samples": True}, **settings) as one:
        run = one.finished()
        assert (run["status"], run["steps_lost"]) == ("done", 0), one.story()
        assert (run["samples_repeated"], run["samples_skipped"]) == (0, 0)
        assert [line["loss"] for line in one.steps()] == pytest.approx(alone(200).losses, rel=1e-4)


def test_a_thread_that_nothing_wakes_is_left_behind_and_its_worker_goes_on(tmp_path: Path) -> None:
    """Its peer dies while it hangs in a collective of their cell; its own share of the state is not lost. So on gloo
    alone: see the next test."""
    inject = [fault("accumulate", 30, how="hang"), fault("accumulate", 30) | {"rank": 1}]
    with lab(tmp_path, NODES, steps=60, inject=inject, audit={"samples": True}) as one:
        check(one, 60, ["heal"])
        assert (len(one.events("death")), one.events("fenced")) == (1, []), one.story()
        first, *_, last = (event["cells"]["1"] for event in one.events("generation") if "1" in event["cells"])
        assert first[0] in last


@pytest.mark.fakenccl
@pytest.mark.long
def test_a_thread_that_nothing_wakes_costs_its_process_where_none_may_be_left_behind(tmp_path: Path) -> None:
    """As on a device, which a thread that is stuck there keeps. The record has where that was; the cell is healed."""
    inject = [fault("accumulate", 30, how="hang"), fault("accumulate", 30) | {"rank": 1}]
    settings: dict[str, Any] = {"patience": 20.0, "backend": fakenccl.NAME, "audit": {"samples": True}}
    with lab(tmp_path, NODES, steps=60, inject=inject, **settings) as one:
        check(one, 60, ["heal"])
        (fenced,) = one.events("fenced")
        assert (len(one.events("death")), fenced["how"][:21]) == (2, "did not answer a stop"), one.story()
        assert "inject.py" in (one.path / fenced["stacks"]).read_text()


@BOTH_LONG
def test_a_sum_that_is_no_number_is_rolled_back_and_a_flipped_bit_is_healed(tmp_path: Path, backend: str) -> None:
    inject = [fault("accumulated", 33, how="nan"), fault("committed", 60, how="flip")]
    settings: dict[str, Any] = {"snapshots": {"every": 10, "compare": 5}, "backend": backend}
    with lab(tmp_path, NODES, steps=120, inject=inject, audit={"samples": True}, **settings) as one:
        one.until(lambda: one.events("decision"))
        one.full(5)
        hurry(one)
        run = one.finished()
        assert (run["status"], run["steps_lost"], run["deaths"]) == ("done", 0, 0), one.story()
        (back,) = one.events("rolled_back")
        assert (back["step"], back["to"], back["samples"]) == (33, 30, [360, 408])
        (wrong,) = one.events("disagreement")
        assert (wrong["step"], wrong["cell"]) == (65, 1)
        assert [event["rung"] for event in one.events("decision")] == ["heal"]
        assert one.steps()[-1]["cells"] == 3


@BOTH_LONG
def test_an_error_of_the_training_code_ends_the_run_and_is_told(tmp_path: Path, backend: str) -> None:
    with lab(tmp_path, NODES, steps=100, inject=[fault("accumulate", 20, how="raise")], backend=backend) as one:
        run = one.finished()
        assert run["status"] == "failed"
        assert "injected at accumulate of step 20" in run["reason"]
        assert "saved up to step 20 of 20" in run["reason"]
        last = among.last_whole(open_store(one.path / "checkpoints"))
        assert last is not None
        assert last.steps == 20
        (error,) = one.events("error")[:1]
        assert error["samples"] == [240, 252]
        assert one.events("death") == []


def chaos(folder: Path, steps: int, every: float, seed: int, **settings: Any) -> tuple[int, dict[str, Any], Lab]:
    """A fault about every `every` committed steps, however long they take."""
    kinds = ["kill-worker", "kill-worker", "kill-node", "freeze-worker", "drain", "kill-controller"]
    with lab(folder, {f"n{i}": 2 for i in range(5)}, steps=steps, audit={"samples": True}, **settings) as one:
        one.full(10, spares=2)
        target, done = LabTarget(one), 0
        for fault in schedule(kinds, every, seed):
            one.until(lambda at=10 + fault.at: target.over() or len(one.steps()) >= at)
            if target.over():
                break
            victim = choose_victim(fault, target.workers(), target.nodes())
            print(f"step {len(one.steps())}: {fault.kind} {victim}")
            target.strike(fault.kind, victim)
            done += 1
        return done, one.finished(), one


@BOTH_LONG
def test_random_faults_leave_no_trace(tmp_path: Path, backend: str) -> None:
    done, run, one = chaos(tmp_path, 120, 20.0, seed=7, backend=backend)
    assert done >= 2
    assert (run["status"], run["steps"]) == ("done", 120), one.story()
    assert (run["samples_repeated"], run["samples_skipped"]) == (0, 0)
    assert [line["loss"] for line in one.steps()] == pytest.approx(alone(120).losses, rel=1e-4)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Of 300 steps in exact mode that nothing befell."""
    with lab(tmp_path_factory.mktemp("calm"), NODES, steps=300, reduce="exact", workload={"seconds": 0.0}) as one:
        assert one.finished()["status"] == "done", one.story()
        return outcome(one.path)


@pytest.mark.long
@BOTH
@pytest.mark.parametrize("seed", range(20))
def test_two_hundred_random_faults_in_exact_mode(tmp_path: Path, seed: int, backend: str, undisturbed: Outcome) -> None:
    """More than ten faults a run, one about every 20 steps: the bits of the undisturbed run, which is gloo's. Steps are
    lost only where a shard lived nowhere any more."""
    done, run, one = chaos(tmp_path, 300, 20.0, seed, reduce="exact", backend=backend)
    rungs = [event["rung"] for event in one.events("decision")]
    print(f"seed {seed}: {done} faults, {run['steps_lost']} steps lost, {rungs.count('restore')} restores")
    assert (run["status"], run["steps"]) == ("done", 300), one.story()
    assert (run["samples_repeated"], run["samples_skipped"]) == (0, 0)
    assert run["steps_lost"] == 0 or "restore" in rungs
    assert outcome(one.path).differences(undisturbed) == []
