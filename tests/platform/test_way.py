"""The way of a preemption through the controller, traced: it passes the files that docs/architecture.md names, and no
others."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, get_args

import shoal
from shoal.control.desk import Desk, Ear
from shoal.control.lifelines import Conversation, Lifelines, Line
from shoal.control.orders import carry_out
from shoal.control.recovery import Recoveries
from shoal.control.rendezvous import Rendezvous
from shoal.control.spawn import Spawner, Started
from shoal.decisions.actions import Action
from shoal.decisions.events import Event, Joined, Preemption
from shoal.protocol import codec, orders
from shoal.protocol.greeting import Greeting
from shoal.protocol.orders import Order
from shoal.protocol.said import Ack, Acked, Said
from tests.support.decisions import NODES, Run
from tests.support.fleet import FakeFleet

HANDED_ON = (Line, Ack, *get_args(Event), *get_args(Action), *get_args(Order), *get_args(Said))
HOME = Path(shoal.__file__).parent
TOUR = Path(__file__).parents[2] / "docs" / "architecture.md"
BESIDE = {"protocol/codec.py"}
"""Makes bytes of what is handed on."""


def files_of_the_tour() -> list[str]:
    """The files of the way, in its order."""
    part = TOUR.read_text().split("## The way of a preemption")[1].split("\n## ")[0]
    return re.findall(r"^\d+\. `([\w/]+\.py)`", part, re.M)


class Trace:
    """The files of the platform in whose functions something that is handed on was made, or that were given it, in the
    order in which they were first entered."""

    def __init__(self) -> None:
        self.files: list[str] = []

    def __call__(self, frame: FrameType, what: str, _: Any) -> None:
        code = frame.f_code
        given = (frame.f_locals[name] for name in code.co_varnames[: code.co_argcount])
        if what != "call" or not any(isinstance(one, HANDED_ON) for one in given):
            return
        if code.co_filename == "<string>" and frame.f_back is not None:  # a dataclass is made
            code = frame.f_back.f_code
        file = Path(code.co_filename)
        if file.is_relative_to(HOME):
            name = str(file.relative_to(HOME))
            if name not in (*self.files, *BESIDE):
                self.files.append(name)


class Controlled:
    """What of a controller is on the way of a preemption, with lifelines to two cells of two workers that train, and to
    `spares`."""

    def __init__(self, *spares: str) -> None:
        before = Run()
        before.start()
        before.feed(*(Joined(spare, NODES[spare]) for spare in spares))
        self.state = before.state
        self.told: list[tuple[str, Order]] = []
        ignored: Callable[..., Any] = lambda *_, **__: None  # noqa: E731
        self.spawner = Spawner(FakeFleet(), ignored, ignored, "run", self.state.shape.mesh)
        self.spawner.started.update({worker: Started(NODES[worker], 0.0, heard=True) for worker in self.state.workers})
        self.desk = Desk(self.state, partial(carry_out, self), failed)  # type: ignore[arg-type]
        self.ear = Ear(self.spawner, self.desk.take, ignored, ignored, failed, ignored)
        self.lifelines = Lifelines("s", self.ear.joined, self.ear.said, self.ear.gone, self.ear.failed)
        self.job = SimpleNamespace(audit=SimpleNamespace(samples=False))
        self.rendezvous, self.recoveries, self.since = Rendezvous(), Recoveries(2), time.time()
        self.scribe = SimpleNamespace(event=ignored, generation=ignored, pen=SimpleNamespace(settle=ignored))
        self.heard = {worker: self.connect(worker) for worker in self.state.workers}

    def connect(self, worker: str) -> Conversation:
        transport = SimpleNamespace(write=partial(self.hears, worker), is_closing=lambda: False, abort=lambda: None)
        one = Conversation(self.lifelines._heard, self.lifelines._lost)
        one.line = self.lifelines.lines[worker] = Line(Greeting(worker, NODES[worker], 7), transport)  # type: ignore[arg-type]
        return one

    def hears(self, worker: str, data: bytes) -> None:
        self.told += [(worker, codec.order(line)) for line in data.splitlines()]


def failed(error: Exception) -> None:
    raise error


def traced(*acts: Callable[[], None]) -> list[str]:
    """The files that one thing after the other passes."""
    trace = Trace()
    sys.setprofile(trace)
    try:
        for act in acts:
            act()
    finally:
        sys.setprofile(None)
    return trace.files


def goes(one: Controlled, *, announced: bool) -> tuple[list[str], list[str]]:
    """Node n2 goes, or is to go, and then the workers of n1 answer: the files that each of both passes."""
    dead = () if announced else tuple(partial(one.heard[worker].connection_lost, None) for worker in ("w10", "w11"))
    notice = (partial(one.desk.take, Preemption("n2")),) if announced else ()
    first = traced(*notice, *dead)
    answers = []
    for worker in sorted(one.state.awaited):
        word = codec.encode(Acked(worker, 0, Ack(5, rank=one.state.seats[worker].rank)))
        answers.append(partial(one.heard[worker].data_received, word))
    return first, traced(*answers)


def of_the_controller(*, but: str = "") -> list[str]:
    """The tour's files in the controller, but one."""
    return [file for file in files_of_the_tour() if not file.startswith("worker/") and file != but]


def scene(*spares: str, announced: bool) -> tuple[list[str], list[str], list[tuple[str, Order]]]:
    """What `goes` finds where there are such spares, and what workers were told."""

    async def played() -> tuple[list[str], list[str], list[tuple[str, Order]]]:
        one = Controlled(*spares)
        passed = goes(one, announced=announced)
        await asyncio.sleep(0)  # what is still to be written
        return *passed, one.told

    return asyncio.run(played())


def test_a_preemption_passes_the_files_that_the_tour_names_once_in_each_direction() -> None:
    first, second, told = scene(announced=False)
    assert first == of_the_controller(but="decisions/rungs.py")
    assert second == of_the_controller()
    stopped = [worker for worker, order in told if isinstance(order, orders.Stop)]
    begun = [worker for worker, order in told if isinstance(order, orders.Generation)]
    assert (sorted(set(stopped)), begun) == (["w00", "w01", "w11"], ["w00", "w01"])
    assert len(files_of_the_tour()) <= 10


def test_one_that_is_announced_begins_at_the_decisions() -> None:
    first, second, told = scene(announced=True)
    fresh = [file for file in of_the_controller(but="decisions/rungs.py") if file != "control/lifelines.py"]
    assert first == [*fresh, "control/lifelines.py"]  # on the way out
    assert set(second) == {*of_the_controller(), "decisions/seating.py"}  # lets workers of the node go
    assert [order.cells for worker, order in told if isinstance(order, orders.Generation)] == [(0,), (0,)]


def test_where_spares_take_the_seats_one_file_more_says_which() -> None:
    first, second, _ = scene("s0", "s1", announced=False)
    assert first == of_the_controller(but="decisions/rungs.py")
    assert set(second) == {*of_the_controller(), "decisions/seating.py"}
