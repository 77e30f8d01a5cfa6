"""Copies of snapshots on other nodes: who keeps them, and going on from them when every holder of a shard is gone."""

from __future__ import annotations

import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shoal.decisions.actions import CopyTo, Form, Generation, Pause, Recall, Rewind
from shoal.decisions.events import Joined, Lost, Preemption
from shoal.decisions.modes import Gathering
from shoal.decisions.recall import keepers, newest
from shoal.decisions.shape import Shape
from shoal.decisions.state import State
from shoal.plan import Seat
from shoal.protocol import codec
from shoal.protocol.copying import Enter, Keep, Whole, signed
from shoal.protocol.greeting import VERSION, Challenge, Refused, nonce
from shoal.protocol.orders import Keeper
from shoal.protocol.said import Committed, CopyHeld, Ready
from shoal.worker import copies as copies_module
from shoal.worker.copies import CopyServer, LostCopy
from shoal.worker.courier import recall
from shoal.worker.peers import push
from shoal.worker.shelf import Held
from tests.support.backends import BOTH_LONG
from tests.support.decisions import Stepped
from tests.support.lab import Lab, alone, hurry, lab

EVERY = 5


def started(nodes: list[str], spares: list[str], cells: int = 1, checkpoint: int = 0) -> Stepped:
    """A run of `cells` x 2 workers w0, w1, ... on `nodes`, with spares s0, s1, ..."""
    homes = {Seat(i // 2, i % 2): f"w{i}" for i in range(2 * cells)}
    run = Stepped(
        State.new(Shape(cells, 2, 100, lambda step, workers: 4, recall=True), homes, checkpoint), in_place=True
    )
    for i, node in enumerate(nodes):
        run.feed(Joined(f"w{i}", node, Seat(i // 2, i % 2)))
    for i, node in enumerate(spares):
        run.feed(Joined(f"s{i}", node))
    for i in range(2 * cells):
        run.feed(Ready(f"w{i}", i // 2, 0))
    return run


def test_a_keeper_is_never_on_a_node_where_the_shard_lives() -> None:
    run = started(["a", "a", "b", "b"], ["a", "c", "d"], cells=2)
    (order,) = [action for action in run.actions if isinstance(action, CopyTo)]
    assert order.keepers == {"w0": "s1", "w1": "s2"}
    changed = run.feed(Lost("s2", "gone"))
    assert [a.keepers for a in changed if isinstance(a, CopyTo)] == [{"w0": "s1", "w1": "s1"}]
    run.feed(Lost("s1", "gone"))
    assert keepers(run.state) == {}
    assert [a.keepers for a in run.feed(Joined("s3", "e")) if isinstance(a, CopyTo)] == [{"w0": "s3", "w1": "s3"}]


def test_who_stays_keeps_its_own_copy_if_nobody_else_can_while_a_node_goes() -> None:
    run = started(["a", "b"], [])
    assert keepers(run.state) == {"w0": "w1", "w1": "w0"}
    actions = run.feed(Preemption("a", 1e9))
    (order,) = [action for action in actions if isinstance(action, CopyTo)]
    assert order.keepers == {"w0": "w1", "w1": "w1"}
    assert actions.index(order) < next(at for at, action in enumerate(actions) if isinstance(action, Pause))
    for rank in (0, 1):
        run.feed(CopyHeld("w1", rank, 10, 0))
    run.feed(Lost("w0", "gone"))
    assert newest(run.state) == Recall(10, ("w1", "w1"))


def test_only_steps_of_which_every_shard_has_a_copy_count() -> None:
    run = started(["a", "a"], ["b", "c"])
    for rank, steps in ((0, 5), (1, 5), (0, 10), (0, 15)):
        run.feed(CopyHeld("s0", rank, steps, 0))
    assert newest(run.state) is None  # of rank 0 only the two newest are held
    run.feed(CopyHeld("s1", 1, 10, 0))
    assert newest(run.state) == Recall(10, ("s0", "s1"))
    run.feed(CopyHeld("s1", 1, 15, run.state.copies.era + 1))
    assert newest(run.state) == Recall(10, ("s0", "s1"))


def test_copies_are_gone_back_to_and_what_came_after_them_counts_no_more() -> None:
    run = started(["a", "a"], ["b", "b", "c"])
    for rank in (0, 1):
        run.feed(CopyHeld("s2", rank, 10, 0))
    run.feed(CopyHeld("s2", 0, 15, 0))
    run.feed(Committed("w0", 0, 17))
    first = run.feed(Lost("w0", "gone"))
    actions = first + run.feed(Lost("w1", "gone"))
    assert [(a.steps, a.lost) for a in actions if isinstance(a, Rewind)] == [(10, 7)]
    (form,) = [a for a in actions if isinstance(a, Form)]
    assert (form.members, form.restore, form.keep) == (("s0", "s1"), None, False)
    assert form.recall is not None
    assert (form.recall.steps, form.recall.keepers) == (10, ("s2", "s2"))
    assert run.state.copies.held["s2"] == {0: (10,), 1: (10,)}
    run.feed(Ready("s0", 0, form.attempt))
    (generation,) = [a for a in run.feed(Ready("s1", 0, form.attempt)) if isinstance(a, Generation)]
    assert (generation.steps, generation.heals) == (10, ())


def test_copies_that_are_lost_meanwhile_leave_the_checkpoint() -> None:
    run = started(["a", "a"], ["b"], checkpoint=4)
    for rank in (0, 1):
        run.feed(CopyHeld("s0", rank, 10, 0))
    run.feed(Lost("w0", "gone"))
    waiting = run.feed(Lost("w1", "gone"))
    assert [a for a in waiting if isinstance(a, Form)] == []  # one spare is too few
    assert (run.state.committed, run.state.mode) == (10, Gathering(recalled=10))
    actions = run.feed(Lost("s0", "gone"))
    assert [a.steps for a in actions if isinstance(a, Rewind)] == [4]
    assert run.feed(Joined("s1", "c")) == []
    (form,) = [a for a in run.feed(Joined("s2", "c")) if isinstance(a, Form)]
    assert (form.restore, form.recall) == (4, None)


def challenged(line: socket.socket) -> str:
    """The nonce of a keeper that was called."""
    challenge = codec.copying(line.makefile("rb").readline())
    assert isinstance(challenge, Challenge)
    return challenge.nonce


def asking(copies: CopyServer, asked: Keep | Enter, secret: str = "s", other: str | None = None) -> socket.socket:
    """A connection to a keeper that was asked for something, after its nonce or an `other`."""
    line = socket.create_connection(copies.address, timeout=60)
    sent = challenged(line)
    line.sendall(codec.encode(signed(secret, asked, other or sent)))
    return line


def closed(line: socket.socket) -> bool:
    """A caller was told nothing more."""
    with line:
        try:
            return line.recv(100) == b""
        except ConnectionResetError:
            return True


ENTER, KEEP = Enter(), Keep(1, 6, 0, 0, 2, 0)


def test_who_does_not_know_the_secret_is_told_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    heard: list[tuple[int, ...]] = []
    copies = CopyServer("127.0.0.1", lambda *what: heard.append(what), timeout=60, secret=lambda: "s")
    keeper = Keeper(copies.address)
    push(Held([torch.ones(10)], {}), 1, 5, keeper, "s", timeout=60)
    heard.clear()
    assert closed(asking(copies, ENTER, secret="guess"))
    assert closed(asking(copies, ENTER, other=nonce()))
    for size in (-1, 10**30):
        assert closed(asking(copies, replace(KEEP, bytes=size)))
    for junk in (
        b"GET / HTTP/1.0\r\n\r\n",
        b"[" * 4000 + b"\n",
        b"a" * 5000,
        b"Enter 5\n",
        b"Enter {}\n",
        b"Look {}\n",
        codec.encode(Whole(5, 0)),
        codec.encode(ENTER),
        codec.encode(KEEP).replace(b"0", b'"x"'),
        b"\xff\n",
    ):
        line = socket.create_connection(copies.address, timeout=60)
        challenged(line)
        line.sendall(junk)
        assert closed(line)
    assert heard == []
    assert recall([torch.zeros(10)], 1, 5, keeper, "s", timeout=60).total() == 40
    assert "Traceback" not in "".join(capfd.readouterr())


def test_whoever_speaks_another_version_is_told_so() -> None:
    copies = CopyServer("127.0.0.1", lambda *what: None, timeout=60, secret=lambda: "s")
    with asking(copies, replace(ENTER, version=VERSION + 1)) as line, line.makefile("rb") as said:
        answer = codec.copying(said.readline())
    assert isinstance(answer, Refused)
    assert f"{VERSION} and {VERSION + 1}" in answer.reason
    with socket.create_server(("127.0.0.1", 0)) as other:

        def challenge() -> None:
            with other.accept()[0] as line:
                line.sendall(codec.encode(Challenge(VERSION + 1, nonce())))

        threading.Thread(target=challenge, daemon=True).start()
        with pytest.raises(ValueError, match=f"{VERSION} and {VERSION + 1}"):
            push(Held([torch.ones(1)], {}), 1, 5, Keeper(other.getsockname()), "s", timeout=60)


def test_callers_that_say_nothing_are_few_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies_module, "GREETING_TIME", 1.0)
    monkeypatch.setattr(copies_module, "CALLERS", 3)
    copies = CopyServer("127.0.0.1", lambda *what: None, timeout=60, secret=lambda: "s")
    held = [socket.create_connection(copies.address, timeout=60) for _ in range(3)]
    for line in held:
        challenged(line)
    assert closed(socket.create_connection(copies.address, timeout=60))
    assert all(closed(line) for line in held)
    push(Held([torch.ones(10)], {}), 1, 5, Keeper(copies.address), "s", timeout=60)


def test_a_copy_comes_back_as_it_was_and_only_to_who_knows_the_secret() -> None:
    heard: list[tuple[int, ...]] = []
    copies = CopyServer("127.0.0.1", lambda *what: heard.append(what), timeout=60, secret=lambda: "s")
    keeper = Keeper(copies.address, era=3)
    state = [torch.randn(1000), torch.arange(7, dtype=torch.int64), torch.zeros(0), torch.randn(3, 5).bfloat16()]
    for steps in (5, 10, 15):
        push(Held(state, {}), 1, steps, keeper, "s", timeout=60)
    assert heard == [(1, 5, 3, 0), (1, 10, 3, 0), (1, 15, 3, 0)]
    back = [torch.full_like(tensor, 9) for tensor in state]
    assert recall(back, 1, 10, keeper, "s", timeout=60).total() == sum(t.nbytes for t in state)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(back, state, strict=True))
    with pytest.raises(LostCopy):
        recall(back, 1, 5, keeper, "s", timeout=60)
    with pytest.raises(LostCopy):
        recall(back, 1, 10, keeper, "guess", timeout=60)
    with asking(copies, Keep(2, 5, 0, 100, 2, 0)) as line:  # half a copy is none
        line.sendall(b"12345")
    with pytest.raises(LostCopy):
        recall(back, 2, 5, keeper, "s", timeout=60)
    assert heard[-1] == (1, 15, 3, 0)


def ran_on(one: Lab, steps: int, rungs: list[str]) -> int:
    """The run ended with the undisturbed run's losses by these rungs; the steps it lost."""
    one.until(lambda: len(one.events("decision")) >= len(rungs))
    hurry(one)
    run = one.finished()
    assert (run["status"], run["steps"]) == ("done", steps), one.story()
    assert [line["loss"] for line in one.steps()] == pytest.approx(alone(steps).losses, rel=1e-4)
    assert [event["rung"] for event in one.events("decision")] == rungs, one.story()
    return int(run["steps_lost"])


@BOTH_LONG
def test_the_only_cell_dies_with_its_node_and_goes_on_from_another_nodes_memory(tmp_path: Path, backend: str) -> None:
    with lab(tmp_path, {"n0": 2, "n1": 3}, cells=1, steps=80, snapshots={"every": EVERY}, backend=backend) as one:
        one.full(3 * EVERY, spares=3)
        one.kill_node(one.members(0)[0].rpartition("@")[2])
        assert 0 <= ran_on(one, 80, ["recall"]) < 2 * EVERY


def test_workers_agree_on_how_often_they_copy(tmp_path: Path) -> None:
    """By what copies cost: had they not copied at the same steps, there would be nothing to go back to but the start.
    No checkpoint was ever made before: nothing was read from the storage."""
    with lab(tmp_path, {"n0": 2, "n1": 3}, cells=1, steps=60, snapshots={"every": "auto"}) as one:
        one.full(15, spares=3)
        one.kill_node(one.members(0)[0].rpartition("@")[2])
        ran_on(one, 60, ["recall"])
        assert [event["step"] for event in one.events("checkpoint")] == [60]


@BOTH_LONG
def test_every_cell_dies_at_once_and_then_the_keepers_node(tmp_path: Path, backend: str) -> None:
    nodes = {"n0": 2, "n1": 2, "n2": 2, "n3": 2}
    with lab(tmp_path, nodes, cells=2, steps=120, snapshots={"every": EVERY}, backend=backend) as one:
        one.full(3 * EVERY, spares=4)
        for cell in (0, 1):
            one.kill_node(one.members(cell)[0].rpartition("@")[2])
        one.full(2 * EVERY)
        for cell in (0, 1):
            for worker in one.members(cell):
                one.kill(worker)
        one.until(lambda: len(one.events("decision")) >= 2)
        lost = ran_on(one, 120, ["recall", "restore"])
        assert lost >= 3 * EVERY  # what the second time undid: there was no checkpoint
