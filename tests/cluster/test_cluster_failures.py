"""Starts that go wrong, each with one clear message and nothing left behind."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shoal.cli import cluster as cli
from shoal.cluster import assemble, local, namespaces, processes, redis
from shoal.cluster.state import (
    ClusterState,
    NodeState,
    clusters_dir,
    known_clusters,
    load,
    locked,
    redis_dir,
    redis_password,
    save,
    state_dir,
)
from shoal_core.errors import UserError

pytestmark = pytest.mark.cluster


@pytest.fixture(autouse=True)
def private_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    yield
    for name in known_clusters():  # what a failed test left up
        if (state_dir(name) / "token").exists():
            local.down(name)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def nothing_left(temp_dirs_of: str) -> bool:
    clusters = list(clusters_dir().iterdir()) if clusters_dir().exists() else []
    return not clusters and not list(Path(assemble.tempfile.gettempdir()).glob(f"shoal-{temp_dirs_of}-*"))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--nodes", "0"], "--nodes 0"),
        (["--slots", "0"], "--slots 0"),
        (["--dashboard-port", "0"], "--dashboard-port 0"),
        (["--mode", "docker"], "--mode docker: not a mode"),
        (["--name", "Big_Name"], "cluster name 'Big_Name'"),
        (["--labels", "rack"], "'rack' is not KEY=VALUE"),
        (["--labels", "node9:rack=a", "--nodes", "2"], "no node node9"),
        (["--labels", "a rack=a"], "'a rack=a' is not a label"),
        (["--labels", "rack=a b"], "'rack=a b' is not a label"),
        (["--labels", "ray.io/rack=a"], "'ray.io/rack=a' is not a label"),
    ],
)
def test_bad_arguments_are_refused_before_anything_starts(arguments: list[str], problem: str) -> None:
    done = CliRunner().invoke(cli.app, ["up", *arguments])
    assert isinstance(done.exception, UserError)
    assert problem in str(done.exception)
    assert done.exception.remedy
    assert not clusters_dir().exists() or not list(clusters_dir().iterdir())


def test_labels_by_node_and_for_all() -> None:
    assert cli.parse_labels(["node1,node2:rack=a,zone=x", "zone=z", "node2:rack=b"]) == {
        "node1": {"rack": "a", "zone": "x"},
        "node2": {"rack": "b", "zone": "x"},
        "*": {"zone": "z"},
    }


def test_a_dashboard_port_in_use_is_refused_and_leaves_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--dashboard-port {port} cannot be used"):
            local.up("porttest", mode="process", dashboard_port=port)
    assert nothing_left("porttest")


def test_namespaces_that_cannot_be_made_are_refused_or_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces, "refusal", lambda: "not root")
    with pytest.raises(UserError, match="cannot be made here: not root"):
        local.up("nsroot", mode="netns")
    assert nothing_left("nsroot")
    lines: list[str] = []
    assert assemble.choose_mode("auto", lines.append) == "process"
    assert "not root" in lines[0]


def test_a_node_that_does_not_start_shows_its_log_and_takes_all_down() -> None:
    with pytest.raises(UserError, match=r"(?s)head did not start \(twice\).*object store"):
        local.up("tiny", nodes=1, mode="process", dashboard_port=free_port(), object_store_mb=1)
    assert nothing_left("tiny")


def test_a_start_that_is_interrupted_leaves_nothing() -> None:
    script = "from shoal.cli.cluster import app; app()"
    command = [sys.executable, "-c", script, "up", "--name", "halfway", "--nodes", "2", "--mode", "process"]
    up = subprocess.Popen([*command, "--dashboard-port", str(free_port())], stdout=subprocess.PIPE, text=True)
    assert up.stdout is not None
    seen = []
    for line in up.stdout:
        seen.append(line)
        if "head is up" in line:
            state = load("halfway")
            assert processes.pids_of(state, state.head)
            up.send_signal(signal.SIGTERM)  # taken as Ctrl-C is, which a shell may have switched off for its children
            break
    rest = up.communicate(timeout=400)[0]
    assert "taking down what was started" in rest, seen
    assert up.returncode != 0
    assert not any(processes.pids_of(state, node) for node in state.nodes)
    assert nothing_left("halfway")


def test_what_a_killed_start_left_is_cleared_by_down() -> None:
    """A start that was SIGKILLed after it had made a process in process mode, and a bridge and namespace in netns."""
    state_dir("half").mkdir(parents=True)
    modes = ["process"] if namespaces.refusal() else ["process", "netns"]
    for mode in modes:
        state_dir("half").mkdir(parents=True, exist_ok=True)
        state = assemble.claim("half", mode, dashboard_port=0, object_store_mb=100)
        if mode == "netns":
            namespaces.add_node(state.head.namespace, state.bridge, state.head.ip)
        inside = ["nsenter", f"--net=/run/netns/{state.head.namespace}"] if mode == "netns" else []
        left = subprocess.Popen(
            [*inside, "sh", "-c", "echo there; exec sleep 600"],
            env={**os.environ, processes.MARK: processes.mark(state, state.head)},
            stdout=subprocess.PIPE,
        )
        assert left.stdout is not None
        assert left.stdout.readline() == b"there\n"
        local.down("half")
        assert left.wait(timeout=120) == -signal.SIGKILL
        assert nothing_left("half")
        if mode == "netns":
            links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
            assert f"{state.bridge}:" not in links
            assert f"{state.bridge}n" not in links
            assert not Path(f"/run/netns/{state.head.namespace}").exists()


def test_a_cluster_that_another_command_holds_is_not_touched() -> None:
    state_dir("held").mkdir(parents=True)
    state = assemble.claim("held", "process", dashboard_port=0, object_store_mb=100)
    with locked("held"), pytest.raises(UserError, match="another shoal command"):
        local.down("held")
    assert load("held") == state
    local.down("held")


def test_a_damaged_state_file_is_named() -> None:
    state_dir("torn").mkdir(parents=True)
    (state_dir("torn") / "cluster.json").write_text('{"name": "torn"')
    with pytest.raises(UserError, match=r"torn/cluster.json cannot be read"):
        local.describe("torn")


def test_a_head_that_may_die_needs_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis.shutil, "which", lambda program: None)
    with pytest.raises(UserError, match=r"(?s)no redis-server.*apt-get install redis-server"):
        local.up("noredis", mode="process", dashboard_port=free_port(), on_redis=True)
    assert nothing_left("noredis")


@pytest.mark.skipif(not shutil.which("redis-server"), reason="redis-server is not installed")
def test_the_clusters_redis_keeps_what_it_was_told_through_its_death_and_goes_with_the_cluster() -> None:
    state_dir("store").mkdir(parents=True)
    state = assemble.claim("store", "process", dashboard_port=0, object_store_mb=100, on_redis=True)
    redis.start(state)
    assert ask_redis(state, redis_password("store"), "set", "key", "kept") == "OK"
    assert "NOAUTH" in ask_redis(state, "", "get", "key")
    assert (redis_dir("store") / "password").stat().st_mode & 0o777 == 0o600
    listening = subprocess.run(["ss", "-Hltn", f"sport = {state.redis_port}"], capture_output=True, text=True).stdout
    assert [line.split()[3] for line in listening.splitlines()] == [f"127.0.0.1:{state.redis_port}"]
    (killed,) = processes.kill_redis(state)
    redis.start(state)
    redis.start(state)  # one that runs is left alone
    assert ask_redis(state, redis_password("store"), "get", "key") == "kept"
    (again,) = processes.redis_pids(state)
    assert again != killed
    assemble.destroy(state)  # as the next `up` does with what a broken one left
    assert processes.redis_pids(state) == []
    assert not redis_dir("store").exists()
    local.down("store")
    assert nothing_left("store")


def ask_redis(state: ClusterState, password: str, *words: str) -> str:
    environ = {**os.environ, **({"REDISCLI_AUTH": password} if password else {})}
    asked = ["redis-cli", "-p", str(state.redis_port), *words]
    return subprocess.run(asked, env=environ, capture_output=True, text=True, check=False).stdout.strip()


def test_the_state_file_keeps_everything() -> None:
    state_dir("kept").mkdir(parents=True)
    state = assemble.claim("kept", "process", dashboard_port=0, object_store_mb=100)
    state = state.with_node(NodeState("node1", "127.0.0.1", 2, 3, {"rack": "a"}))
    save(state)
    assert load("kept") == state
    local.down("kept")
