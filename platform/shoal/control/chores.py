"""What the controller looks after by the clock: nodes, spares, silent and late workers, the status file."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from shoal.control.lifelines import Line
from shoal.control.messages import Draining, Lost
from shoal.control.spawn import spares_wanted
from shoal.plan import NOWHERE, Node, Site

if TYPE_CHECKING:
    from shoal.control.controller import Controller

__all__ = ["Chores"]


class Chores:
    """Of one controller; everything runs in its event loop."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self.known: dict[str, Node] = {}
        """The living nodes."""
        self.node_of: dict[str, str] = {}
        """Of every worker that ever spoke, until its node is lost."""

    def site(self, node: str) -> Site:
        """Where a node stands."""
        return self.known[node].site if node in self.known else NOWHERE

    async def slowly(self) -> None:
        """Once a second: what needs an answer from Ray, and files, which do not wait for it."""
        await asyncio.gather(self.look(), self.tell())

    async def look(self) -> None:
        """Nodes and spares. No answer comes while the head node is away: what was known of the nodes stays."""
        while True:
            try:
                await self.nodes()
                await self.draining()
                self.spare()
            except Exception as error:  # one failed look at the cluster must not end a run that trains
                print(f"shoal controller: {type(error).__name__}: {error}", flush=True)
            await asyncio.sleep(1.0)

    async def tell(self) -> None:
        """The status file."""
        one = self.controller
        while True:
            try:
                one.scribe.status(one.state, one.lifelines.lines)
            except Exception as error:
                print(f"shoal controller: no status is written: {type(error).__name__}: {error}", flush=True)
            await asyncio.sleep(1.0)

    async def quickly(self) -> None:
        """Many times a second: who is silent, who is late."""
        one = self.controller
        while True:
            await asyncio.sleep(one.timeouts.look)
            now = time.monotonic()
            late = one.watchdog.look(now)
            one.stopped += late
            for line in one.lifelines.lines.values():
                line.excuse(late, now)
            self.fence(now)

    async def nodes(self) -> None:
        one = self.controller
        found = {node.name: node for node in await asyncio.to_thread(one.fleet.nodes)}
        for name in self.known.keys() - found.keys():
            actors = [worker for worker, node in self.node_of.items() if node == name]
            for worker in actors:
                del self.node_of[worker]
            one.scribe.event("node_lost", node=name, actors=actors)
        self.known = found

    async def draining(self) -> None:
        """Tell of nodes that will be taken away; again and again, since a move may have to wait for its turn."""
        one = self.controller
        deadlines = await asyncio.to_thread(one.fleet.draining)
        for node in self.known.values():
            if node.ray_id in deadlines:
                if node.name not in one.state.draining:
                    one.scribe.event("node_draining", node=node.name, deadline=deadlines[node.ray_id])
                one.on(Draining(node.name))

    def spare(self) -> None:
        """Keep warm spares on free slots, once the run is under way."""
        one = self.controller
        if one.state.generation < 0 and one.state.expected:
            return
        seats = one.job.cells * one.job.workers_per_cell
        limit = None if one.job.spares == "all" else one.job.spares
        usable = [
            node
            for node in self.known.values()
            if node.name not in one.state.draining and node.name not in one.state.aside
        ]
        names = {node.name for node in usable}
        held = [(worker, start.node) for worker, start in one.spawner.started.items() if start.node in names]
        seated = [node for worker, node in held if worker in one.state.seats]
        idle = [node for worker, node in held if worker not in one.state.seats]
        for name in spares_wanted(usable, seated, idle, seats, limit)[:2]:
            one.spawner.spawn(self.known[name], None)

    def fence(self, now: float) -> None:
        """Take for dead who has been silent too long, who never spoke, who holds up a drain or a step."""
        one = self.controller
        for worker, why in one.spawner.late(one.timeouts.start, set(self.known)):
            one.spawner.kill(worker)
            one.on(Lost(worker, why))
        waited = now - one.stopped if one.state.mode == "draining" else 0.0
        mute = set(one.state.awaited) if waited > one.watchdog.stuck() and not one.state.pausing else set()
        lines = list(one.lifelines.lines.values())
        silences = sorted(line.silent(now) for line in lines)
        usual = silences[len(silences) // 4] if silences else 0.0
        for line in lines:
            silent, stuck = line.silent(now), now - line.since
            if silent > one.watchdog.silence(line.phase, usual):
                self.cut(line, f"silent for {silent:.1f} s")
            elif line.worker in mute:
                self.cut(line, f"did not answer a stop within {waited:.1f} s")
            elif line.phase == "inside" and stuck > one.watchdog.stuck() and self.waited_for(line):
                self.cut(line, f"computed on one step for {stuck:.1f} s while others waited")

    def waited_for(self, line: Line) -> bool:
        """Whether this worker's step is one that others have done their part of."""
        others = self.controller.lifelines.lines.values()
        return any(other.phase == "across" and other.steps == line.steps for other in others)

    def cut(self, line: Line, why: str) -> None:
        """Fence a worker: a frozen process obeys only a signal, which another worker of its node can send at once."""
        one = self.controller
        one.scribe.event("fenced", actor=line.worker, node=line.node, how=why)
        for other in one.lifelines.lines.values():
            if other.node == line.node and other is not line:
                one.lifelines.send(other.worker, {"type": "fence", "pid": line.pid, "worker": line.worker})
        line.writer.close()
        del one.lifelines.lines[line.worker]
        one.gone(line, why)
