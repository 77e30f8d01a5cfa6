"""`shoal cluster`: a real Ray cluster of several nodes on this machine."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from dataclasses import asdict
from typing import Annotated, Any, NoReturn

import typer

from shoal.cli.figures import AsJson, alone, give
from shoal.cluster import chaos, connect, local
from shoal.cluster.state import token_file
from shoal.printable import printable
from shoal_core.errors import UserError

app = typer.Typer(no_args_is_help=True, help="A real Ray cluster of several nodes on this machine.")

Name = Annotated[str, typer.Option("--name", help="the cluster's name")]
LabelList = Annotated[
    list[str] | None,
    typer.Option("--labels", help="Ray node labels, as node1,node2:rack=a,zone=z or zone=z for all; may be repeated"),
]


def say(line: str) -> None:
    """A progress line, seen at once also through a pipe."""
    print(f"cluster: {line}", flush=True)


@app.command()
def up(
    nodes: Annotated[int, typer.Option(help="nodes beside the head")] = 4,
    slots: Annotated[int, typer.Option(help="training workers a node can hold (custom resource `slot`)")] = 2,
    cpus: Annotated[
        int | None, typer.Option(help="CPUs a node offers to Ray tasks; by default as many as slots.")
    ] = None,
    name: Name = local.DEFAULT_NAME,
    mode: Annotated[str, typer.Option(help="netns: a network namespace a node (root); process; auto")] = "auto",
    dashboard_port: Annotated[int, typer.Option(help="port of the dashboard and the job server")] = 8265,
    object_store_mb: Annotated[int, typer.Option(help="shared memory of each node, MB")] = local.OBJECT_STORE_MB,
    labels: LabelList = None,
    redis: Annotated[
        bool,
        typer.Option("--redis", help="the head may die: its control store on Redis, a node `steady` for drivers"),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Start a head and NODES nodes, and return when all have joined."""
    signal.signal(signal.SIGTERM, _interrupt)  # like Ctrl-C: nothing is left behind
    started = time.monotonic()
    with alone(as_json):
        local.up(
            name,
            nodes=nodes,
            slots=slots,
            cpus=cpus,
            mode=mode,
            dashboard_port=dashboard_port,
            object_store_mb=object_store_mb,
            labels=parse_labels(labels or []),
            on_redis=redis,
            say=say,
        )
    if as_json:
        give({**asdict(local.describe(name)), "token_file": str(token_file(name))})
        return
    named = "" if name == local.DEFAULT_NAME else f" --name {name}"
    say(f"the dashboard asks for a token, once a browser: cat {shlex.quote(str(token_file(name)))}")
    say(f'a shell finds the cluster after: eval "$(shoal cluster env{named})"')
    say(f"{nodes + 1 + redis} nodes in {time.monotonic() - started:.1f} s; `shoal cluster down{named}` ends it")


@app.command()
def status(name: Name = local.DEFAULT_NAME, as_json: AsJson = False) -> None:
    """The cluster's nodes, as they were made and as Ray sees them."""
    found = local.describe(name)
    if as_json:
        give(asdict(found))
        return
    print(f"{found.name} ({found.mode}, {found.phase})  dashboard {found.dashboard_url}  Ray {found.gcs_address}")
    for node in found.nodes:
        labels = printable(",".join(f"{k}={v}" for k, v in node.labels.items()))
        processes = f"{len(node.pids)} processes"
        print(f"  {node.name:8} {node.state:8} {node.ip:15} {node.slots} slots  {processes:14} {labels}".rstrip())
    if found.error:
        print(f"  {printable(found.error)}")


@app.command("kill-node")
def kill_node(
    node: Annotated[str, typer.Argument(help="node1, node2, ...; head, where it may die (`up --redis`)")],
    name: Name = local.DEFAULT_NAME,
    as_json: AsJson = False,
) -> None:
    """SIGKILL every process of a node at once, as if its machine had died."""
    kill = local.kill_node(name, node)
    line = f"{len(kill.pids)} processes killed at {kill.time:.3f} (unix), gone {kill.seconds * 1e3:.0f} ms later"
    _told(f"{node}: {line}", asdict(kill), as_json)


@app.command("restart-head")
def restart_head(name: Name = local.DEFAULT_NAME, as_json: AsJson = False) -> None:
    """Start a dead head again, on the cluster's Redis; nodes, workers and runs are still there."""
    signal.signal(signal.SIGTERM, _interrupt)
    started = time.monotonic()
    with alone(as_json):
        local.restart_head(name, say=say)
        seconds = time.monotonic() - started
        say(f"the head is back after {seconds:.1f} s")
    if as_json:
        give({"seconds": seconds})


@app.command("add-node")
def add_node(
    slots: Annotated[int, typer.Option(help="training workers it can hold")] = 2,
    cpus: Annotated[int | None, typer.Option(help="CPUs it offers to Ray tasks; by default as many as slots.")] = None,
    labels: LabelList = None,
    name: Name = local.DEFAULT_NAME,
    as_json: AsJson = False,
) -> None:
    """Add a node, named by the next number, and return when it has joined."""
    signal.signal(signal.SIGTERM, _interrupt)
    parsed = parse_labels(labels or [])
    if set(parsed) - {"*"}:
        raise UserError("--labels: the new node has no name yet", "give KEY=VALUE alone")
    with alone(as_json):
        node = local.add_node(name, slots=slots, cpus=cpus, labels=parsed.get("*", {}), say=say)
        say(f"{node.name} at {node.ip}")
    if as_json:
        give({"node": node.name, "ip": node.ip})


@app.command()
def drain(
    node: Annotated[str, typer.Argument(help="node1, node2, ...")],
    deadline: Annotated[float, typer.Option(help="seconds until the node is taken away")] = 30.0,
    name: Name = local.DEFAULT_NAME,
    as_json: AsJson = False,
) -> None:
    """Tell Ray that a node will be preempted, as a cloud does before it takes the machine away."""
    os.environ.update(connect.environment(name))  # before Ray is imported
    from shoal.on_ray import drain as ray_drain

    found = local.describe(name)
    node_id = {status.name: status.node_id for status in found.nodes}.get(node)
    if not node_id:
        raise UserError(f"cluster {name}: no living node {node!r} {found.error}".rstrip(), "shoal cluster status")
    ends = ray_drain.drain_node(found.gcs_address, node_id, deadline, "shoal cluster drain")
    line = f"{node}: drained, to be taken away at {ends:.1f} (unix), in {deadline:.0f} s"
    _told(line, {"node": node, "ends": ends, "deadline": deadline}, as_json)


@app.command("freeze-node")
def freeze_node(node: str, name: Name = local.DEFAULT_NAME, as_json: AsJson = False) -> None:
    """SIGSTOP every process of a node: it keeps its connections and answers nothing."""
    at, pids = chaos.freeze_node(name, node)
    _told(f"{node}: {len(pids)} processes frozen at {at:.3f} (unix)", {"node": node, "time": at, "pids": pids}, as_json)


@app.command("thaw-node")
def thaw_node(node: str, name: Name = local.DEFAULT_NAME, as_json: AsJson = False) -> None:
    """SIGCONT every process of a frozen node."""
    at, pids = chaos.thaw_node(name, node)
    _told(f"{node}: {len(pids)} processes thawed at {at:.3f} (unix)", {"node": node, "time": at, "pids": pids}, as_json)


@app.command("partition")
def partition(node: str, name: Name = local.DEFAULT_NAME, as_json: AsJson = False) -> None:
    """Cut a node's network: packets vanish, no connection is reset (netns mode)."""
    at = chaos.partition(name, node)
    _told(f"{node}: cut off at {at:.3f} (unix)", {"node": node, "time": at}, as_json)


@app.command("heal-link")
def heal_link(node: str, name: Name = local.DEFAULT_NAME, as_json: AsJson = False) -> None:
    """Give a node its network back."""
    at = chaos.heal_link(name, node)
    _told(f"{node}: reachable again at {at:.3f} (unix)", {"node": node, "time": at}, as_json)


def _told(line: str, figures: dict[str, Any], as_json: bool) -> None:
    """Say what was done, to people or to a program."""
    give(figures) if as_json else say(line)


@app.command()
def down(name: Name = local.DEFAULT_NAME) -> None:
    """Take the cluster down: nothing of it is left."""
    local.down(name, say=say)


@app.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def execute(
    command: Annotated[list[str], typer.Argument(help="after --: the command and its arguments")],
    node: Annotated[str, typer.Option(help="where it runs")] = "head",
    name: Name = local.DEFAULT_NAME,
) -> None:
    """Run a command on a node, with Ray's addresses and token in its environment."""
    sys.exit(connect.execute(name, command, node))


@app.command("env")
def env(name: Name = local.DEFAULT_NAME, as_json: AsJson = False) -> None:
    """Print `export` lines for a shell, so that `ray job submit` finds the cluster."""
    if as_json:
        give(connect.environment(name))
        return
    for key, value in connect.environment(name).items():
        print(f"export {key}={shlex.quote(value)}")


def parse_labels(options: list[str]) -> dict[str, dict[str, str]]:
    """`["node1,node2:rack=a", "zone=z"]` -> labels by node name, `*` for all nodes. Raises UserError."""
    parsed: dict[str, dict[str, str]] = {}
    for option in options:
        names, colon, pairs = option.rpartition(":")
        for pair in pairs.split(","):
            key, equals, value = pair.partition("=")
            if not (key and equals and value):
                raise UserError(f"--labels {option}: {pair!r} is not KEY=VALUE", "as in node1,node2:rack=a,zone=z")
            for node in names.split(",") if colon else ["*"]:
                parsed.setdefault(node, {})[key] = value
    return parsed


def _interrupt(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt
