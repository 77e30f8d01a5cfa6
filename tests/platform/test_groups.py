"""Meeting before a group is built: all go in, or none does."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist

from shoal.control.rendezvous import Answers
from shoal.control.rendezvous import Rendezvous as Controller
from shoal.protocol.rendezvous import Meet, Met, Question
from shoal.testing import fakenccl
from shoal.timeouts import Timeouts
from shoal.worker.groups import GROUPS, Groups, Stopped, leave_world
from shoal.worker.rendezvous import OpenQuestion, Rendezvous
from shoal.worker.sockets import Sockets
from shoal.worker.step import world_broke
from shoal.worker.transport import Communicator

SIZE = 3


class Hub:
    """A controller's rendezvous, with a worker in each thread instead of behind a lifeline."""

    def __init__(self) -> None:
        self.controller, self.lock = Controller(), threading.Lock()
        self.workers = {f"w{index}": Rendezvous(partial(self.say, f"w{index}")) for index in range(SIZE)}
        self.groups: list[Groups] = []
        self.said: list[tuple[str, Question]] = []
        self.number = -1
        self.open()

    def open(self) -> None:
        self.number += 1
        self.deliver(self.controller.open("cell", self.number, self.workers))
        for worker in self.workers.values():
            worker.scope = f"cell/{self.number}"

    def say(self, worker: str, question: Question) -> bool:
        with self.lock:
            self.said.append((worker, question))
            self.deliver(self.controller.hear(worker, question))
        return True

    def deliver(self, answers: Answers) -> None:
        for worker, answer in answers:
            assert self.workers[worker].heard(answer)


@pytest.fixture
def hub() -> Hub:
    return Hub()


Rank = Callable[[Groups, int], object]


def together(hub: Hub, do: Rank, stop: Mapping[int, float | threading.Event], build: float = 10.0) -> list[object]:
    """Run `do` in a thread a rank; rank r is told to stop after `stop[r]` seconds, by default one, or by an event."""
    found: list[object] = [None] * SIZE
    start = time.monotonic()

    def rank(index: int) -> None:
        when = stop.get(index, 1.0)
        stopped = when.is_set if isinstance(when, threading.Event) else lambda: time.monotonic() - start > when
        groups = Groups(20.0, build, stopped, hub.workers[f"w{index}"])
        hub.groups.append(groups)
        try:
            found[index] = do(groups, index)
        except Stopped:
            found[index] = "left"

    threads = [threading.Thread(target=rank, args=(index,)) for index in range(SIZE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    return found


def build(groups: Groups, key: str, index: int) -> Any:
    (group,) = groups.build(key, SIZE, [(key, index, SIZE)])
    return group


@pytest.mark.parametrize("trial", range(12))
def test_nobody_goes_in_alone(hub: Hub, trial: int) -> None:
    dice = random.Random(trial)

    def enter(groups: Groups, index: int) -> str:
        time.sleep(dice.uniform(0, 0.02))
        groups.meet("race", SIZE)
        return "in"

    found = together(hub, enter, {**dict.fromkeys(range(SIZE), 0.3), dice.randrange(SIZE): dice.uniform(0, 0.03)})
    assert found in (["in"] * SIZE, ["left"] * SIZE)


def test_who_turns_round_at_the_meeting_leaves_the_groups_that_nobody_has_connected(hub: Hub) -> None:
    def enter(groups: Groups, index: int) -> object:
        if index == 2:
            return groups._rendezvous.turn("turned", SIZE).go(20.0)
        return build(groups, "turned", index)

    assert together(hub, enter, dict.fromkeys(range(SIZE), 0.3)) == ["left", "left", False]
    assert all(any(isinstance(one, Communicator) for one in groups._left) for groups in hub.groups[:2])
    for groups in hub.groups:
        groups.retire()
    for thread in threading.enumerate():
        if thread.name == "retire":
            thread.join(240)
            assert not thread.is_alive()


def test_sums_over_groups_whose_members_ask_for_their_neighbours_alone(hub: Hub) -> None:
    def add(groups: Groups, index: int) -> tuple[float, float]:
        both = groups.build("all", SIZE, [("cross/0", index, SIZE), ("all", (index + 1) % SIZE, SIZE)])
        tensors = torch.tensor([float(index)]), torch.tensor([10.0 * index])
        for group, tensor in zip(both, tensors, strict=True):
            groups.sum(group, tensor)
        return float(tensors[0]), float(tensors[1])

    assert together(hub, add, dict.fromkeys(range(SIZE), 20.0)) == [(3.0, 30.0)] * SIZE
    asked = [question for _, question in hub.said if isinstance(question, Meet)]
    assert len(asked) == len(hub.said) == SIZE, "one question a worker, and one answer"
    assert all(len(question.puts) == 2 for question in asked)


def test_who_waits_for_one_that_takes_no_part_walks_away_on_the_flag(hub: Hub) -> None:
    """And what it left behind is still there for the others: who was absent adds it up. Were it not to come at all,
    freeing the groups would last five times their timeout: so long gloo's threads wait for a first connection."""
    flag, waiting, gone = threading.Event(), threading.Barrier(SIZE), threading.Barrier(SIZE)

    def started() -> None:
        waiting.wait(60)

    def add(groups: Groups, index: int) -> object:
        group, total = build(groups, "absent", index), torch.ones(1)
        groups.leave(group)
        if index == 0:
            waiting.wait(60)
            flag.set()
            gone.wait(60)
            groups.sum(group, total)
            return total.item()
        try:
            groups.sum(group, total, started=started)
        finally:
            gone.wait(60)
        return "not told"

    assert together(hub, add, {0: 60.0, 1: flag, 2: flag}) == [float(SIZE), "left", "left"]


def test_a_group_that_a_frozen_member_does_not_enter_is_a_fault_of_communication(hub: Hub) -> None:
    def enter(groups: Groups, index: int) -> object:
        if index == 2:
            return groups.meet("frozen", SIZE)
        try:
            return groups.sum(build(groups, "frozen", index), torch.ones(1))
        except RuntimeError as error:
            return world_broke(error) or str(error)

    assert together(hub, enter, dict.fromkeys(range(SIZE), 60.0), build=1.0) == [True, True, None]


def test_who_connects_a_group_of_a_membership_that_is_over_is_freed_at_once(hub: Hub) -> None:
    def enter(groups: Groups, index: int) -> object:
        if index == 2:
            groups.meet("over", SIZE)
            time.sleep(0.5)
            return hub.open()
        try:
            return groups.sum(build(groups, "over", index), torch.ones(1))
        except RuntimeError as error:
            return world_broke(error) or str(error), "over" in str(error)

    assert together(hub, enter, dict.fromkeys(range(SIZE), 60.0), build=1000.0) == [(True, True), (True, True), None]


def test_a_controller_that_dies_frees_who_waits_there(hub: Hub) -> None:
    def enter(groups: Groups, index: int) -> object:
        if index == 2:
            time.sleep(0.5)
            return [worker.lost() for worker in hub.workers.values()] and None
        try:
            return groups.meet("dying", SIZE)
        except RuntimeError as error:
            return world_broke(error)

    assert together(hub, enter, dict.fromkeys(range(SIZE), 60.0)) == [True, True, None]


def test_an_answer_that_is_said_to_be_there_can_be_taken() -> None:
    """It is settled in the link's thread while the training thread looks, which then waits for nothing any more."""

    class Watched(threading.Event):
        def set(self) -> None:
            seen.append(answer.settled())
            super().set()

    seen: list[bool] = []
    answer = OpenQuestion()
    answer._answered = Watched()
    answer.settle(Met(0, True))
    assert seen == [False]
    assert answer.settled()
    assert answer.go(0.0)


def test_the_default_world_and_another_group_in_it(hub: Hub) -> None:
    """torch asks a store for nothing that is not kept over the lifeline."""

    def world(groups: Groups, index: int) -> float:
        groups.world("world", 0, 1)
        group = dist.new_group(backend="gloo")
        tensor = torch.ones(2)
        dist.all_reduce(tensor, group=group)
        leave_world()
        return float(tensor.sum())

    assert world(Groups(20.0, 10.0, lambda: False, hub.workers["w0"]), 0) == 2.0


@pytest.mark.fakenccl
@pytest.mark.filterwarnings("error:Set timeout")
def test_torch_is_not_asked_for_a_timeout_that_it_would_only_warn_of(hub: Hub) -> None:
    fakenccl.register()
    transport = fakenccl.transport(Timeouts(20.0))
    try:
        Groups(20.0, 10.0, lambda: False, hub.workers["w0"], transport).world("world", 0, 1)
        assert dist.get_backend() == fakenccl.NAME
    finally:
        leave_world()


def test_of_what_is_opened_while_a_group_is_built_only_its_own_connections_are_cut(hub: Hub) -> None:
    """Rank 2 takes no part in a sum that the others block in; meanwhile somebody else is connected too."""
    sockets, built, cut = Sockets(), threading.Barrier(SIZE + 1), threading.Event()

    def add(groups: Groups, index: int) -> object:
        groups.meet("cell", SIZE)
        store = dist.PrefixStore("cell", groups._keys(GROUPS))
        # as the world, connected at once
        group: Any = dist.ProcessGroupGloo(store, index, SIZE, timedelta(seconds=100))
        built.wait()
        if index == 2:
            return cut.wait(60)
        try:
            return group.allreduce([torch.ones(1)]).wait()
        except RuntimeError as error:
            return world_broke(error)

    found: list[object] = []
    limits = dict.fromkeys(range(SIZE), 200.0)
    sockets.mark()
    thread = threading.Thread(target=lambda: found.extend(together(hub, add, limits, build=100.0)))
    thread.start()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as theirs:
        other, _ = server.accept()
        local, far = socket.socketpair()
        built.wait()
        sockets.taken(lambda address: any(one.mentioned(GROUPS, address) for one in hub.groups))
        sockets.cut()
        cut.set()
        thread.join(60)
        assert found == [True, True, True]
        for one, two in ((theirs, other), (local, far)):
            one.sendall(b"still here")
            assert two.recv(100) == b"still here"
            one.close()
            two.close()


def test_groups_listen_on_the_interface_that_holds_the_nodes_address(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = Groups(20.0, 10.0, lambda: False, hub.workers["w0"])
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert len(groups._gloo.options()._devices) == 1
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuchinterface")
    with pytest.raises(RuntimeError, match="nosuchinterface"):
        groups._gloo.options()


def test_who_is_alone_walks_away_on_the_flag_too(hub: Hub) -> None:
    off = False
    groups, total = Groups(20.0, 10.0, lambda: off, hub.workers["w0"]), torch.ones(1)
    groups.sum(None, total)
    off = True
    with pytest.raises(Stopped):
        groups.sum(None, total)
    assert total.item() == 1.0
