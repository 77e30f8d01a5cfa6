"""Doing it: faults on the processes and nodes of a local cluster, and what brings the victims' replacements."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from shoal.chaos.plan import Fault, Seen, choose_victim
from shoal.cluster import chaos, local
from shoal.record import layout
from shoal.record.jsonl import read_json
from shoal_core.errors import UserError

__all__ = ["LocalTarget", "Target", "unleash"]


class Target(Protocol):
    """A run that faults can be done to."""

    def workers(self) -> list[Seen]:
        """Its living workers."""

    def nodes(self) -> list[str]:
        """Nodes that may be hit."""

    def strike(self, kind: str, victim: Seen | str | None) -> None:
        """Do it. Returns at once; what follows (a fresh node, say) happens in threads."""

    def over(self) -> bool:
        """Whether the run has ended."""


class LocalTarget:
    """A run on a cluster that `shoal cluster up` made. `repair`: seconds until a lost node's replacement is started."""

    def __init__(self, cluster: str, path: Path, repair: float = 5.0, notice: float = 15.0) -> None:
        self._cluster, self._path, self._repair, self._notice = cluster, path, repair, notice

    def workers(self) -> list[Seen]:
        status = read_json(self._path / layout.STATUS) or {}
        return [Seen(w["actor"], w["node"], w["pid"], w["cell"]) for w in status.get("workers", [])]

    def nodes(self) -> list[str]:
        return [node.name for node in local.describe(self._cluster).nodes if node.slots and node.state == "ALIVE"]

    def over(self) -> bool:
        return (self._path / layout.RUN).exists()

    def strike(self, kind: str, victim: Seen | str | None) -> None:
        match kind, victim:
            case "kill-worker", Seen():
                send(victim.pid, signal.SIGKILL)
            case "freeze-worker", Seen():
                send(victim.pid, signal.SIGSTOP)
            case "slow-worker", Seen():
                self._later(0.0, lambda: slow(victim.pid))
            case "kill-controller", None:
                controller = (read_json(self._path / layout.STATUS) or {}).get("controller") or {}
                if controller.get("pid"):
                    send(controller["pid"], signal.SIGKILL)
            case "kill-node", str():
                local.kill_node(self._cluster, victim)
                self._replace()
            case "freeze-node", str():
                chaos.freeze_node(self._cluster, victim)
                self._later(self._repair, lambda: local.kill_node(self._cluster, victim))
                self._replace()
            case "partition", str():
                chaos.partition(self._cluster, victim)
                self._later(self._repair, lambda: local.kill_node(self._cluster, victim))
                self._replace()
            case "drain", str():
                self._drain(victim)
                self._later(self._notice, lambda: local.kill_node(self._cluster, victim))
                self._replace()

    def _drain(self, node: str) -> None:
        # a process of its own: Ray reads the cluster's address and token when it is imported
        shoal = str(Path(sys.executable).with_name("shoal"))
        notice = ["--deadline", str(self._notice), "--name", self._cluster]
        subprocess.Popen([shoal, "cluster", "drain", node, *notice], stdout=subprocess.DEVNULL)

    def _replace(self) -> None:
        self._later(self._repair, lambda: local.add_node(self._cluster))

    def _later(self, seconds: float, do: Callable[[], Any]) -> None:
        def run() -> None:
            time.sleep(seconds)
            with contextlib.suppress(UserError):  # the cluster was taken down, or the node is dead already
                do()

        threading.Thread(target=run, daemon=True).start()


def send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def slow(pid: int, seconds: float = 10.0, slice_s: float = 0.02) -> None:
    """Half speed for a while."""
    end = time.monotonic() + seconds
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < end:
            os.kill(pid, signal.SIGSTOP)
            time.sleep(slice_s)
            os.kill(pid, signal.SIGCONT)
            time.sleep(slice_s)


def unleash(target: Target, faults: Iterator[Fault], until: float, say: Callable[[str], None]) -> int:
    """Strike on schedule until the run has ended or `until` seconds have passed; returns how many faults were done."""
    start = time.monotonic()
    done = 0
    for fault in faults:
        while not target.over() and (now := time.monotonic() - start) < min(fault.at, until):
            time.sleep(min(0.1, fault.at - now))
        if target.over() or time.monotonic() - start >= until:
            break
        victim = choose_victim(fault, target.workers(), target.nodes())
        if victim is None and fault.kind != "kill-controller":
            continue
        who = victim.actor if isinstance(victim, Seen) else victim
        say(f"{fault.at:8.1f} s  {fault.kind}" + (f"  {who}" if who else ""))
        target.strike(fault.kind, victim)
        done += 1
    return done
