"""What the controller looks after by the clock: nodes, spares, silent and late workers, the status file."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from shoal.control.events import Ending, Lost, Preemption, Standstill
from shoal.control.lifelines import Line
from shoal.control.mishaps import say
from shoal.control.modes import Draining, Gathering, Pausing, Running
from shoal.control.spawn import spares_wanted
from shoal.plan import NOWHERE, Node, Site
from shoal.protocol import orders
from shoal.protocol.said import Failed

if TYPE_CHECKING:
    from shoal.control.controller import Controller

__all__ = ["Chores"]


HOLD = 60.0
"""Seconds for which a run that gave spares up takes no others: until those who need the slots have them."""


class Chores:
    """Of one controller; everything runs in its event loop."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self.known: dict[str, Node] = {}
        """The living nodes."""
        self.node_of: dict[str, str] = {}
        """Of every worker that ever spoke, until its node is lost."""
        self.held_until = 0.0
        self.stalled = False
        """The record could not be written when last looked at."""
        self.moved = time.monotonic()
        """When a standstill was last acted upon, or a generation or a formation last begun."""

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
                self.controller.mishap(error)
            await asyncio.sleep(1.0)

    async def tell(self) -> None:
        """The status file, and how the record does."""
        while True:
            if self.controller.lease.lost:
                self.controller.end("failed", self.controller.lease.lost)
            try:
                self.record()
            except Exception as error:
                self.controller.mishap(error)
            await asyncio.sleep(1.0)

    async def quickly(self) -> None:
        """Many times a second: who is silent, who is late, whether anything moves at all. A look that fails is told,
        and the next is taken all the same."""
        while True:
            await asyncio.sleep(self.controller.timeouts.look)
            try:
                self.watch(time.monotonic())
            except Exception as error:
                self.controller.mishap(error)

    def watch(self, now: float) -> None:
        one = self.controller
        late = one.watchdog.look(now)
        one.stopped += late
        for line in one.lifelines.lines.values():
            line.excuse(late, now)
        self.fence(now)
        self.stand(now)

    def record(self) -> None:
        """Write the status. Tell once that the record cannot be written, and again when it can; end the run before
        what waits to be written fills the memory."""
        one = self.controller
        stall = one.scribe.pen.stall()
        if stall is not None and stall.over:
            lasted = time.time() - stall.since
            say(f"the record is written again: {stall.lines} lines had waited, for up to {lasted:.0f} s")
            one.scribe.event(
                "record_stalled", reason=stall.reason, since=stall.since, seconds=lasted, lines=stall.lines
            )
            stall = None
        elif stall is not None and not self.stalled:
            say(f"the record cannot be written ({stall.reason}): training goes on, and what is told waits")
        self.stalled = stall is not None
        if stall is not None and one.scribe.pen.full:
            one.on(Ending(f"the record could not be written ({stall.reason}) and {stall.lines} lines wait for it"))
        if not one.ended.is_set():  # what it ended as is told last
            one.scribe.status(one.state, one.lifelines.lines, stall, one.meeting.lifeline)

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
                if node.name not in one.state.going:
                    one.scribe.event("node_draining", node=node.name, deadline=deadlines[node.ray_id])
                one.on(Preemption(node.name))

    def hold(self) -> None:
        """Take no spares for a while: another run was given room."""
        self.held_until = time.monotonic() + HOLD

    def spare(self) -> None:
        """Keep warm spares on free slots, once the run is under way."""
        one = self.controller
        if one.state.halt is not None or (one.state.generation < 0 and one.state.expected):
            return
        seats = one.job.cells * one.job.workers_per_cell
        limit = None if one.job.spares == "all" else one.job.spares
        if time.monotonic() < self.held_until:
            limit = 0
        usable = [node for node in self.known.values() if one.state.may_be_used(node.name)]
        names = {node.name for node in usable}
        held = [(worker, start.node) for worker, start in one.spawner.started.items() if start.node in names]
        seated = [node for worker, node in held if worker in one.state.seats]
        idle = [node for worker, node in held if worker not in one.state.seats]
        for name in spares_wanted(usable, seated, idle, seats, limit, one.state.tally.unborn)[:2]:
            one.spawner.spawn(self.known[name], None)

    def fence(self, now: float) -> None:
        """Take for dead who has been silent too long, who never spoke, who holds up a drain or a step."""
        one = self.controller
        for worker, why in one.spawner.late(one.timeouts.start, set(self.known)):
            node = one.spawner.started[worker].node
            if node in self.known:
                one.ear.unborn(worker, why)
                continue
            one.spawner.kill(worker)
            one.scribe.event("not_started", actor=worker, node=node, how=why)
            one.on(Lost(worker, why))
        mute = set(one.state.awaited) if isinstance(one.state.mode, Draining) else set()
        lines = list(one.lifelines.lines.values())
        silences = sorted(line.silent(now) for line in lines)
        usual = silences[len(silences) // 4] if silences else 0.0
        for line in lines:
            try:
                self.judge(line, now, usual, owes=line.worker in mute)
            except Exception as error:  # the others are looked at all the same
                one.mishap(error)

    def judge(self, line: Line, now: float, usual: float, *, owes: bool) -> None:
        """Fence one worker, if it is to be: for its silence, or for what it was heard to do and not to do. `owes`: it
        has not answered the last stop."""
        dog = self.controller.watchdog
        silent, stuck, waited = line.silent(now), line.heard - line.since, line.heard - self.controller.stopped
        if silent > dog.silence(line.phase, usual):
            self.cut(line, f"silent for {silent:.1f} s")
        elif owes and waited > dog.stuck():
            self.cut(line, f"did not answer a stop within {waited:.1f} s")
        elif line.phase == "inside" and stuck > dog.stuck() and self.waited_for(line):
            self.cut(line, f"computed on one step for {stuck:.1f} s while others waited")

    def stand(self, now: float) -> None:
        """Notice that nothing moves: in the run, or in a cell that is formed while others train."""
        one, state = self.controller, self.controller.state
        forming = [state.cells[index] for index in state.cells.within("forming")]
        if isinstance(state.mode, Gathering):
            if idle := self.idle([m for cell in forming for m in cell.people()], now):
                one.on(Standstill(f"no cell was formed: {idle}"))
            return
        if isinstance(state.mode, Running | Pausing):  # who owes an answer to a stop is fenced for it
            if idle := self.idle(state.crew(), now):
                one.on(Standstill(f"step {state.committed} was not committed: {idle}"))
            for cell in [*forming, *state.successors.values()]:
                if cell.phase == "forming" and (idle := self.idle(cell.people(), now)):
                    one.on(Failed(cell.people()[0], state.generation, "form", idle, cell.attempt))

    def idle(self, workers: list[str], now: float) -> str:
        """That all of these workers have done the same for too long, in words; "" if they have not."""
        one = self.controller
        lines = [one.lifelines.lines[worker] for worker in workers if worker in one.lifelines.lines]
        if not lines:
            return ""
        since = max([self.moved, *(line.since for line in lines)])
        lasted = min(line.heard for line in lines) - since  # who is silent may have gone on
        phases = sorted({line.phase for line in lines})
        if lasted <= one.watchdog.still(phases):
            return ""
        self.moved = now
        return f"all workers were {' or '.join(phases)} for {lasted:.0f} s"

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
                one.lifelines.send(other.worker, orders.Fence(line.pid, line.worker))
        line.hang_up()
        del one.lifelines.lines[line.worker]
        one.ear.gone(line, why)
