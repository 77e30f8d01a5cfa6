"""A worker's end of the lifeline: it never waits for a controller that does not read, and loses no word to it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from shoal.timeouts import Timeouts
from shoal.wire import GREETING_LIMIT, answers, decode, encode, proof, read_line
from shoal.worker import link as link_module
from shoal.worker.link import Link

LONG = {"type": "commit", "text": "x" * 20_000}


class Controller:
    """Lets one worker in, and reads only when told to."""

    def __init__(self, secret: str = "s", *, trusting: bool = False) -> None:
        self.secret, self.trusting = secret, trusting
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()
        self.line: socket.socket | None = None
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            connection.sendall(encode({"type": "challenge", "nonce": "n"}))
            hello = decode(read_line(connection, GREETING_LIMIT, 20))
            if not (self.trusting or answers(hello, self.secret, "n")):
                connection.close()
                continue
            connection.sendall(
                encode({"type": "welcome", "proof": proof(self.secret, "controller", hello["nonce"], "n")})
            )
            self.line = connection

    def heard(self, until: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """All that is said from now on, up to a certain word."""
        assert self.line is not None
        self.line.settimeout(60)
        lines, found = self.line.makefile("rb"), []
        while not found or not until(found[-1]):
            found.append(decode(lines.readline()))
        return found


def linked(controller: Controller, patience: float = 60.0) -> Link:
    link = Link(Timeouts(patience))
    link.orphaned = lambda: None  # this process goes on when the test is over
    link.connect(controller.address, "s", lambda: {"type": "hello"})
    return link


def returns(call: Callable[[], Any]) -> bool:
    """Whether a call comes to its end."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(60)
    return not thread.is_alive()


def test_a_controller_that_does_not_read_holds_nobody_up_and_then_hears_all_in_order() -> None:
    controller = Controller()
    link = linked(controller)
    count = 1000  # 20 MB: more than the kernel takes
    assert returns(lambda: [link.send({**LONG, "step": step}) for step in range(count)])
    link.send({"type": "last"})
    assert not link.inbox.qsize()
    found = [message for message in controller.heard(lambda m: m["type"] == "last") if m_is_no_beat(message)]
    assert [message["seq"] for message in found] == list(range(count + 1))
    assert [message["step"] for message in found[:-1]] == list(range(count))


def m_is_no_beat(message: dict[str, Any]) -> bool:
    return bool(message["type"] != "beat")


def test_of_the_signs_of_life_that_wait_only_the_newest_is_said() -> None:
    controller = Controller()
    beats = 0
    again = threading.Event()

    def progress() -> dict[str, Any]:
        nonlocal beats
        beats += 1
        if beats > 20:
            again.set()
        return {"phase": "training", "steps": beats}

    link = linked(controller, patience=1.0)
    for _ in range(1000):
        link.send(LONG)
    link.progress = progress
    assert again.wait(60)
    link.progress = lambda: {"phase": "training", "steps": -7}
    said = [
        m["steps"] for m in controller.heard(lambda m: m.get("steps") == -7) if not m_is_no_beat(m) and "steps" in m
    ]
    assert len(said) < 10, "twenty were due before anything was read"
    assert said == [*sorted(said[:-1]), -7]


def test_what_waits_for_one_that_never_reads_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "WAITING", 1 << 20)
    dropped = threading.Event()
    controller = Controller()
    link = linked(controller)
    link.dropped = dropped.set
    said = [link.send(LONG) for _ in range(2000)]
    assert said[0]
    assert not said[-1]
    assert dropped.wait(60)
    another = Controller()
    link.connect(another.address, "s", lambda: {"type": "hello"})
    link.send({"type": "last"})
    found = [m["seq"] for m in another.heard(lambda m: m["type"] == "last") if m_is_no_beat(m)]
    assert found == list(range(found[0], 2001)), "what one that is gone may not have heard is said to the next"
    assert found[0] < 2001 - link_module.KEPT + 1


def test_a_controller_that_does_not_know_the_secret_is_not_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "PAUSE", 0.01)
    link = Link(Timeouts(60.0))
    link.orphaned = lambda: None
    with pytest.raises(OSError, match="did not let this worker in"):
        link.connect(Controller("guess").address, "s", lambda: {"type": "hello"})
    with pytest.raises(OSError, match="does not know this run's secret"):
        link.connect(Controller("guess", trusting=True).address, "s", lambda: {"type": "hello"})
    assert not link.send({"type": "commit"})


def test_orders_that_are_urgent_never_reach_the_inbox_and_junk_ends_the_connection() -> None:
    controller, dropped = Controller(), threading.Event()
    link = linked(controller)
    link.urgent, link.dropped = (lambda order: order["type"] == "met"), dropped.set
    while controller.line is None:
        threading.Event().wait(0.01)
    controller.line.sendall(encode({"type": "met"}) + encode({"type": "stop"}) + b"[" * 100_000 + b"\n")
    assert dropped.wait(60)
    assert link.inbox.get(timeout=10) == {"type": "stop"}
    assert link.inbox.empty()


def test_who_has_neither_a_controller_nor_progress_ends() -> None:
    steps, ended = iter(range(5)), threading.Event()
    link = Link(Timeouts(0.05))
    link.progress = lambda: {"phase": "training", "steps": next(steps, 4)}
    link.orphaned = ended.set
    assert ended.wait(60)
    assert next(steps, None) is None, "not while steps are committed"
