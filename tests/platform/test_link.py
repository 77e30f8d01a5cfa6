"""A worker's end of the lifeline: it never waits for a controller that does not read, and loses no word to it."""

from __future__ import annotations

import itertools
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from shoal.protocol import codec, orders
from shoal.protocol.codec import LINE_LIMIT, decode, encode
from shoal.protocol.greeting import GREETING_LIMIT, VERSION, Challenge, Greeting, Hello, Welcome, knows, proof
from shoal.protocol.rendezvous import Meet, Met
from shoal.protocol.said import Beat, Finished, Moved, NotSaved, Phase, Said
from shoal.timeouts import Timeouts
from shoal.worker import calling
from shoal.worker import link as link_module
from shoal.worker.calling import read_line
from shoal.worker.link import Link

LONG = "x" * 20_000
ME = Greeting("w0", "n1", 1)


class Controller:
    """Lets one worker in, and reads only when told to. `full`: callers that it has no room for before that."""

    def __init__(self, secret: str = "s", *, trusting: bool = False, version: int = VERSION, full: int = 0) -> None:
        self.secret, self.trusting, self.version, self.full = secret, trusting, version, full
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()
        self.line: socket.socket | None = None
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            if self.full:
                self.full -= 1
                connection.close()
                continue
            connection.sendall(encode(Challenge(self.version, "n")))
            try:
                hello: Hello = decode(read_line(connection, GREETING_LIMIT, 60))
            except OSError:
                continue
            if not (self.trusting or knows(self.secret, hello, "n")):
                connection.close()
                continue
            self.line = connection
            connection.sendall(encode(Welcome(proof(self.secret, "controller", hello.nonce, "n"))))

    def heard(self, until: Callable[[Said], bool]) -> list[Said]:
        """All that is said from now on, up to a certain word."""
        assert self.line is not None
        self.line.settimeout(60)
        lines = self.line.makefile("rb")
        found: list[Said] = []
        while not found or not until(found[-1]):
            found.append(codec.said(lines.readline()))
        return found


def linked(controller: Controller, patience: float = 60.0) -> Link:
    link = Link(Timeouts(patience))
    link.orphaned = lambda: None  # this process goes on when the test is over
    link.connect(controller.address, "s", lambda: ME)
    return link


def returns(call: Callable[[], Any]) -> bool:
    """Whether a call comes to its end."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(60)
    return not thread.is_alive()


def last(message: Said) -> bool:
    return isinstance(message, Finished)


def test_a_controller_that_does_not_read_holds_nobody_up_and_then_hears_all_in_order() -> None:
    controller = Controller()
    link = linked(controller)
    count = 1000  # 20 MB: more than the kernel takes
    assert returns(lambda: [link.send(NotSaved(step, LONG)) for step in range(count)])
    link.send(Finished("w0", 0))
    assert not link.inbox.qsize()
    found = [message for message in controller.heard(last) if not isinstance(message, Beat)]
    assert [message.number for message in found if isinstance(message, NotSaved | Finished)] == list(range(count + 1))
    assert [message.steps for message in found if isinstance(message, NotSaved)] == list(range(count))


FROZEN = """
import socket, sys
from shoal.protocol import codec, greeting
from shoal.protocol.said import Finished, NotSaved
from shoal.worker.calling import read_line

listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
line, _ = listener.accept()
line.sendall(codec.encode(greeting.Challenge(greeting.VERSION, "n")))
hello = codec.decode(read_line(line, greeting.GREETING_LIMIT, 60))
line.sendall(codec.encode(greeting.Welcome(greeting.proof("s", "controller", hello.nonce, "n"))))
steps = []
for data in line.makefile("rb"):
    message = codec.said(data)
    if isinstance(message, NotSaved):
        steps.append(message.steps)
    if isinstance(message, Finished):
        break
print(steps == list(range(1000)), flush=True)
"""


def test_a_controller_whose_process_is_frozen_holds_nobody_up_and_loses_no_word() -> None:
    with subprocess.Popen([sys.executable, "-c", FROZEN], stdout=subprocess.PIPE, text=True) as controller:
        assert controller.stdout is not None
        address = ("127.0.0.1", int(controller.stdout.readline()))
        link = Link(Timeouts(60.0))
        link.orphaned = lambda: None
        link.connect(address, "s", lambda: ME)
        controller.send_signal(signal.SIGSTOP)
        try:
            assert returns(lambda: [link.send(NotSaved(step, LONG)) for step in range(1000)])
            link.send(Finished("w0", 0))
        finally:
            controller.send_signal(signal.SIGCONT)
        assert controller.stdout.readline() == "True\n"


def test_of_the_signs_of_life_that_wait_only_the_newest_is_said() -> None:
    controller = Controller()
    beats = 0
    again = threading.Event()

    def progress() -> Beat:
        nonlocal beats
        beats += 1
        if beats > 20:
            again.set()
        return Beat(Phase.INSIDE, beats)

    link = linked(controller, patience=1.0)
    for step in range(1000):
        link.send(NotSaved(step, LONG))
    link.progress = progress
    assert again.wait(60)
    link.progress = lambda: Beat(Phase.INSIDE, -7)
    found = controller.heard(lambda message: message == Beat(Phase.INSIDE, -7))
    said = [message.steps for message in found if message.__class__ is Beat and message.phase is Phase.INSIDE]
    assert len(said) < 10, "twenty were due before anything was read"
    assert said == [*sorted(said[:-1]), -7]


def test_what_waits_for_one_that_never_reads_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "WAITING", 1 << 20)
    dropped = threading.Event()
    controller = Controller()
    link = linked(controller)
    link.dropped = dropped.set
    for step in range(2000):
        link.send(NotSaved(step, LONG))
    assert dropped.wait(60)
    assert not link.ask(Meet("cell/0/0", 1, "world", 2))
    another = Controller()
    link.connect(another.address, "s", lambda: ME)
    link.send(Finished("w0", 0))
    found = [message.number for message in another.heard(last) if isinstance(message, NotSaved | Finished)]
    assert found == list(range(found[0], 2001)), "what one that is gone may not have heard is said to the next"
    assert found[0] < 2001 - link_module.KEPT + 1


@pytest.mark.parametrize(("published", "first"), [(-1, 0), (99, 100), (1500, 1025 - 64)])
def test_what_is_not_published_is_said_to_the_next(monkeypatch: pytest.MonkeyPatch, published: int, first: int) -> None:
    monkeypatch.setattr(link_module, "KEPT", 64)
    link = Link(Timeouts(60.0), publishes=True)
    link.orphaned = lambda: None
    link.connect(Controller().address, "s", lambda: ME)
    for step in range(1024):
        link.send(NotSaved(step, ""))
    link.published(published)
    link.send(Finished("w0", 0))
    another = Controller()
    link.connect(another.address, "s", lambda: ME)
    found = [message.number for message in another.heard(last) if isinstance(message, NotSaved | Finished)]
    assert found == list(range(first, 1025))


def test_what_is_kept_for_a_store_that_takes_nothing_is_bounded_and_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(link_module, "KEPT", 8)
    monkeypatch.setattr(link_module, "LARGEST", 1 << 20)
    link = Link(Timeouts(60.0), publishes=True)
    link.orphaned = lambda: None
    for step in range(100):
        link.send(NotSaved(step, LONG))
    another = Controller()
    link.connect(another.address, "s", lambda: ME)
    link.send(Finished("w0", 0))
    found = [message.number for message in another.heard(last) if isinstance(message, NotSaved | Finished)]
    assert found == list(range(found[0], 101))
    assert 0 < found[0] < 60
    assert caplog.text.count("dropped before they are published") == 1


def test_a_controller_that_lives_hears_that_its_worker_obeys_another() -> None:
    former, another = Controller(), Controller()
    link = linked(former)
    link.send(NotSaved(0, ""))
    link.connect(another.address, "s", lambda: ME)
    found = former.heard(lambda message: isinstance(message, Moved))
    assert [message for message in found if not isinstance(message, Beat)][-2:] == [NotSaved(0, ""), Moved()]


def test_a_controller_that_never_answers_keeps_nobody_from_its_successor() -> None:
    """Nor does the call to it that goes on undo what was agreed with the other when it wakes up at last."""
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        link = Link(Timeouts(60.0))
        link.orphaned = lambda: None
        waited = link.call(frozen.getsockname(), "s", lambda: ME)
        late, _ = frozen.accept()
        another = Controller()
        link.connect(another.address, "s", lambda: ME)
        assert waited.result(60) is None
        with late:
            late.sendall(encode(Challenge(VERSION, "n")))
            hello: Hello = decode(read_line(late, GREETING_LIMIT, 60))
            late.sendall(encode(Welcome(proof("s", "controller", hello.nonce, "n"))))
            assert isinstance(codec.said(read_line(late, LINE_LIMIT, 60)), Moved)
            assert late.recv(1) == b""
        link.send(Finished("w0", 0))
        assert [message for message in another.heard(last) if isinstance(message, Finished)]


def test_a_controller_that_does_not_know_the_secret_is_not_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calling, "PAUSE", 0.01)
    link = Link(Timeouts(60.0))
    link.orphaned = lambda: None
    with pytest.raises(OSError, match="did not let this worker in"):
        link.connect(Controller("guess").address, "s", lambda: ME)
    with pytest.raises(OSError, match="does not know this run's secret"):
        link.connect(Controller("guess", trusting=True).address, "s", lambda: ME)
    with pytest.raises(OSError, match=f"speak versions {VERSION} and 7 of the protocol"):
        link.connect(Controller(version=7).address, "s", lambda: ME)
    assert not link.ask(Meet("cell/0/0", 1, "world", 2))


def test_a_controller_without_room_is_called_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(calling, "time", SimpleNamespace(monotonic=time.monotonic, sleep=pauses.append))
    controller = Controller(full=4 * calling.TRIES)
    link = Link(Timeouts(60.0))
    link.orphaned = lambda: None
    link.connect(controller.address, "s", lambda: ME)
    link.send(Finished("w0", 0))
    assert [message for message in controller.heard(last) if isinstance(message, Finished)]
    assert len(set(pauses)) == 4 * calling.TRIES, "callers that were turned away together come back together"


def test_a_controller_that_never_has_room_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count()
    monkeypatch.setattr(calling, "time", SimpleNamespace(monotonic=lambda: next(seconds), sleep=lambda pause: None))
    with pytest.raises(OSError, match="did not let this worker in: the connection was closed"):
        calling.call(Controller(full=10**9).address, "s", lambda: ME, 100.0)


def test_orders_that_are_urgent_never_reach_the_inbox_and_junk_ends_the_connection() -> None:
    controller, dropped = Controller(), threading.Event()
    link = linked(controller)
    link.urgent, link.dropped = (lambda order: isinstance(order, Met)), dropped.set
    while controller.line is None:
        threading.Event().wait(0.01)
    controller.line.sendall(encode(Met(1, go=True)) + encode(orders.Stop(1, (), 5)) + b"[" * 100_000 + b"\n")
    assert dropped.wait(60)
    assert link.inbox.get(timeout=60) == orders.Stop(1, (), 5)
    assert link.inbox.empty()


def test_who_has_neither_a_controller_nor_progress_ends() -> None:
    steps, ended = iter(range(5)), threading.Event()
    link = Link(Timeouts(0.05))
    link.progress = lambda: Beat(Phase.INSIDE, next(steps, 4))
    link.orphaned = ended.set
    assert ended.wait(60)
    assert next(steps, None) is None, "not while steps are committed"
