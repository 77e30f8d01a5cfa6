"""A real cluster on this machine in each mode: what drivers and jobs see, a node killed, one added, nothing left."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.chaos.strike import LocalTarget
from shoal.cluster import api, chaos, connect, local, namespaces, processes
from shoal.cluster.state import ClusterState, load, state_dir, token_file
from shoal_core.errors import UserError

pytestmark = pytest.mark.cluster
SHOAL = [sys.executable, "-c", "from shoal.cli.cluster import app; app()"]
DRIVER = Path(__file__).with_name("driver.py")


def alive(state: ClusterState, deadline_s: float, wanted: dict[str, str]) -> dict[str, str]:
    """Ray's state of the nodes, as soon as it is `wanted` (or at the deadline)."""
    end = time.monotonic() + deadline_s
    while True:
        found = {node.name: node.state for node in local.describe(state.name).nodes}
        if found == wanted or time.monotonic() > end:
            return found
        time.sleep(0.1)


def traces(state: ClusterState) -> list[str]:
    """Everything on this machine that belongs to the cluster."""
    found = [str(path) for path in (Path(state.temp_dir), state_dir(state.name)) if path.exists()]
    for pid in (entry for entry in os.listdir("/proc") if entry.isdigit()):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            environ = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if state.temp_dir.encode() in command or f"{processes.MARK}={state.id}/".encode() in environ:
            found.append(f"process {pid}: {command!r}")
    found += [f"node {n.name}: {pids}" for n in state.nodes if (pids := processes.pids_of(state, n))]
    if state.bridge:
        links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
        spaces = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
        found += [line for line in (links + spaces).splitlines() if state.bridge in line]
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


#: the mode that `shoal cluster up` would choose here comes first; the other one is for `make test-long`
MODES = ["process", "netns"] if namespaces.refusal() else ["netns", "process"]


@pytest.fixture(scope="module", params=[MODES[0], pytest.param(MODES[1], marks=pytest.mark.long)])
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterState]:
    if request.param == "netns" and (reason := namespaces.refusal()):
        pytest.skip(f"no network namespaces here: {reason}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        name = f"test-{request.param}"
        port = 8265 if request.param == "netns" else free_port()
        labels = {"*": {"zone": "z1"}, "node2": {"rack": "r2"}}
        state = local.up(name, nodes=2, slots=2, mode=request.param, dashboard_port=port, labels=labels, say=print)
        yield state
        if state_dir(name).exists():
            local.down(name)


def test_a_driver_sees_named_nodes_with_slots_and_labels(
    cluster: ClusterState, capfd: pytest.CaptureFixture[str]
) -> None:
    assert connect.execute(cluster.name, [sys.executable, str(DRIVER), "node1", "node2"], timeout_s=600) == 0
    found = json.loads(capfd.readouterr().out.strip().splitlines()[-1])
    by_name = {node["Labels"]["shoal.io/node"]: node for node in found["ray_nodes"]}
    assert set(by_name) == {"head", "node1", "node2"}
    assert all(node["Alive"] for node in found["ray_nodes"])
    assert by_name["node1"]["Resources"]["slot"] == by_name["node2"]["Resources"]["slot"] == 2
    assert "slot" not in by_name["head"]["Resources"]
    assert "CPU" not in by_name["head"]["Resources"]
    assert by_name["node1"]["Labels"]["zone"] == "z1"
    assert by_name["node2"]["Labels"]["rack"] == "r2"
    assert "rack" not in by_name["node1"]["Labels"]
    for name, worker in found["workers"].items():
        assert worker["node_id"] == by_name[name]["NodeID"]
        assert worker["ip"] == cluster.node(name).ip == by_name[name]["NodeManagerAddress"]
        assert worker["niceness"] == os.nice(0)  # Ray would add 15
        assert worker["cluster"] == cluster.name
        assert worker["interface"] == ("eth0" if cluster.mode == "netns" else "lo")
    assert found["task_on"] in {by_name["node1"]["NodeID"], by_name["node2"]["NodeID"]}
    assert found["draining"] == {}


def test_drills_know_which_nodes_may_be_hit(cluster: ClusterState, tmp_path: Path) -> None:
    assert LocalTarget(cluster.name, tmp_path).nodes() == ["node1", "node2"]


def test_the_token_is_needed_and_private(cluster: ClusterState) -> None:
    assert token_file(cluster.name).stat().st_mode & 0o777 == 0o600
    assert state_dir(cluster.name).stat().st_mode & 0o777 == 0o700
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            cluster.dashboard_url + "/api/v0/nodes", timeout=60
        )
    assert refused.value.code == 401
    token = token_file(cluster.name).read_text()
    assert all(token not in value for value in connect.environment(cluster.name).values())


def test_a_job_runs_on_the_head_and_finds_the_command_line(cluster: ClusterState, tmp_path: Path) -> None:
    written = tmp_path / "seen"
    command = f"command -v shoal > {written}; env >> {written}"
    submit = [str(Path(sys.executable).parent / "ray"), "job", "submit", "--", "bash", "-c", command]
    environ = {**os.environ, **connect.environment(cluster.name)}
    # a raylet of another cluster: Ray would hand its address to the job if it knew no better
    other = ["raylet", "-c", "import time; time.sleep(300)", "--gcs-address=127.0.0.1:9"]
    with subprocess.Popen(other, executable=sys.executable) as decoy:
        done = subprocess.run(submit, env=environ, capture_output=True, text=True, timeout=600, check=False)
        decoy.kill()
    assert done.returncode == 0, done.stdout + done.stderr
    seen = written.read_text().splitlines()
    assert seen[0] == str(Path(sys.executable).parent / "shoal")
    assert f"RAY_ADDRESS={cluster.gcs_address}" in seen
    assert f"{processes.MARK}={cluster.id}/head" in seen


def test_a_name_in_use_is_refused(cluster: ClusterState) -> None:
    with pytest.raises(UserError, match="is up"):
        local.up(cluster.name, mode=cluster.mode)
    assert all(node.state == "ALIVE" for node in local.describe(cluster.name).nodes)


def test_a_killed_node_is_dead_to_ray_and_a_new_one_joins(cluster: ClusterState) -> None:
    raylet = [pid for pid in processes.pids_of(cluster, cluster.node("node1")) if "raylet" in _command(pid)]
    others = {node: processes.pids_of(cluster, cluster.node(node)) for node in ("head", "node2")}
    before = time.time()
    kill = local.kill_node(cluster.name, "node1")
    assert before <= kill.time <= time.time()
    assert raylet
    assert set(raylet) <= set(kill.pids)
    assert not processes.pids_of(cluster, cluster.node("node1"))
    wanted = {"head": "ALIVE", "node1": "DEAD", "node2": "ALIVE"}
    assert alive(cluster, 120, wanted) == wanted
    for node, pids in others.items():
        assert set(pids) <= set(processes.pids_of(cluster, cluster.node(node))), "the kill went beyond its node"
    with pytest.raises(UserError, match="node1 is dead already"):
        local.kill_node(cluster.name, "node1")

    added = local.add_node(cluster.name, slots=3, labels={"rack": "r3"}, say=print)
    assert added.name == "node3"
    seen = {entry["node_name"]: entry for entry in api.ray_nodes(cluster) if entry["state"] == "ALIVE"}
    assert set(seen) == {"head", "node2", "node3"}
    assert seen["node3"]["resources_total"]["slot"] == 3
    assert seen["node3"]["labels"]["rack"] == "r3"


def test_a_drained_node_takes_nothing_new_and_shows_its_deadline(
    cluster: ClusterState, capfd: pytest.CaptureFixture[str]
) -> None:
    before = time.time()
    driver = [sys.executable, str(DRIVER), "--drain", "node2", "node2", "node3"]
    assert connect.execute(cluster.name, driver, timeout_s=600) == 0
    found = json.loads(capfd.readouterr().out.strip().splitlines()[-1])
    by_id = {node["NodeID"]: node["Labels"]["shoal.io/node"] for node in found["ray_nodes"]}
    assert {by_id[node_id] for node_id in found["draining"]} == {"node2"}
    (deadline,) = found["draining"].values()
    assert before + 60 <= deadline <= time.time() + 60
    assert by_id[found["task_on"]] == "node3"


def test_the_drain_command_drains(cluster: ClusterState) -> None:
    """An idle node that is drained leaves at once."""
    added = local.add_node(cluster.name, say=print)
    done = subprocess.run([*SHOAL, "drain", added.name, "--deadline", "60", "--name", cluster.name], check=False)
    assert done.returncode == 0
    assert alive(cluster, 120, {**alive(cluster, 0, {}), added.name: "DEAD"})[added.name] == "DEAD"


def test_a_frozen_node_stands_still_and_runs_again(cluster: ClusterState) -> None:
    frozen_at, frozen = chaos.freeze_node(cluster.name, "node3")
    try:
        assert frozen
        assert frozen_at <= time.time()
        stopped_by = time.monotonic() + 5  # one that is running stops at its next interrupt
        while {state_letter(pid) for pid in frozen} != {"T"}:
            assert time.monotonic() < stopped_by
            time.sleep(0.01)
        assert "T" not in {state_letter(pid) for pid in processes.pids_of(cluster, cluster.head)}
    finally:
        chaos.thaw_node(cluster.name, "node3")
    assert "T" not in {state_letter(pid) for pid in frozen}
    with pytest.raises(UserError, match="node1 is dead"):
        chaos.freeze_node(cluster.name, "node1")


def test_a_node_can_be_cut_off_where_it_has_a_cable(cluster: ClusterState) -> None:
    if cluster.mode == "process":
        with pytest.raises(UserError, match="network cannot be cut"):
            chaos.partition(cluster.name, "node3")
        return
    node = load(cluster.name).node("node3")
    serve = f"import socket; s = socket.create_server(('{node.ip}', 9)); print(flush=True); s.accept()[0].recv(1)"
    server = subprocess.Popen(
        connect.command(cluster.name, [sys.executable, "-c", serve], "node3"), stdout=subprocess.PIPE
    )
    assert server.stdout is not None
    server.stdout.readline()
    chaos.partition(cluster.name, "node3")
    try:
        with pytest.raises(OSError, match=r"timed out|No route"):
            socket.create_connection((node.ip, 9), timeout=0.5)
    finally:
        chaos.heal_link(cluster.name, "node3")
    socket.create_connection((node.ip, 9), timeout=60).close()
    assert server.wait(timeout=120) == 0
    with pytest.raises(UserError, match="all traffic with the head"):
        chaos.partition(cluster.name, "head")


def test_the_head_is_not_killed_by_mistake(cluster: ClusterState) -> None:
    with pytest.raises(UserError, match="only record"):
        local.kill_node(cluster.name, "head")
    with pytest.raises(UserError, match=r"(?s)made without Redis.*up --redis"):
        local.restart_head(cluster.name)
    with pytest.raises(UserError, match=r"no node 'node9'.*\n.*head, node1, node2"):
        local.kill_node(cluster.name, "node9")


def test_down_leaves_nothing(cluster: ClusterState) -> None:
    state = load(cluster.name)
    assert traces(state)
    local.down(cluster.name)
    assert traces(state) == []
    with pytest.raises(UserError, match="no local cluster named"):
        local.describe(cluster.name)


def state_letter(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
