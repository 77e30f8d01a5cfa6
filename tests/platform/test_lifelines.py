"""Lifelines over real sockets: order of words, death, silence towards strangers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shoal.control.lifelines import Lifelines, Line
from shoal.wire import decode, encode

WHO = {"worker": "w0", "node": "n1", "pid": 1, "home": [0, 1]}
DOING = {"seat": None, "attempt": -1, "generation": -1, "phase": "spare", "steps": -1}
HELLO = {"type": "hello", "secret": "s", "copies": {}, **WHO, **DOING}


class Ear:
    """Hears what the controller would."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.gaps: list[float] = []
        self.failures: list[Exception] = []
        heard = (self.joined, self.said, self.gone, self.failures.append)
        self.lines = Lifelines("s", *heard, self.gaps.append)

    def joined(self, line: Line) -> None:
        self.heard.append(("joined", line.worker, line.home))

    def said(self, line: Line, message: dict[str, Any]) -> None:
        self.heard.append(("said", message["type"]))

    def gone(self, line: Line, why: str) -> None:
        self.heard.append(("gone", line.worker))

    async def until(self, count: int) -> None:
        while len(self.heard) < count:
            await asyncio.sleep(0.01)


async def talk(ear: Ear, *messages: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    address = await ear.lines.open("127.0.0.1")
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"".join(messages))
    await writer.drain()
    return reader, writer


def test_everything_said_is_heard_before_the_death() -> None:
    async def scene() -> list[Any]:
        ear = Ear()
        commits = [encode({"type": "commit", "steps": step}) for step in range(3)]
        _, writer = await talk(ear, encode(HELLO), encode({"type": "beat", "phase": "training", "steps": 7}), *commits)
        writer.close()
        await asyncio.wait_for(ear.until(5), 10)
        return list(ear.heard)

    said = ("said", "commit")
    assert asyncio.run(scene()) == [("joined", "w0", (0, 1)), said, said, said, ("gone", "w0")]


@pytest.mark.parametrize("error", [OSError(28, "No space left"), ValueError("bad"), KeyError("x"), AssertionError()])
def test_what_the_controller_fails_over_is_not_the_workers_fault(error: Exception) -> None:
    class Clumsy(Ear):
        def joined(self, line: Line) -> None:
            super().joined(line)
            raise error

        def said(self, line: Line, message: dict[str, Any]) -> None:
            super().said(line, message)
            raise error

    async def scene() -> tuple[list[Any], list[Exception], bool]:
        ear = Clumsy()
        reader, writer = await talk(ear, encode(HELLO), encode({"type": "commit"}), encode({"type": "ack"}))
        await asyncio.wait_for(ear.until(3), 10)
        ear.lines.send("w0", {"type": "stop"})
        assert await asyncio.wait_for(reader.readline(), 10)
        writer.close()
        await asyncio.wait_for(ear.until(4), 10)
        return list(ear.heard), list(ear.failures), bool(ear.lines.lines)

    heard, failures, still = asyncio.run(scene())
    assert heard == [("joined", "w0", (0, 1)), ("said", "commit"), ("said", "ack"), ("gone", "w0")]
    assert failures == [error] * 3
    assert not still


def test_orders_reach_the_worker() -> None:
    async def scene() -> dict[str, Any]:
        ear = Ear()
        reader, _ = await talk(ear, encode(HELLO))
        await asyncio.wait_for(ear.until(1), 10)
        ear.lines.send("w0", {"type": "stop", "generation": 3})
        ear.lines.send("nobody", {"type": "stop"})
        return decode(await asyncio.wait_for(reader.readline(), 10))

    assert asyncio.run(scene()) == {"type": "stop", "generation": 3}


@pytest.mark.parametrize(
    "first", [encode(HELLO | {"secret": "guess"}), encode({"type": "commit"}), b"\x80\x04not json\n", b"[1]\n"]
)
def test_a_stranger_is_told_nothing(first: bytes) -> None:
    async def scene() -> tuple[bytes, list[Any]]:
        ear = Ear()
        reader, _ = await talk(ear, first)
        return await asyncio.wait_for(reader.read(), 10), list(ear.heard)

    assert asyncio.run(scene()) == (b"", [])


def test_a_second_worker_of_the_same_name_is_refused() -> None:
    async def scene() -> tuple[bytes, list[Any]]:
        ear = Ear()
        first = await talk(ear, encode(HELLO))  # held: a forgotten connection closes itself
        await asyncio.wait_for(ear.until(1), 10)
        reader, _ = await talk(ear, encode(HELLO))
        answer = await asyncio.wait_for(reader.read(), 10), list(ear.heard)
        first[1].close()
        return answer

    assert asyncio.run(scene()) == (b"", [("joined", "w0", (0, 1))])


def test_what_the_controller_was_too_late_to_hear_is_no_silence() -> None:
    nowhere: Any = None
    line = Line("w0", "n1", 1, None, nowhere, heard=100.0, since=90.0)
    line.excuse(4.0, now=106.0)
    assert (line.silent(106.0), line.since) == (2.0, 94.0)
    heard = Line("w0", "n1", 1, None, nowhere, heard=105.5, since=105.0)
    heard.excuse(4.0, now=106.0)  # it spoke after the controller came back: that word starts its clocks anew
    assert (heard.silent(106.0), heard.since) == (0.0, 106.0)
    assert heard.silent(107.0) == 1.0
