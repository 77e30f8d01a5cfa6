"""What a run asks of the cluster's autoscaler: what it lacks, once that lasts; anew if nothing comes of it, ever later;
and nothing of it holds the controller up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.config import Job, parse
from shoal.control.asking import Asker
from shoal.control.spawn import Started
from shoal.decisions import asking
from shoal.decisions.asking import LASTING, LONGEST, PAUSE, SHORT, Asking, Standing, lack_of, step
from shoal.decisions.halt import Halt
from shoal.decisions.shape import Shape
from shoal.decisions.state import State
from shoal.plan import Mesh, Node
from shoal.plan.lack import lacking
from shoal_core.errors import UserError

WAIT = 600.0
TWO = Mesh(fsdp=2)
JOB: dict[str, Any] = {"steps": 3, "workload": {"path": "x:Y"}}


def nodes(**slots: int) -> dict[str, Node]:
    return {name: Node(name, f"id-{name}", count) for name, count in slots.items()}


def state(cells: int = 2, mesh: Mesh = TWO) -> State:
    return State.new(Shape(cells, mesh.workers, 10, lambda *_: 1, axes=mesh), {})


@given(st.lists(st.integers(0, 9)), st.integers(0, 60), st.integers(1, 8))
def test_the_pieces_are_what_is_missing_whatever_the_nodes_sizes(slots: list[int], wanted: int, unit: int) -> None:
    there = [Node(str(number), str(number), count) for number, count in enumerate(slots)]
    pieces = lacking(there, {}, wanted, unit)
    assert sum(pieces) == max(0, wanted - sum(slots))
    assert set(pieces) <= {1, unit}
    assert pieces.count(1) < unit or unit == 1


def test_a_slot_that_a_worker_holds_counts_once_however_late_the_cluster_knows_of_it() -> None:
    there = nodes(a=3, b=0).values()
    assert lacking(there, {"a": 3}, 4) == (1,)
    assert lacking(there, {"a": 3, "b": 1}, 4) == ()
    assert lacking(there, {"gone": 2}, 4) == (1,)


def test_a_run_lacks_seats_and_spares_on_nodes_that_it_may_use() -> None:
    one, there = state(), nodes(a=1, b=3)
    assert lack_of(one, there, {}, 0) == ()
    assert lack_of(one, there, {}, 2) == (1, 1)
    assert lack_of(state(mesh=Mesh(ep=2, ep_node=2)), nodes(a=1), {}, 0) == (2, 1)
    one.going["b"] = False
    assert lack_of(one, there, {"w": "b"}, 0) == (1, 1, 1)
    one.going, one.aside = {}, frozenset({"a"})
    assert lack_of(one, there, {}, 0) == (1,)
    one.aside, one.spares_from = frozenset(), one.now + 1.0
    assert lack_of(one, there, {}, 2) == (), "spares were given up for another run"
    one.halt = Halt("over", "failed")
    assert lack_of(one, {}, {}, 0) == ()


class Story:
    """A run that asks, second by second."""

    def __init__(self) -> None:
        self.now, self.asking, self.open = 100.0, Asking(), tuple[int, ...]()
        self.lines: list[Any] = []

    def go(
        self, seconds: float, lack: int, came: Sequence[str] = (), living: Sequence[str] = (), lost: int = 0
    ) -> list[tuple[str, Any]]:
        """(kind, slots) of what is told in so many seconds, in the first of which nodes of one slot have come."""
        told: list[tuple[str, Any]] = []
        for second in range(int(seconds)):
            self.now += 1.0
            fresh = tuple((node, 1) for node in came) if second == 0 else ()
            stands = Standing(self.open[len(fresh) + lost * (second == 0) :], fresh, lost * (second == 0))
            names = {node: f"name-{node}" for node in living}
            self.asking, self.open, lines = step(self.asking, stands, (1,) * lack, names, self.now, WAIT)
            told += [(line.kind, line.fields.get("slots")) for line in lines]
            self.lines += lines
        return told


def test_what_is_lacking_for_long_is_asked_for_once_and_withdrawn_when_it_is_there() -> None:
    run = Story()
    assert run.go(LASTING - 1, lack=2) == []
    assert run.go(2, lack=0) == [], "a worker that ended was replaced meanwhile"
    assert run.go(LASTING + 1, lack=2) == [("nodes_asked", 2)]
    assert run.go(60, lack=2) == []
    assert run.open == (1, 1)
    assert run.go(1, lack=1) == [("nodes_withdrawn", 1)]
    assert run.open == (1,)
    assert run.go(LASTING + 1, lack=3) == [("nodes_asked", 3)]
    assert run.go(1, lack=0) == [("nodes_withdrawn", 3)]
    assert run.open == ()


def test_when_some_came_all_is_taken_back_and_the_rest_asked_for_anew() -> None:
    run = Story()
    run.go(LASTING + 1, lack=3)
    assert run.go(1, lack=3, came=["a"], living=["a"]) == [("nodes_came", 1)]
    assert run.lines[-1].fields == {"nodes": ["name-a"], "slots": 1, "seconds": 1.0}
    assert run.open == ()
    assert run.go(LASTING + 1, lack=2, living=["a"]) == [("nodes_asked", 2)]


def test_who_never_answers_is_asked_again_after_ever_longer_pauses() -> None:
    run = Story()
    asked = [run.now for _ in range(20_000) if run.go(1, lack=2)[:1] == [("nodes_asked", 2)]]
    pauses = [later - sooner - WAIT for sooner, later in pairwise(asked)]
    assert pauses[:4] == [PAUSE, 2 * PAUSE, 4 * PAUSE, 8 * PAUSE]
    assert pauses[-1] == LONGEST
    told = [line.kind for line in run.lines]
    assert set(told) == {"nodes_asked", "nodes_not_given"}
    assert told.count("nodes_not_given") in (len(asked), len(asked) - 1)


@pytest.mark.parametrize("seen", [True, False])
def test_nodes_that_die_at_once_are_asked_for_ever_later(seen: bool) -> None:
    run = Story()
    for number in range(5):
        while not run.open:
            run.go(1, lack=1)
        began = run.now
        run.go(1, lack=1, came=["a"] if seen else [], lost=0 if seen else 1)
        while not run.open:
            run.go(1, lack=1)
        assert run.now - began >= PAUSE * 2**number
        assert run.asking.failures == number + 1
    kinds = [line.kind for line in run.lines]
    assert kinds.count("nodes_short_lived") == 5
    run.go(1, lack=1, came=["b"], living=["b"])
    run.go(SHORT, lack=0, living=["b"])
    assert run.asking.failures == 0, "one that stays makes up for it"


class FakeAutoscaler:
    """One that gives a node when it is told to; `away`: it does not answer until that is set."""

    def __init__(self, there: bool = True) -> None:
        self.is_there, self.open, self.came = there, tuple[int, ...](), tuple[tuple[str, int], ...]()
        self.away = threading.Event()
        self.away.set()
        self.asked: list[tuple[tuple[int, ...], tuple[str, ...]]] = []

    def there(self) -> bool:
        return self.is_there

    def standing(self) -> Standing:
        assert self.away.wait(30.0)
        return Standing(self.open, self.came)

    def ask(self, pieces: Sequence[int], avoid: Sequence[str] = ()) -> None:
        assert self.away.wait(30.0)
        self.open, self.came = tuple(pieces), ()
        self.asked.append((tuple(pieces), tuple(avoid)))


def asker(monkeypatch: pytest.MonkeyPatch, scaler: FakeAutoscaler, **settings: Any) -> tuple[Asker, State, list[Any]]:
    """Of a run of four seats on a node of one slot, and one set aside."""
    monkeypatch.setattr(asking, "LASTING", 0.0)
    one, told = state(), list[Any]()
    one.aside = frozenset({"bad"})
    job = parse(Job, JOB | settings, source="a test")
    view = nodes(a=1, bad=4)
    return (
        Asker(job, scaler, lambda: one, lambda: view, {"w": Started("a", 0.0)}, lambda *a, **k: told.append((a, k))),
        one,
        told,
    )


def test_a_run_asks_for_its_nodes_and_withdraws_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    scaler = FakeAutoscaler()
    one, _, told = asker(monkeypatch, scaler)

    async def life() -> None:
        for _ in range(3):
            await one.look()

    asyncio.run(life())
    assert scaler.asked == [((1, 1, 1), ("id-bad",))]
    assert one.told is not None
    assert one.told[0] == 3
    one.close(withdraw=True)
    assert scaler.open == ()
    assert [args[0] for args, _ in told] == ["nodes_asked", "nodes_withdrawn"]


def test_a_controller_that_takes_over_withdraws_what_the_run_needs_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    scaler = FakeAutoscaler()
    scaler.open = (1, 1)
    one, run, told = asker(monkeypatch, scaler)
    run.halt = Halt("over", "failed")
    asyncio.run(one.look())
    assert scaler.open == ()
    assert [args[0] for args, _ in told] == ["nodes_withdrawn"]


def test_nobody_is_asked_where_there_is_no_autoscaler_or_the_job_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for scaler, settings in ((FakeAutoscaler(there=False), {}), (FakeAutoscaler(), {"autoscale": False})):
        one, _, told = asker(monkeypatch, scaler, **settings)
        for _ in range(3):
            asyncio.run(one.look())
        one.close(withdraw=True)
        assert (scaler.asked, told) == ([], [])


def test_a_cluster_that_does_not_answer_holds_nothing_else_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The look waits by itself, and the end of the run no longer than is granted."""
    monkeypatch.setattr("shoal.control.asking.PARTING", 0.1)
    scaler = FakeAutoscaler()
    one, _, _ = asker(monkeypatch, scaler)
    scaler.away.clear()

    async def life() -> list[int]:
        looks = asyncio.create_task(one.look())
        others = [number async for number in ticks(5)]
        assert not looks.done()
        looks.cancel()
        return others

    assert asyncio.run(life()) == [0, 1, 2, 3, 4]
    one.close(withdraw=True)
    assert scaler.asked == []
    scaler.away.set()


async def ticks(count: int) -> Any:
    for number in range(count):
        await asyncio.sleep(0.01)
        yield number


def test_the_job_file_says_yes_no_or_how() -> None:
    def read(**settings: Any) -> Any:
        return parse(Job, JOB | settings, source="job.yaml").autoscale

    assert read().enabled
    assert not read(autoscale=False).enabled
    assert read(autoscale={"spares": 2, "wait_s": 60}).spares == 2
    with pytest.raises(UserError, match=r"unknown key 'autoscale.spare', did you mean 'autoscale.spares'"):
        read(autoscale={"spare": 2})
    with pytest.raises(UserError, match=r"'autoscale.wait_s'.*allowed: at least 1"):
        read(autoscale={"wait_s": 0})
