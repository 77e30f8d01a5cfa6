"""A record on a store that fails: training goes on, it is told once with its remedy, and workers keep their words."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.control import press as press_module
from shoal.control.lag import BOUND, PERIOD
from shoal.control.lifelines import Line
from shoal.control.press import LATE, LONGEST, Press, persistently
from shoal.protocol import orders
from shoal.protocol.greeting import Greeting
from shoal.record.lease import LeaseLost
from shoal.record.publish import Publisher
from shoal_core.errors import StoreError, UserError

FAILS = StoreError("s3://b: too many requests (SlowDown)", "ask for fewer at once")


class Store:
    """A publisher whose rounds come to what `outcomes` says, and then succeed."""

    def __init__(self, *outcomes: Exception | None) -> None:
        self.outcomes, self.folder, self.released = list(outcomes), Path("here"), False

    def round(self) -> None:
        if self.outcomes and (error := self.outcomes.pop(0)) is not None:
            raise error

    def release(self) -> None:
        self.released = True


class Pressed:
    """A press, the workers it tells, and what it says."""

    def __init__(
        self, store: Store, told: dict[str, int] | None = None, clock: Callable[[], float] = lambda: 0.0
    ) -> None:
        self.sent: list[tuple[str, orders.Order]] = []
        self.journal: list[dict[str, Any]] = []
        self.lost: list[LeaseLost] = []
        self.waiting: dict[str, int] = {}
        self.settled = True
        transport = cast(asyncio.Transport, SimpleNamespace())
        self.lines = {
            name: Line(Greeting(name, "n", 1), transport, told=number) for name, number in (told or {}).items()
        }
        self.press = Press(
            cast(Publisher, store),
            lambda seconds: self.settled,
            self.lines,
            lambda: self.waiting,
            self.send,
            lambda kind, **fields: self.journal.append({"kind": kind, **fields}),
            self.lost.append,
            clock,
        )

    def send(self, each: Iterable[tuple[str, orders.Order]]) -> None:
        self.sent += each

    def look(self) -> float:
        return asyncio.run(self.press.look())


def test_what_is_published_is_told_to_who_said_it_once() -> None:
    one = Pressed(Store(), {"w0": 7, "w1": -1})
    assert one.look() == PERIOD
    assert one.sent == [("w0", orders.Published(7))]
    one.look()
    assert len(one.sent) == 1
    one.lines["w0"].told = 9
    one.settled = False  # the disk has not taken it
    one.look()
    assert len(one.sent) == 1


def test_a_word_that_waits_for_another_is_kept_by_who_said_it() -> None:
    one = Pressed(Store(), {"w0": 7})
    one.waiting = {"w0": 5}
    one.look()
    assert one.sent == [("w0", orders.Published(4))]


def test_a_worker_that_took_the_name_of_one_that_died_meanwhile_is_told_nothing() -> None:
    store = Store()
    one = Pressed(store, {"w0": 7})

    def replaced() -> None:
        one.lines["w0"] = Line(Greeting("w0", "n", 2), cast(asyncio.Transport, SimpleNamespace()))

    store.round = replaced  # type: ignore[method-assign]
    one.look()
    assert one.sent == []


def test_a_store_that_fails_is_told_once_with_its_remedy_and_asked_at_growing_intervals() -> None:
    one = Pressed(Store(*[FAILS] * 6), {"w0": 7})
    pauses = [one.look() for _ in range(6)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST
    assert one.sent == []
    assert one.look() == PERIOD
    kinds = [line["kind"] for line in one.journal]
    assert kinds == ["record_behind", "record_caught_up"]
    assert (one.journal[0]["reason"], one.journal[0]["remedy"]) == (FAILS.problem, FAILS.remedy)
    assert one.sent == [("w0", orders.Published(7))]


class Slow(Store):
    """One whose rounds take as many seconds as `lasts` says, one after the other; `clock`: says the time then. While it
    waits it looks how far the record is behind."""

    def __init__(self, *lasts: float) -> None:
        super().__init__()
        self.lasts, self.now, self.seen = list(lasts), 100.0, [0.0]
        self.pressed = Pressed(self, clock=lambda: self.now)

    def round(self) -> None:
        self.now += self.lasts.pop(0)
        self.seen.append(self.pressed.press.behind()[0])

    def all(self) -> list[str]:
        """Make all rounds; what the journal says of them."""
        while self.lasts:
            pause = self.pressed.look()
            self.now += pause
        return [line["kind"] for line in self.pressed.journal]


@settings(max_examples=30)
@given(st.lists(st.floats(0.0, 2.3), min_size=1, max_size=12))
def test_a_record_is_five_seconds_behind_at_most_while_its_store_is_in_time(lasts: list[float]) -> None:
    store = Slow(*lasts)
    assert store.all() == []
    assert max(store.seen) <= BOUND
    assert store.pressed.press.behind()[1] == max(*store.seen, store.pressed.press.behind()[0])


def test_a_store_that_is_slow_is_told_as_what_it_is_and_well_again_once_it_is_in_time() -> None:
    store = Slow(4.0, 4.0)
    assert store.all() == []
    assert store.seen[-1] > BOUND
    store.lasts = [6.0, 6.0, 6.0, 4.0]
    assert store.all() == ["record_behind"]
    assert "has not taken it for 10 s" in store.pressed.journal[0]["reason"]
    store.lasts = [0.1, 6.0]
    assert store.all() == ["record_behind", "record_caught_up"]
    assert store.pressed.press.behind()[1] == max(store.seen)


def test_a_store_that_says_nothing_is_told_too() -> None:
    store = Slow()
    store.lasts = [LATE + 1]
    assert store.all() == ["record_behind"]


def test_a_record_that_another_has_is_lost_and_no_failure() -> None:
    error = LeaseLost("taken", succeeded=True)
    one = Pressed(Store(error))
    one.look()
    assert one.lost == [error]
    assert one.journal == []


def test_the_end_waits_for_the_store_and_then_says_where_the_rest_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(press_module, "PERIOD", 0.0)
    store = Store(FAILS, FAILS)
    assert Pressed(store).press.close() == ""
    assert store.released
    monkeypatch.setattr(press_module, "LAST", -1.0)
    store = Store(FAILS)
    assert Pressed(store).press.close().endswith("but in here")
    assert not store.released


def test_a_store_that_does_not_answer_yet_is_asked_again_and_what_is_refused_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(press_module, "PERIOD", 0.0)
    answers: list[Any] = [FAILS, FAILS, "publisher"]

    def take() -> Publisher:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return cast(Publisher, answer)

    assert cast(str, persistently(take)) == "publisher"
    answers[:] = [UserError("damaged")]
    with pytest.raises(UserError, match="damaged"):
        persistently(take)
