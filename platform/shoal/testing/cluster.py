"""What a lab has for a cluster: names of nodes and processes of workers, and what the controller asks of them."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Mapping
from typing import Any

from shoal.testing import processes
from shoal.testing.cable import Cable

__all__ = ["Cluster"]


class Cluster:
    """`alive`: slots of each living node; `drains`: deadlines (unix, s) of nodes that are announced to go; `processes`:
    every worker's by name, dead ones too. `cable`: what lies between workers and controller."""

    def __init__(self, folders: processes.Folders, nodes: Mapping[str, int], cable: Cable | None) -> None:
        self.alive = dict(nodes)
        self.drains: dict[str, float] = {}
        self.processes: dict[str, Any] = {}
        self._folders, self._cable = folders, cable

    def living(self) -> list[str]:
        """Workers whose processes are there."""
        return sorted(name for name, process in list(self.processes.items()) if process.is_alive())

    def signal(self, worker: str, number: int) -> None:
        process = self.processes.get(worker)
        if process is not None and process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)

    def ask(self, worker: str, question: dict[str, Any]) -> Any:
        """A worker's answer; None when nobody is there."""
        return processes.ask(processes.socket_of(self._folders, self.processes[worker].pid), question)

    def reply(self, question: dict[str, Any]) -> Any:
        """Do what the controller asks for."""
        match question["what"]:
            case "nodes":
                return self.alive
            case "draining":
                return self.drains
            case "workers":
                return self.living()
            case "rejoin":
                return self._rejoin(question["name"], question["meeting"])
            case "kill":
                self.signal(question["name"], signal.SIGKILL)
            case "spawn":
                self._spawn(question["setup"])
        return None

    def _spawn(self, setup: dict[str, Any]) -> None:
        if setup["node"] in self.alive:
            begun = processes.begin_worker(self._folders, setup | {"meeting": self._through_cable(setup["meeting"])})
            self.processes[setup["name"]] = begun

    def _rejoin(self, name: str, meeting: dict[str, Any]) -> bool:
        process = self.processes.get(name)
        there = process is not None and process.is_alive() and processes.socket_of(self._folders, process.pid).exists()
        if there:
            question = {"what": "rejoin", "meeting": self._through_cable(meeting)}
            threading.Thread(target=self.ask, args=(name, question), daemon=True).start()
        return there

    def _through_cable(self, meeting: dict[str, Any]) -> dict[str, Any]:
        if self._cable is None:
            return meeting
        return meeting | {"lifeline": self._cable.towards(*meeting["lifeline"])}
