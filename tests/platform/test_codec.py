"""Whatever bytes come, they are a message or refused; and a message is the same on the other side."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.protocol import codec, orders
from shoal.protocol.codec import encode, encode_each
from shoal.protocol.copying import Coming, Enter, Keep, Look, Missing, Ranges, Whole
from shoal.protocol.greeting import VERSION, Challenge, Greeting, Hello, Refused, Welcome
from shoal.protocol.rendezvous import Closed, Meet, Met, Put, Turn, Values, Want
from shoal.protocol.said import (
    Ack,
    Acked,
    Adopted,
    Beat,
    CannotStart,
    Checkpointed,
    Committed,
    CopyHeld,
    Damage,
    Evaluated,
    Failed,
    Finished,
    Moved,
    Noted,
    NotSaved,
    Phase,
    Ready,
    Said,
)

COMMIT = Committed("w", 3, 7, 0.25, 2, {"loss": 1 / 3, "tokens": 5, "lr": None}, (0.1, 2.0), 1e-300, (0, 1), ("w", "v"))
SAYS = [
    Beat(Phase.ACROSS, 7),
    Beat(Phase.ACROSS, 7, {"cpu_utilization_percentage": 12.5, "disk_usage_megabytes": 7}),
    CannotStart("w", "RuntimeError: no", "Traceback"),
    Ready("w", 1, 2),
    Adopted("w", 3, 0.5),
    Acked("w", 3, Ack(7, 5, (1, 2), out=False, whole=True, rank=1)),
    replace(COMMIT, cell_of=(0, 1), pace=(0.1, 0.2), rolled_back=4, checksums=(1.0, 2.0), number=9),
    Evaluated("w", 3, 7, {"bits_per_byte": 1.5}),
    Failed("w", 3, "form", "gone \u202e", 4, "", Damage(5, "a hash")),
    Finished("w", 3),
    CopyHeld("w", 0, 7, 1),
    Checkpointed(7, "w", "/runs/a", 0.1, 10),
    NotSaved(7, "no room", "w"),
    Moved(),
    Noted("w", 3, 7, "remark", {"text": "é", "deep": [1, {"a": None}]}),
    Put("cell/0/1", "k", "v"),
    Want("cell/0/1", 1, ("k", "l")),
    Meet("cell/0/1", 2, "world", 2, ("k", "l"), (("m", "v"),)),
    Turn("cell/0/1", 3, "world", 2),
]
KEEPER = orders.Keeper(("10.0.0.1", 5), 2)
TOLD = [
    orders.Form(1, 2, 0, 2, 10, keep=False, recall=orders.Recall(9, KEEPER)),
    orders.Generation(3, (0, 2), 7, 5, (1, 2), ((0, 2),), save=True, crew=("w", "v"), going={"n": 1.5, "m": None}),
    orders.Stop(3, (1,), 7),
    orders.Pause(3),
    orders.CommitLate(3, 8, (0.1, math.inf), 2.0, (0, 1)),
    orders.CopyTo(KEEPER),
    orders.CopyTo(None),
    orders.Fence(5, "w"),
    orders.Profile(3, 5, memory=True),
    orders.Published(17),
    Values(1, ("v",)),
    Met(2, go=True, values=(("k", "v"),)),
    Closed(3),
]
GREETS = [
    Challenge(VERSION, "n"),
    Hello(VERSION, Greeting("w", "n1", 5, (0, 1), None, copies=("10.0.0.1", 5)), "n", "p"),
    Welcome("p"),
    Refused("why"),
]
COPIES = [
    Challenge(VERSION, "n"),
    Keep(1, 5, 2, 100, 30, 7),
    Enter(proof="p"),
    Look("copy/"),
    Ranges("copy/1/5", ((0, 8), (16, 4))),
    Coming(100),
    Whole(100, (1 << 64) - 1),
    Missing(),
    Refused("why"),
]
EVERY: list[tuple[Any, Any]] = [
    *((one, codec.said) for one in SAYS),
    *((one, codec.order) for one in TOLD),
    *((one, codec.decode) for one in GREETS),
    *((one, codec.copying) for one in COPIES),
]


def test_every_class_is_tried() -> None:
    assert {type(one) for one in TOLD} == set(get_args(orders.Order))
    assert {type(one) for one in SAYS} == set(get_args(Said))
    assert {type(one) for one in COPIES} == set(get_args(codec.Copying))


@pytest.mark.parametrize(("message", "read"), EVERY, ids=lambda one: type(one).__name__)
def test_a_message_is_the_same_on_the_other_side(message: Any, read: object) -> None:
    assert callable(read)
    line = encode(message)
    assert line.count(b"\n") == 1
    found = read(line)
    assert found == message
    assert type(found) is type(message)
    if isinstance(message, Committed):
        assert found.number == 9


def test_what_is_no_number_arrives_as_such_and_others_to_the_last_bit() -> None:
    sent = replace(COMMIT, metrics={"loss": math.nan, "x": -0.0}, norm_sq=math.inf, stats=(0.1 + 0.2, 5e-324))
    found = codec.said(encode(sent))
    assert isinstance(found, Committed)
    assert math.isnan(found.metrics["loss"] or 0.0)
    assert (found.norm_sq, found.stats, str(found.metrics["x"])) == (math.inf, (0.1 + 0.2, 5e-324), "-0.0")


def test_halves_of_characters_are_replaced_and_what_is_no_json_is_not_sent() -> None:
    assert codec.said(encode(NotSaved(1, "a\udc80b"))) == NotSaved(1, "a?b")
    with pytest.raises(TypeError, match="a set in a message"):
        encode(Noted("w", 0, 0, "remark", {"x": {1}}))  # type: ignore[dict-item]


def test_what_orders_share_is_encoded_once() -> None:
    form = orders.Form(1, 2, 0, 3, restore=10, keep=True)
    found = [codec.order(line) for line in encode_each(form, "rank", range(3))]
    assert found == [replace(form, rank=rank) for rank in range(3)]


LINES = [encode(one) for one, _ in EVERY]


def spoilt(line: bytes, at: int, fresh: bytes) -> bytes:
    """A line with one byte of it replaced."""
    return line[: at % len(line)] + fresh + line[at % len(line) + 1 :]


SPOILT = st.builds(spoilt, st.sampled_from(LINES), st.integers(0, 400), st.binary(max_size=3))


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=200), SPOILT))
def test_whatever_bytes_come_they_are_a_message_or_refused(line: bytes) -> None:
    for read in (codec.said, codec.order, codec.decode, codec.copying):
        try:
            found = read(line)
        except ValueError:
            continue
        assert encode(read(encode(found))) == encode(found)
