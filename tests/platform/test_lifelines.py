"""Lifelines over real sockets: order of words, death, silence towards strangers."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shoal.control import lifelines
from shoal.control.lifelines import TURN, Lifelines, Line
from shoal.protocol import codec, orders
from shoal.protocol.codec import decode, encode
from shoal.protocol.codec import order as order_of
from shoal.protocol.greeting import (
    GREETING_LIMIT,
    VERSION,
    Challenge,
    Greeting,
    Hello,
    Refused,
    Welcome,
    knows,
    other_version,
    proof,
)
from shoal.protocol.greeting import hello as hello_of
from shoal.protocol.rendezvous import Met
from shoal.protocol.said import Ack, Acked, Beat, Committed, Phase, Said

ME = Greeting("w0", "n1", 1, (0, 1))
COMMIT = Committed("w0", 0, 1)


class Ear:
    """Hears what the controller would."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.failures: list[Exception] = []
        heard = (self.joined, self.said, self.gone, self.failures.append)
        self.lines = Lifelines("s", *heard)
        self.address: tuple[str, int] | None = None

    def joined(self, line: Line) -> None:
        self.heard.append(("joined", line.worker, line.greeting.home))

    def said(self, line: Line, message: Said) -> None:
        self.heard.append(("said", type(message).__name__))

    def gone(self, line: Line, why: str) -> None:
        self.heard.append(("gone", line.worker))

    async def until(self, count: int) -> None:
        while len(self.heard) < count:
            await asyncio.sleep(0.01)


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def called(ear: Ear) -> tuple[Streams, str]:
    """A connection to a server that listens by now, and the nonce it sent."""
    if ear.address is None:
        ear.address = await ear.lines.open("127.0.0.1")
    reader, writer = await asyncio.open_connection(*ear.address)
    challenge = decode(await asyncio.wait_for(reader.readline(), 60))
    assert isinstance(challenge, Challenge)
    assert challenge.version == VERSION
    return (reader, writer), challenge.nonce


def hello(challenge: str, secret: str = "s") -> bytes:
    return encode(hello_of(secret, ME, challenge))


async def talk(ear: Ear, *messages: bytes) -> Streams:
    """A worker that was let in and said all this."""
    (reader, writer), challenge = await called(ear)
    said = hello_of("s", ME, challenge)
    writer.write(encode(said))
    welcome = decode(await asyncio.wait_for(reader.readline(), 60))
    assert welcome == Welcome(proof("s", "controller", said.nonce, challenge))
    writer.write(b"".join(messages))
    await writer.drain()
    return reader, writer


async def refused(ear: Ear, first: Callable[[str], bytes]) -> bytes:
    """What a caller hears after its first word, which is made of the nonce."""
    (reader, writer), challenge = await called(ear)
    writer.write(first(challenge))
    try:
        return await asyncio.wait_for(reader.read(), 60)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


def test_everything_said_is_heard_before_the_death() -> None:
    async def scene() -> list[Any]:
        ear = Ear()
        commits = [encode(Committed("w0", 0, step)) for step in range(3)]
        _, writer = await talk(ear, encode(Beat(Phase.INSIDE, 7)), *commits)
        writer.close()
        await asyncio.wait_for(ear.until(5), 60)
        assert ear.lines.gap() > 0.0 == ear.lines.gap()  # the longest silence, once
        return list(ear.heard)

    said = ("said", "Committed")
    assert asyncio.run(scene()) == [("joined", "w0", (0, 1)), said, said, said, ("gone", "w0")]


@pytest.mark.parametrize("error", [OSError(28, "No space left"), ValueError("bad"), KeyError("x"), AssertionError()])
def test_what_the_controller_fails_over_is_not_the_workers_fault(error: Exception) -> None:
    class Clumsy(Ear):
        def joined(self, line: Line) -> None:
            super().joined(line)
            raise error

        def said(self, line: Line, message: Said) -> None:
            super().said(line, message)
            raise error

    async def scene() -> tuple[list[Any], list[Exception], bool]:
        ear = Clumsy()
        reader, writer = await talk(ear, encode(COMMIT), encode(Acked("w0", 0, Ack(1))))
        await asyncio.wait_for(ear.until(3), 60)
        ear.lines.send("w0", orders.Stop(3, (), 5))
        assert await asyncio.wait_for(reader.readline(), 60)
        writer.close()
        await asyncio.wait_for(ear.until(4), 60)
        return list(ear.heard), list(ear.failures), bool(ear.lines.lines)

    heard, failures, still = asyncio.run(scene())
    assert heard == [("joined", "w0", (0, 1)), ("said", "Committed"), ("said", "Acked"), ("gone", "w0")]
    assert failures == [error] * 3
    assert not still


def test_orders_reach_the_worker() -> None:
    async def scene() -> orders.Order:
        ear = Ear()
        reader, _ = await talk(ear)
        await asyncio.wait_for(ear.until(1), 60)
        ear.lines.broadcast(["nobody", "w0"], orders.Stop(3, (1,), 5))
        return codec.order(await asyncio.wait_for(reader.readline(), 60))

    assert asyncio.run(scene()) == orders.Stop(3, (1,), 5)


STRANGERS: dict[str, Callable[[str], bytes]] = {
    "another secret": lambda nonce: hello(nonce, secret="guess"),
    "a hello that was heard before": lambda nonce: hello("a nonce of yesterday"),
    "a hello that was changed on its way": lambda nonce: hello(nonce).replace(b'"w0"', b'"w1"'),
    "the secret in clear": lambda nonce: encode(Hello(VERSION, ME, "mine", "s")),
    "no hello": lambda nonce: encode(COMMIT),
    "letters that are not ASCII": lambda nonce: encode(Hello(VERSION, ME, "mine", "\u00e9")),
    "a proof that is no text": lambda nonce: hello(nonce).replace(b'"proof":"', b'"proof":5,"x":"'),
    "no JSON": lambda nonce: b"Hello \x80\x04not json\n",
    "a list": lambda nonce: b"Hello [1]\n",
    "deep nesting": lambda nonce: b"Hello " + b"[" * 4000 + b"\n",
    "a number of many digits": lambda nonce: b'Hello {"version":' + b"9" * 4000 + b"}\n",
    "HTTP": lambda nonce: b"GET / HTTP/1.0\r\n\r\n",
    "a long line": lambda nonce: b"a" * (GREETING_LIMIT + 1),
    "more than a hello": lambda nonce: hello(nonce) + encode(COMMIT),
    "a hello with fields missing": lambda nonce: hello(nonce).replace(b'"node":"n1",', b""),
    "a hello that makes no sense": lambda nonce: hello(nonce).replace(b'"pid":1', b'"pid":"x"'),
}


@pytest.mark.parametrize("who", STRANGERS)
def test_a_stranger_is_told_nothing(who: str) -> None:
    async def scene() -> tuple[bytes, list[Any], int]:
        ear = Ear()
        told = await refused(ear, STRANGERS[who])
        return told, list(ear.heard), len(ear.lines.lines)

    assert asyncio.run(scene()) == (b"", [], 0)


def test_a_stranger_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifelines, "GREETING_TIME", 0.2)

    async def scene() -> bytes:
        return await refused(Ear(), lambda nonce: b"Hello {")

    assert asyncio.run(scene()) == b""


def test_strangers_that_hold_every_place_keep_nobody_out_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifelines, "GREETING_TIME", 1.0)
    monkeypatch.setattr(lifelines, "ALIKE", 3)

    async def scene() -> tuple[bytes, list[Any]]:
        ear = Ear()
        held = [await called(ear) for _ in range(3)]
        assert ear.address is not None
        reader, writer = await asyncio.open_connection(*ear.address)
        told = await asyncio.wait_for(reader.read(), 60)
        writer.close()
        for (reader, writer), _ in held:
            assert await asyncio.wait_for(reader.read(), 60) == b""
            writer.close()
        _, writer = await talk(ear)
        await asyncio.wait_for(ear.until(1), 60)
        writer.close()
        return told, list(ear.heard)

    assert asyncio.run(scene()) == (b"", [("joined", "w0", (0, 1))])


def test_without_descriptors_those_who_are_there_are_heard_and_it_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lifelines, "PAUSE", 0.01)

    async def scene() -> list[Any]:
        ear = Ear()
        _, writer = await talk(ear)
        await asyncio.wait_for(ear.until(1), 60)
        real = socket.socket.accept

        def none_left(listener: socket.socket) -> Any:
            raise OSError(errno.EMFILE, "Too many open files")

        assert ear.address is not None
        monkeypatch.setattr(socket.socket, "accept", none_left)
        waiting = await asyncio.open_connection(*ear.address)
        await asyncio.sleep(0.3)
        writer.write(encode(COMMIT))
        await asyncio.wait_for(ear.until(2), 60)
        monkeypatch.setattr(socket.socket, "accept", real)
        assert isinstance(decode(await asyncio.wait_for(waiting[0].readline(), 60)), Challenge)
        waiting[1].close()
        writer.close()
        return list(ear.heard)

    assert asyncio.run(scene()) == [("joined", "w0", (0, 1)), ("said", "Committed")]
    assert caplog.text.count("no connection can be accepted") == 1


def test_the_secret_never_crosses_and_a_proof_is_good_for_one_greeting() -> None:
    said = hello("first", secret="deadbeef")
    assert b"deadbeef" not in said
    assert knows("deadbeef", decode(said), "first")
    assert not knows("deadbeef", decode(said), "second")


def test_another_version_is_refused_with_a_sentence() -> None:
    async def scene() -> tuple[bytes, list[Any]]:
        ear = Ear()
        older = Hello(VERSION - 1, ME, "mine", "")
        return await refused(ear, lambda nonce: encode(older)), list(ear.heard)

    told, heard = asyncio.run(scene())
    assert decode(told) == Refused(other_version(VERSION - 1))
    assert heard == []


@pytest.mark.parametrize(
    "line", [encode(Committed("w1", 0, 1)), b"Stop {}\n", b"{}\n", b"Committed {}\n", b"Beat " + b"[" * 9999 + b"\n"]
)
def test_who_speaks_in_anothers_name_or_makes_no_sense_is_cut_off(line: bytes) -> None:
    async def scene() -> list[Any]:
        ear = Ear()
        _, _writer = await talk(ear, encode(COMMIT) + line + encode(COMMIT))
        await asyncio.wait_for(ear.until(3), 60)
        return list(ear.heard)

    assert asyncio.run(scene()) == [("joined", "w0", (0, 1)), ("said", "Committed"), ("gone", "w0")]


def test_a_second_worker_of_the_same_name_is_refused() -> None:
    async def scene() -> tuple[bytes, list[Any]]:
        ear = Ear()
        first = await talk(ear)  # held: a forgotten connection closes itself
        await asyncio.wait_for(ear.until(1), 60)
        answer = await refused(ear, hello), list(ear.heard)
        first[1].close()
        return answer

    assert asyncio.run(scene()) == (b"", [("joined", "w0", (0, 1))])


def test_orders_are_made_as_they_are_written_and_keep_their_order() -> None:
    made: list[int] = []

    def orders_of_all() -> Iterator[tuple[str, orders.Order]]:
        for number in range(3 * TURN):
            made.append(number)
            yield "w0" if number % 2 else "gone", Met(number, go=True)

    async def scene() -> tuple[int, list[orders.Order]]:
        ear = Ear()
        reader, writer = await talk(ear)
        ear.lines.send_all(orders_of_all())
        at_once = len(made)
        ear.lines.broadcast(["nobody", "w0"], orders.Stop(1, (), 0))
        lines = [await asyncio.wait_for(reader.readline(), 10) for _ in range(3 * TURN // 2 + 1)]
        writer.close()
        return at_once, [order_of(line) for line in lines]

    at_once, told = asyncio.run(scene())
    assert at_once <= 2 * TURN, "a turn's worth: half of them are for nobody"
    assert told == [*(Met(number, go=True) for number in range(1, 3 * TURN, 2)), orders.Stop(1, (), 0)]


def test_what_the_controller_was_too_late_to_hear_is_no_silence() -> None:
    nowhere: Any = None
    line = Line(ME, nowhere, heard=100.0, since=90.0)
    line.excuse(4.0, now=106.0)
    assert (line.silent(106.0), line.since) == (2.0, 94.0)
    heard = Line(ME, nowhere, heard=105.5, since=105.0)
    heard.excuse(4.0, now=106.0)  # it spoke after the controller came back: that word starts its clocks anew
    assert (heard.silent(106.0), heard.since) == (0.0, 106.0)
    assert heard.silent(107.0) == 1.0
