"""A worker's life: form a cell, live through generations, answer stops, and never decide anything by itself.

The training thread takes one order after another from the lifeline's inbox, and waits there when it has none. While it
carries one out it looks only at `Calls`, and only where it waits for others: what was called off is left (`Stopped`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from shoal.config import Job
from shoal.protocol import orders
from shoal.protocol.greeting import Greeting
from shoal.protocol.said import Beat, Phase
from shoal.timeouts import Timeouts
from shoal.worker.calls import Calls
from shoal.worker.carriers import choose
from shoal.worker.copies import CopyServer
from shoal.worker.courier import Courier
from shoal.worker.device import VISIBLE
from shoal.worker.fencing import fence_soon
from shoal.worker.groups import Groups, Stopped
from shoal.worker.inject import Injector
from shoal.worker.kept import KeptStates
from shoal.worker.lastresort import LastResort
from shoal.worker.link import Link
from shoal.worker.machine import Machine
from shoal.worker.membership import Membership, ack_of
from shoal.worker.memory import Meter
from shoal.worker.profiler import Profiler
from shoal.worker.rendezvous import Rendezvous
from shoal.worker.setup import Meeting, Setup
from shoal.worker.shelf import Shelf
from shoal.worker.step import CellBroken, world_broke
from shoal.worker.thread import TrainingThread
from shoal.worker.voice import Voice
from shoal.worker.world import Kit, World, damage_of, not_to_be_had
from shoal_core.loading import predicts
from shoal_core.store import join, local_folder, open_store
from shoal_core.workload import Workload

__all__ = ["Loop"]


class Loop:
    """The training thread of one worker. `address`: the node's own, to serve copies of snapshots at."""

    def __init__(self, setup: Setup, job: Job, workload: Workload, address: str) -> None:
        self.setup = setup
        timeouts = Timeouts(job.patience, job.cells * job.workers_per_cell)
        self.calls = Calls()
        self.meeting = setup.meeting
        """With the controller that is obeyed; its secret proves to other workers too that this one is of the run."""
        self.link = Link(timeouts, publishes=local_folder(job.storage) is None)
        self.machine = Machine()
        self.link.progress, self.link.urgent = self.progress, self.urgent
        self.rendezvous = Rendezvous(self.link.ask)
        self.link.dropped = self.rendezvous.lost
        self.voice = Voice(setup.name, self.link, job.audit.samples, self.calls)
        self.copies: CopyServer | None = None
        shelf = Shelf()
        if job.snapshots.recalls or job.elastic is not None:
            self.copies = CopyServer(address, self.voice.held, timeouts.collective, lambda: self.meeting.secret, shelf)
        transport = choose(workload.runs_on, timeouts)
        groups = Groups(timeouts.collective, timeouts.build, self.calls.off, self.rendezvous, transport)
        thread = TrainingThread(self.run, timeouts.release)
        courier = Courier(timeouts, lambda: self.meeting.secret, shelf, setup.name)
        courier.address = None if self.copies is None else self.copies.address
        if local_folder(job.place) is None:  # then it is the controller's own, of which this node may have none
            setup.rundir.mkdir(parents=True, exist_ok=True)
        injector = Injector(job.inject, job.place)
        profiler = Profiler(setup.name, setup.rundir, job.place, self.voice.noted)
        told = (self.voice.saved, self.voice.not_saved, self.voice.noted)
        last = LastResort(timeouts.abort)
        local = job.checkpoint.local
        disk = None if local is None else open_store(join(local, str(job.run_id), setup.node))
        meter = Meter(workload.runs_on) if job.predict and predicts(workload) else None
        self.kit = Kit(
            job, workload, setup.rundir, groups, courier, thread, injector, profiler, last, disk, *told, meter=meter
        )
        self.world: World | None = None  # until it stands
        self.attempt, self.shape = -1, 0
        self.kept = KeptStates(courier)

    def meet(self, meeting: Meeting) -> Callable[[], None]:
        """Call this controller, to take orders from it from now on. Returns what waits until it has answered, or until
        another is called after it (`Link.call`)."""
        self.meeting = meeting
        called = self.link.call(meeting.lifeline, meeting.secret, self.greeting)

        def met() -> None:
            called.result()
            self.voice.settle(-1)  # who would have said it to that controller may be dead

        return met

    # ---- in the link's threads

    def greeting(self) -> Greeting:
        """Who this is, and what it is doing (for a controller that came back)."""
        world, beat, setup = self.world, self.beat(), self.setup
        seat = None if world is None else (world.order.cell, world.order.rank)
        where = (setup.home, seat, self.attempt, self.voice.generation, beat.phase, beat.steps)
        copies = None if self.copies is None else self.copies.address
        shape = (0, None) if world is None else (world.order.shape, world.order.mesh)
        return Greeting(
            setup.name, setup.node, os.getpid(), *where, copies, os.environ.get(VISIBLE, ""), *shape, self.kept.told()
        )

    def beat(self) -> Beat:
        """A sign of life."""
        return self.voice.beat(None if (world := self.world) is None else world.step)

    def progress(self) -> Beat:
        """A sign of life, now and then with figures of the node."""
        return replace(self.beat(), node=self.machine.figures())

    def urgent(self, order: orders.Order) -> bool:
        """What cannot wait for the training thread; true if that was all."""
        match order:
            case orders.Stop(generation, _, committed):
                self.calls.stopped = max(self.calls.stopped, generation)
                self.voice.settle(committed)  # this worker may be blocked where only a peer's late commit frees it
                if (world := self.world) is not None and ends(world, order):
                    world.cut()  # it may be blocked in a collective of the cell
                return False
            case orders.Form():
                self.calls.formations += 1
                if self.voice.phase is Phase.FORMING:
                    self.kit.groups.transport.cut()  # it may wait for one that died meanwhile
                return False
            case orders.Pause(generation):
                self.calls.pausing = generation
                if (world := self.world) is not None:
                    self.inject("pause", world.order)
            case orders.CopyTo(keeper):
                self.kit.courier.keeper = keeper
            case orders.Profile():
                self.kit.profiler.wanted = order
            case orders.Published(number):
                self.link.published(number)
            case orders.Fence(pid, worker):
                fence_soon(pid, worker, self.setup.rundir, self.kit.job.place)
            case _:
                return self.rendezvous.heard(order)
        return True

    # ---- in the training thread

    def run(self) -> None:
        """Serve orders for ever, or until this thread is left behind; the process is ended by the lifeline."""
        served: dict[type, Callable[[Any], None]] = {orders.Form: self.form, orders.Generation: self.live}
        served |= {orders.Stop: self.stop, orders.CommitLate: self.commit_late}
        while self.kit.thread.current():
            order = self.link.inbox.get()
            self.calls.living, self.calls.over = None, False
            try:
                served[type(order)](order)
            except Stopped:
                continue
            except Exception as error:
                self.voice.broke(error)

    def form(self, order: orders.Form) -> None:
        """Build the world of a cell and this worker's share of the model in it."""
        self.inject("form", order)
        self.leave()
        self.inject("left", order)
        if order.refill is not None:
            self.kept.only(order.refill.numbers)
        if self.kit.workload.runs_on != "cpu":
            self.voice.phase = Phase.LEAVING  # of the world to come there is nothing yet that could be cut
            self.kept.make_room(self.kit.last)
        self.calls.formed += 1
        self.shape = order.shape
        self.rendezvous.scope = f"cell/{order.cell}/{order.attempt}"
        self.voice.phase = Phase.FORMING
        world = World(order, self.kit)
        try:
            world.open(self.kept.of(order.shape))
        except Exception as error:
            self.kept.close(world)
            self.voice.phase = Phase.SPARE
            if not not_to_be_had(error):
                raise
            self.voice.failed("form", error, order.attempt, damage_of(order, error))
            return
        assert world.step is not None
        world.step.pausing = lambda: self.calls.pausing == self.voice.generation
        self.world, self.attempt = world, order.attempt
        held = sum(tensor.nbytes for tensor in world.step.tensors())
        self.voice.ready(order.cell, order.attempt, *world.filled, held)

    def inject(self, point: str, order: orders.Form) -> None:
        """A point where this worker stands in no step of the cell that an order names."""
        self.kit.injector.hit(point, -1, order.cell, order.rank)

    def leave(self) -> None:
        """Leave the cell, and keep the state."""
        if self.world is not None:
            self.voice.phase = Phase.LEAVING
            self.link.beat()  # the last for a while
            world, self.world = self.world, None
            self.kept.close(world)
        self.voice.phase = Phase.SPARE

    def live(self, order: orders.Generation) -> None:
        """Take part in a generation until it ends."""
        assert self.world is not None, "a generation was sent to a worker that stands in no cell"
        self.calls.living = order.generation
        self.voice.entered(order.generation)
        self.rendezvous.scope = f"generation/{order.generation}"
        membership = Membership(self.world, self.voice, lambda: self.meeting.session)
        with self.guarded():
            goes_on = membership.join(order)
            membership.step.inject("joined")
            self.kept.let_go(self.shape)
            if goes_on:
                membership.train()

    def stop(self, order: orders.Stop) -> None:
        """Leave the generation and say how far this worker is; leave a broken cell's world unless the pending step can
        still be committed here."""
        if (world := self.world) is not None and world.step is not None:
            world.freed()
            world.broken = ends(world, order)
            if world.broken and (world.step.total is None or world.step.torn):
                self.leave()
        self.answer(order.generation, order.committed, order.shape)

    def commit_late(self, order: orders.CommitLate) -> None:
        """Commit the pending step because somebody has. Peers of the cell may have gone on already and wait for this
        worker inside the next step: go there with them."""
        world = self.world
        if world is not None and world.step is not None and world.step.steps < order.steps:
            membership = Membership(world, self.voice, lambda: self.meeting.session)
            membership.commit_late(order)
            if world.broken:
                self.leave()
            elif world.step.steps < self.kit.job.steps:
                self.calls.over = True
                with contextlib.suppress(Stopped), self.guarded():
                    membership.train()
        self.answer(order.generation, order.steps, self.shape)

    def answer(self, generation: int, known: int, shape: int) -> None:
        """Say how far this worker is, in the `shape` that is asked after. `known`: committed steps that the controller
        knows of."""
        step = None if self.world is None else self.world.step
        standing = None if step is None else ack_of(step)
        self.voice.acked(generation, self.kept.answer(shape, standing), known)

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Around what needs peers: tell the controller if they fail. Raises Stopped: the generation ended."""
        try:
            yield
        except CellBroken as error:
            cause = error.__cause__ or error
            self.leave()  # closes the sockets: peers of the cell that wait for this worker are freed
            self.voice.failed("cell", RuntimeError(str(cause)))
        except RuntimeError as error:
            if not world_broke(error):
                raise
            self.voice.failed("between", error)


def ends(world: World, order: orders.Stop) -> bool:
    """Whether a stop ends a world: the cell is broken, or it is of another shape than the run's."""
    return world.order.cell in order.broken or world.order.shape != order.shape
