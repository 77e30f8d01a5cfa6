"""Doing it: faults on the processes and nodes of a local cluster, and what brings the victims' replacements."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from shoal.chaos.passing import Passing, frozen, full_disk, half_speed, send, slow_disk
from shoal.chaos.plan import WITHOUT_VICTIM, Fault, Seen, choose_victim
from shoal.cluster import chaos, local
from shoal.record import layout
from shoal.record.jsonl import read_json
from shoal_core.errors import UserError

__all__ = ["LocalTarget", "Target", "seen", "strike_run", "unleash"]

PAUSE = 0.5
"""Seconds that a slow disk takes for one write."""


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

    def calm(self) -> None:
        """Undo what lasts still, and bring to its end what was begun."""


class LocalTarget:
    """A run on a cluster that `shoal cluster up` made. `repair`: seconds until a lost node's replacement is started;
    `lasting`: seconds that faults last which pass by themselves."""

    def __init__(
        self, cluster: str, path: Path, repair: float = 5.0, notice: float = 15.0, lasting: float = 10.0
    ) -> None:
        self._cluster, self._path, self._repair, self._notice = cluster, path, repair, notice
        self._passing = Passing(lasting)
        self._begun: list[threading.Thread] = []

    def check(self, kinds: Sequence[str]) -> None:
        """Raises UserError: some of them cannot be done to this cluster."""
        cuts = [kind for kind in kinds if kind in ("partition", "cut-store")]
        if cuts:
            try:
                chaos.check_cables(self._cluster)
            except UserError as error:
                raise UserError(
                    f"--faults: {', '.join(cuts)}: {error.problem}", f"leave them out, or {error.remedy}"
                ) from error

    def workers(self) -> list[Seen]:
        return seen(self._path)

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
                self._passing.begin(f"{kind} {victim.actor}", lambda: half_speed(victim.pid))
            case _, None:
                controller = (read_json(self._path / layout.STATUS) or {}).get("controller")
                if controller is not None:  # else the run is over
                    self._strike_run(kind, int(controller["pid"]), *controller["lifeline"])
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

    def _strike_run(self, kind: str, controller: int, address: str, port: int) -> None:
        match kind:
            case "kill-controller":
                send(controller, signal.SIGKILL)
            case "cut-store":
                self._passing.begin(kind, lambda: chaos.port_cut(self._cluster, address, port))
            case _:
                strike_run(self._passing, kind, self._path, controller, self.workers())

    def calm(self) -> None:
        self._passing.end()
        for thread in self._begun:
            thread.join()

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

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self._begun = [*(other for other in self._begun if other.is_alive()), thread]


def seen(run: Path) -> list[Seen]:
    """The workers of the run in this folder, as its status shows them."""
    status = read_json(run / layout.STATUS) or {}
    return [Seen(w["actor"], w["node"], w["pid"], w["cell"]) for w in status.get("workers", [])]


def strike_run(passing: Passing, kind: str, run: Path, controller: int, workers: Sequence[Seen]) -> None:
    """Do to a run what needs nothing of the cluster it is on. `controller`: its process id."""
    match kind:
        case "freeze-controller":
            passing.begin(kind, lambda: frozen(controller))
        case "fill-disk":
            passing.begin(kind, lambda: full_disk([controller, *(worker.pid for worker in workers)]))
        case "slow-disk":
            passing.begin(kind, lambda: slow_disk(run, PAUSE, passing.seconds))


def unleash(target: Target, faults: Iterator[Fault], until: float, say: Callable[[str], None]) -> int:
    """Strike on schedule until the run has ended or `until` seconds have passed, then undo what lasts still; returns
    how many faults were done."""
    try:
        return strike_all(target, faults, until, say)
    finally:
        target.calm()


def strike_all(target: Target, faults: Iterator[Fault], until: float, say: Callable[[str], None]) -> int:
    start = time.monotonic()
    done = 0
    for fault in faults:
        while not target.over() and (now := time.monotonic() - start) < min(fault.at, until):
            time.sleep(min(0.1, fault.at - now))
        if target.over() or time.monotonic() - start >= until:
            break
        victim = choose_victim(fault, target.workers(), target.nodes())
        if victim is None and fault.kind not in WITHOUT_VICTIM:
            continue
        who = victim.actor if isinstance(victim, Seen) else victim
        say(f"{fault.at:8.1f} s  {fault.kind}" + (f"  {who}" if who else ""))
        target.strike(fault.kind, victim)
        done += 1
    return done
