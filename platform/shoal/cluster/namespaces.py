"""Network namespaces as nodes: each its own IP address on one bridge, with no way out.

The bridge has an address too, so that this machine's own processes reach the nodes. There is no NAT, no default
route and no forwarding: what a node sends stays on the bridge.
"""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import subprocess
import sys

from shoal_core.errors import UserError

__all__ = [
    "INTERFACE",
    "add_node",
    "claim_bridge",
    "cut_port",
    "delete_bridge",
    "delete_node",
    "exists",
    "heal_port",
    "refusal",
    "set_link",
]

INTERFACE = "eth0"
"""The name of a node's only interface beside `lo`, inside its namespace."""
NOBODY, NOBODYS = "192.0.2.1", "02:00:00:00:00:01"
"""A neighbour that is not there (an address of documentation, and its hardware address)."""
NOWHERE = "77"
"""The routing table that leads to it."""


def refusal() -> str:
    """Why namespaces cannot be made here; empty if they can."""
    if os.geteuid() != 0:
        return "not root"
    if not (shutil.which("ip") and shutil.which("nsenter")):
        return "no ip or nsenter command (packages iproute2, util-linux)"
    try:
        bridge, subnet = claim_bridge()
    except UserError as error:
        return error.problem
    probes = [(f"{bridge}-probe{i}", f"{subnet}.{2 + i}") for i in range(2)]
    try:
        for namespace, ip in probes:
            add_node(namespace, bridge, ip)
        return "" if _reaches(probes[0], probes[1]) else "this host's firewall does not let bridged nodes talk"
    except UserError as error:
        return error.problem
    finally:
        for namespace, ip in probes:
            delete_node(namespace, bridge, ip)
        delete_bridge(bridge)


def claim_bridge() -> tuple[str, str]:
    """Make a bridge with a free subnet of its own: `(bridge, "10.x.y")`; the bridge has the address `10.x.y.1`.

    Making the bridge is the claim: of two commands that pick the same subnet, one fails and goes on to the next.
    Raises UserError: none is free.
    """
    taken = _networks_in_use()
    for third in range(256):
        subnet = f"10.77.{third}"
        bridge = f"shoal{third}"
        if any(ipaddress.ip_network(f"{subnet}.0/24").overlaps(network) for network in taken):
            continue
        made = subprocess.run(["ip", "link", "add", bridge, "type", "bridge"], capture_output=True, check=False)
        if made.returncode:
            continue
        try:
            _ip("addr", "add", f"{subnet}.1/24", "dev", bridge)
            _ip("link", "set", bridge, "up")
        except BaseException:
            delete_bridge(bridge)
            raise
        return bridge, subnet
    raise UserError("no free network 10.77.y.0/24 for the cluster", "use --mode process, or take old clusters down")


def add_node(namespace: str, bridge: str, ip: str) -> None:
    """A namespace with the address `ip`/24, joined to the bridge by a veth pair. Raises UserError."""
    outer = _outer(bridge, ip)
    _ip("netns", "add", namespace)
    _ip("link", "add", outer, "type", "veth", "peer", "name", INTERFACE, "netns", namespace)
    _ip("link", "set", outer, "master", bridge, "up")
    _ip("-n", namespace, "addr", "add", f"{ip}/24", "dev", INTERFACE)
    _ip("-n", namespace, "link", "set", INTERFACE, "up")
    _ip("-n", namespace, "link", "set", "lo", "up")


def exists(namespace: str) -> bool:
    """Whether there is a namespace of that name."""
    return os.path.exists(f"/run/netns/{namespace}")


def set_link(bridge: str, ip: str, up: bool) -> None:
    """Plug the cable of the node with address `ip` in or out: without it its packets vanish, no connection is reset."""
    _ip("link", "set", _outer(bridge, ip), "up" if up else "down")


def cut_port(namespace: str, ip: str, port: int) -> None:
    """Send what a node has to say to `port` of `ip`, or from it, to nobody: it vanishes, no connection is reset."""
    _ip("-n", namespace, "neigh", "replace", NOBODY, "lladdr", NOBODYS, "dev", INTERFACE, "nud", "permanent")
    _ip("-n", namespace, "route", "replace", "default", "via", NOBODY, "dev", INTERFACE, "onlink", "table", NOWHERE)
    for rule in _rules(ip, port):
        _ip("-n", namespace, "rule", "add", *rule)


def heal_port(namespace: str, ip: str, port: int) -> None:
    """Undo `cut_port`, as far as it was done."""
    for rule in _rules(ip, port):
        subprocess.run(["ip", "-n", namespace, "rule", "delete", *rule], capture_output=True, check=False)


def _rules(ip: str, port: int) -> list[list[str]]:
    ends = (["to", ip, "dport", str(port)], ["from", ip, "sport", str(port)])
    return [["ipproto", "tcp", *end, "lookup", NOWHERE] for end in ends]


def delete_node(namespace: str, bridge: str, ip: str) -> None:
    """Remove the namespace and its veth pair, as far as they exist."""
    for command in (["ip", "link", "delete", _outer(bridge, ip)], ["ip", "netns", "delete", namespace]):
        subprocess.run(command, capture_output=True, check=False)


def delete_bridge(bridge: str) -> None:
    """Remove the bridge, if it exists."""
    subprocess.run(["ip", "link", "delete", bridge], capture_output=True, check=False)


def _reaches(source: tuple[str, str], target: tuple[str, str]) -> bool:
    """Whether a TCP connection from one namespace to another's address is made."""
    listen = f"import socket; s = socket.create_server(('{target[1]}', 9)); print(flush=True); s.accept()"
    call = f"import socket; socket.create_connection(('{target[1]}', 9), timeout=2)"
    server = subprocess.Popen([*_python_in(target[0]), listen], stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        server.stdout.readline()
        return subprocess.run([*_python_in(source[0]), call], capture_output=True, check=False).returncode == 0
    finally:
        server.kill()
        server.communicate()


def _python_in(namespace: str) -> list[str]:
    return ["nsenter", f"--net=/run/netns/{namespace}", "--", sys.executable, "-IS", "-c"]


def _outer(bridge: str, ip: str) -> str:
    """The end of the veth pair on this machine: `shoal7n12` for 10.77.7.12 (names have at most 15 characters)."""
    return f"{bridge}n{ip.rpartition('.')[2]}"


def _networks_in_use() -> list[ipaddress.IPv4Network]:
    addresses = json.loads(_ip("-json", "-4", "addr", "show"))
    routes = json.loads(_ip("-json", "-4", "route", "show", "table", "all"))
    found = [f"{a['local']}/{a['prefixlen']}" for link in addresses for a in link.get("addr_info", []) if "local" in a]
    found += [route["dst"] for route in routes if route["dst"] not in ("default", "0.0.0.0/0")]
    return [ipaddress.IPv4Network(network, strict=False) for network in found]


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"`ip {' '.join(arguments)}` failed: {done.stderr.strip()}", "use --mode process")
    return done.stdout
