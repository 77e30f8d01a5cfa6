"""What `shoal chaos` does to a run, each fault by itself, on processes that do nothing else."""

from __future__ import annotations

import ctypes
import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from shoal.chaos import passing
from shoal.chaos.passing import Passing
from shoal.chaos.plan import FAULTS, WITHOUT_VICTIM, Fault, Seen, choose_victim
from shoal.chaos.strike import LocalTarget, Target, strike_run, unleash
from shoal.cluster import namespaces
from shoal.cluster.state import ClusterState, NodeState, save
from shoal.record import slow
from shoal_core.errors import UserError

APPENDS = """
import os, sys
for _ in sys.stdin:
    try:
        with open(sys.argv[1], "ab", buffering=0) as file:
            file.write(b"x")
        print("written", flush=True)
    except OSError as error:
        print(error.strerror, flush=True)
"""


@contextmanager
def writer(path: Path) -> Iterator[tuple[int, Callable[[], str]]]:
    """A process that writes a byte when asked; its id, and how to ask: says what became of it."""
    command = [sys.executable, "-c", APPENDS, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def ask() -> str:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        yield process.pid, ask
        process.kill()


def stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_no_file_of_a_process_grows_on_a_full_disk_and_then_it_does(tmp_path: Path) -> None:
    with writer(tmp_path / "file") as (pid, ask):
        assert ask() == "written"
        before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        with passing.full_disk([pid, 2**22 + 1]):  # the other is gone already
            assert ask() == "File too large"
        assert ask() == "written"
        assert resource.prlimit(pid, resource.RLIMIT_FSIZE) == before
        assert (tmp_path / "file").read_bytes() == b"xx"


def test_what_is_frozen_or_slowed_runs_again(tmp_path: Path) -> None:
    with writer(tmp_path / "file") as (pid, ask):
        with passing.frozen(pid):
            os.waitid(os.P_PID, pid, os.WSTOPPED)
            assert stopped(pid)
        with passing.half_speed(pid):
            os.waitid(os.P_PID, pid, os.WSTOPPED)
        assert not stopped(pid)
        assert ask() == "written"


def test_a_slow_disk_is_slow_while_it_is_ordered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []
    monkeypatch.setattr(slow, "_sleep", naps.append)
    slow.wait(tmp_path)
    with passing.slow_disk(tmp_path, 0.5, 3600.0):
        slow.wait(tmp_path)
    slow.wait(tmp_path)
    assert naps == [0.5]
    slow.begin(tmp_path, 99.0, 3600.0)
    slow.wait(tmp_path)
    assert naps == [0.5, slow.LONGEST]
    slow.begin(tmp_path, 0.5, 0.0)  # whoever gave it is gone
    slow.wait(tmp_path)
    (tmp_path / slow.FILE).write_text("no order")
    slow.wait(tmp_path)
    assert naps == [0.5, slow.LONGEST]


class Noted:
    """A fault that notes when it is done and undone."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def __call__(self, what: str) -> Callable[[], AbstractContextManager[None]]:
        @contextmanager
        def fault() -> Iterator[None]:
            self.said.append(f"{what} done")
            yield
            self.said.append(f"{what} undone")

        return fault


def test_a_fault_that_lasts_is_not_done_twice_and_is_undone_at_the_end() -> None:
    noted, under_way = Noted(), Passing(3600.0)
    under_way.begin("one", noted("one"))
    under_way.begin("one", noted("one"))
    assert noted.said == ["one done"]
    under_way.end()
    assert noted.said == ["one done", "one undone"]
    under_way.begin("two", noted("two"))
    assert len(noted.said) == 2


def test_a_fault_passes_by_itself() -> None:
    under_way, passed = Passing(0.0), threading.Event()

    @contextmanager
    def fault() -> Iterator[None]:
        yield
        passed.set()

    under_way.begin("one", fault)
    assert passed.wait(60)


class Mischance(Exception):
    pass


class Calmed:
    """A target whose faults fail."""

    calms = 0

    def workers(self) -> list[Seen]:
        return []

    def nodes(self) -> list[str]:
        return []

    def over(self) -> bool:
        return False

    def strike(self, kind: str, victim: Seen | str | None) -> None:
        raise Mischance

    def calm(self) -> None:
        self.calms += 1


def test_what_lasts_is_undone_however_a_drill_ends() -> None:
    target = Calmed()
    kept: Target = target
    with pytest.raises(Mischance):
        unleash(kept, iter([Fault(0.0, "slow-disk", 0.0)]), 3600.0, lambda line: None)
    assert target.calms == 1


def test_faults_of_the_run_itself_need_nobody() -> None:
    workers = [Seen("w", "n", 1, 0)]
    for kind in FAULTS:
        victim = choose_victim(Fault(0.0, kind, 0.5), workers, ["n"])
        assert (victim is None) == (kind in WITHOUT_VICTIM), kind


def test_each_fault_of_the_run_does_something(tmp_path: Path) -> None:
    """But for those that need the cluster."""
    with writer(tmp_path / "file") as (pid, ask):
        for kind in sorted(WITHOUT_VICTIM - {"kill-controller", "cut-store"}):
            under_way = Passing(3600.0)
            strike_run(under_way, kind, tmp_path, pid, [])
            if kind == "freeze-controller":
                os.waitid(os.P_PID, pid, os.WSTOPPED)
            assert (tmp_path / slow.FILE).exists() == (kind == "slow-disk")
            assert kind != "fill-disk" or ask() == "File too large"
            under_way.end()
            assert not stopped(pid)
            assert ask() == "written"
            assert not (tmp_path / slow.FILE).exists()


def test_what_plain_processes_cannot_suffer_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (tmp_path / "shoal" / "clusters" / "plain").mkdir(parents=True)
    head = NodeState("head", "127.0.0.1", 0, 1)
    save(ClusterState("plain", "id", "process", "up", 1, 8265, 1, 1, "/tmp/x", nodes=(head,)))
    target = LocalTarget("plain", tmp_path)
    target.check(["fill-disk", "freeze-controller", "slow-disk", "kill-node"])
    with pytest.raises(UserError, match=r"(?s)cut-store, partition: .*plain processes.*--mode netns"):
        target.check(["cut-store", "slow-disk", "partition"])


Made = TypeVar("Made")


def inside(namespace: str, make: Callable[[], Made]) -> Made:
    """What is made by a thread that is in this network namespace; sockets stay in it."""

    def enter() -> Made:
        with open(f"/run/netns/{namespace}") as file:
            assert ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0) == 0, os.strerror(ctypes.get_errno())
        return make()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(enter).result()


def ping(line: tuple[socket.socket, socket.socket], timeout: float) -> bool:
    """Whether a byte gets there and back in time."""
    for source, target in (line, line[::-1]):
        target.settimeout(timeout)
        source.sendall(b"x")
        try:
            assert target.recv(1) == b"x"
        except TimeoutError:
            return False
    return True


@pytest.mark.parametrize("where", [0, 1])
def test_a_port_is_cut_off_and_what_was_said_meanwhile_arrives(where: int) -> None:
    """On the caller's node or on the port's own."""
    if reason := namespaces.refusal():
        pytest.skip(reason)
    bridge, subnet = namespaces.claim_bridge()
    ends = [(f"{bridge}-cut{i}", f"{subnet}.{2 + i}") for i in range(2)]
    (caller, _), (owner, address) = ends
    with ExitStack() as stack:
        stack.callback(namespaces.delete_bridge, bridge)
        for namespace, ip in ends:
            stack.callback(namespaces.delete_node, namespace, bridge, ip)
            namespaces.add_node(namespace, bridge, ip)
        servers = [stack.enter_context(inside(owner, lambda: socket.create_server((address, 0)))) for _ in range(2)]

        def dial(server: socket.socket, timeout: float = 60.0) -> tuple[socket.socket, socket.socket]:
            port = server.getsockname()[1]
            mine = stack.enter_context(inside(caller, lambda: socket.create_connection((address, port), timeout)))
            return mine, stack.enter_context(server.accept()[0])

        cut, other = [dial(server) for server in servers]
        port = servers[0].getsockname()[1]
        assert ping(cut, 60.0)
        assert ping(other, 60.0)
        namespaces.cut_port(ends[where][0], address, port)
        assert not ping(cut, 0.5)
        with pytest.raises(TimeoutError):
            dial(servers[0], 0.5)
        assert ping(other, 60.0)
        namespaces.heal_port(ends[where][0], address, port)
        assert ping(cut, 60.0)
