"""A cell's world as one worker stands in it: its connections, its share of the model, and what saves it. It opens and
closes as one; what is left afterwards is the state, if it is anybody's.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from shoal import checkpoint
from shoal.config import Job
from shoal.protocol import orders
from shoal.protocol.said import Damage
from shoal.record import layout, raytrain
from shoal.saving.deadline import Speed
from shoal.saving.pace import Pace
from shoal.worker.copies import LostCopy
from shoal.worker.courier import Courier
from shoal.worker.groups import WORLD, Groups
from shoal.worker.inject import Injector
from shoal.worker.lastresort import LastResort
from shoal.worker.memory import Meter
from shoal.worker.profiler import Profiler
from shoal.worker.sockets import Sockets
from shoal.worker.standing import Member
from shoal.worker.step import Step, world_broke
from shoal.worker.thread import TrainingThread
from shoal_core.ckpt.folder import Folder, name_of
from shoal_core.errors import StoreError
from shoal_core.lane import room_for
from shoal_core.loading import build_shard
from shoal_core.mesh import cell_mesh
from shoal_core.store import PAUSES, Store, join, open_store
from shoal_core.workload import ORIGIN, Workload

__all__ = ["Kit", "RetainedState", "World", "damage_of", "make_room", "not_to_be_had", "park"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kit:
    """What a worker brings into every cell. `last`: ends the process if its device gives no answer; `disk`: its node's
    own, for checkpoints, if there is one; `saved`, `not_saved`: see `checkpoint.Saver`; `noted`: takes lines for the
    journal of a step; `speed`: at which this process writes to the storage."""

    job: Job
    workload: Workload
    rundir: Path
    groups: Groups
    courier: Courier
    thread: TrainingThread
    injector: Injector
    profiler: Profiler
    last: LastResort
    disk: Store | None
    saved: Callable[[int, str, float, int], None]
    not_saved: Callable[[int, str, str], None]
    noted: Callable[[int, Mapping[str, Any]], None]
    speed: Speed = field(default_factory=Speed)
    meter: Meter | None = None
    """Of a job whose memory was predicted."""

    @cached_property
    def place(self) -> Store:
        """Of the run: opened once, since a client takes a second."""
        return open_store(self.job.place)

    @property
    def checkpoints(self) -> str:
        """Their address."""
        return join(self.job.place, layout.CHECKPOINTS)

    @property
    def origin(self) -> dict[str, Any]:
        """Where the session began, and with what (`shoal.resume.Origin`)."""
        return self.job.workload.get(ORIGIN) or {}


@dataclass(frozen=True)
class RetainedState:
    """What a worker that left its cell's world still holds: its shard of the state after `steps` committed steps, in
    the shape of the number `shape`."""

    steps: int
    evaluated: int
    rank: int
    tensors: list[torch.Tensor]
    shape: int = 0


class World:
    """Of the cell and attempt that an order names. `broken`: the last stop said that the cell is."""

    def __init__(self, order: orders.Form, kit: Kit) -> None:
        self.order, self.kit = order, kit
        self.broken = False
        self.step: Step | None = None
        self.saver: checkpoint.Saver | None = None
        self.filled = (0.0, 0)
        """Seconds that it took to fill the shard from those of another shape, and bytes of it that came from others."""
        self.pace = Pace(kit.job.checkpoint.every)
        self._sockets = Sockets()

    def open(self, retained: RetainedState | None) -> None:
        """Build it, once all its members are there, and this worker's share of the model in it. `retained`: the state
        that this worker holds, if it is to go on from that.

        Raises:
            Stopped: something else was ordered meanwhile. Damaged, LostCopy: the state is not to be had.
            RuntimeError: a peer is gone.
        """
        order, kit = self.order, self.kit
        workload = kit.workload if order.mesh is None else kit.workload.shaped(asdict(order.mesh))
        kit.groups.meet("world", order.size)
        self._sockets.mark()
        kit.groups.world("world", order.rank, order.size)
        if kit.meter is not None:
            kit.meter.begin()
        shard = build_shard(workload, kit.job.seed, state_follows=state_follows(order, kit.origin))
        kit.groups.meet("beside", order.size)  # some build their shard sooner than others
        group, asking = kit.groups.beside(), kit.groups.beside()
        bringing = None if kit.disk is None else kit.groups.beside()
        self._sockets.taken(partial(kit.groups.mentioned, WORLD))
        member = Member(order.cell, order.rank, order.size)
        step = self.step = Step(member, workload, shard, kit.groups, kit.job, kit.injector)
        step.inside, step.meter = partial(kit.thread.inside, self), kit.meter
        if order.restore is not None:
            self._restore(step, order.restore, group)
        if order.keep:
            resume(step, retained)
        if order.recall is not None:
            kit.courier.fetch(step, order.recall)
        if order.refill is not None:
            step.inject("fill")
            self.filled = kit.courier.refill(step, order.refill, order.shape)
            step.inject("filled")
        mesh = asdict(cell_mesh(workload, order.size))
        about = {"run_id": kit.job.run_id, "workers": order.size, "mesh": mesh, "workload": kit.job.workload}
        how, start = kit.job.checkpoint, kit.origin.get("start")
        told = (about, kit.saved, kit.not_saved, asking)
        disk = None if kit.disk is None else checkpoint.Disk(kit.disk, checkpoint.Group(bringing))
        keep, used = how.stays, () if start is None else (start,)
        telling = (kit.speed, kit.noted, lambda those: raytrain.write(kit.place, keep, those))
        lane = step.snapshot.lane
        self.saver = checkpoint.Saver(kit.checkpoints, group, lane, keep, *told, disk, used, *telling)

    def _restore(self, step: Step, steps: int, group: Any) -> None:
        """Take the state of a checkpoint; that of 0 steps is the initial one unless the session began with one (an
        imported or extended model).

        Raises:
            Damaged: the checkpoint is not what was committed. Unfit: it is of another state.
            RuntimeError: a peer is gone.
        """
        if state_follows(self.order, self.kit.origin):
            folder = Folder(open_store(self.kit.checkpoints, self.kit.job.place), name_of(steps))
            step.shard.loaded(self._loaded(folder, step.state_dict(), group))
        step.steps = step.saved = steps

    def _loaded(self, folder: Folder, state: dict[str, Any], group: Any) -> int:
        """Fill a state from a checkpoint, all ranks at once; a store that fails is asked again. Returns its steps.

        Raises:
            Stopped: something else was ordered meanwhile. StoreError: it fails still. Others as `_restore`.
        """
        for pause in PAUSES:
            try:
                return checkpoint.load(folder, state, group, self.kit.disk, self.kit.courier.remembered).steps
            except StoreError as error:
                logger.warning("the checkpoint is asked for again in %.0f s: %s", pause, error)
            self.kit.groups.pause(pause)
        return checkpoint.load(folder, state, group, self.kit.disk, self.kit.courier.remembered).steps

    def cut(self) -> None:
        """Free the training thread, which may be blocked in a collective of the cell. Any thread."""
        self.kit.groups.transport.cut()
        self._sockets.cut()
        if self.kit.groups.transport.leaves_threads:
            self.kit.thread.release(self)

    def freed(self) -> None:
        """The training thread is blocked in none of the cell's collectives."""
        self.kit.groups.transport.freed()

    def close(self) -> RetainedState | None:
        """Leave it: drop all that lives in it but the state, which is returned if there is a whole one. Averages are
        waited for, which come from the device: if it gives nothing more, the process ends."""
        step = self.step
        if self.saver is not None:
            self.saver.stand(())
        retained = None
        if step is not None and step.steps >= 0 and not step.torn:
            on_device = self.kit.workload.runs_on != "cpu"
            with self.kit.last.within("the wait for a kept state") if on_device else nullcontext():
                step.snapshot.lane.precede()  # else whoever copies it would hold the shard
                tensors = [tensor.detach() for tensor in step.tensors()]
            retained = RetainedState(step.steps, step.evaluated, step.member.rank, tensors, self.order.shape)
        if step is not None:
            step.abandon()
        self.step = self.saver = step = None
        self.kit.groups.leave_world()
        return retained


def state_follows(order: orders.Form, origin: Mapping[str, Any]) -> bool:
    """Whether a shard that is built for this order has its state written right after: by a peer, from its own memory,
    another's, or a checkpoint. Only the state of 0 steps is drawn, unless the session began with a checkpoint of it (an
    imported or extended model). origin: where the session began."""
    return order.restore != 0 or origin.get("start") == 0


def not_to_be_had(error: Exception) -> bool:
    """Whether a world did not come up because a peer, a copy or a checkpoint is not to be had, now or any more."""
    broke = isinstance(error, RuntimeError) and world_broke(error)
    return broke or isinstance(error, LostCopy | checkpoint.Damaged | StoreError)


def damage_of(order: orders.Form, error: Exception) -> Damage | None:
    """What is wrong with the checkpoint that was to be loaded, if that is what an error is about."""
    if isinstance(error, checkpoint.Damaged) and order.restore is not None:
        return Damage(order.restore, error.problem)
    return None


def make_room(kept: Mapping[int, RetainedState], last: LastResort) -> dict[int, RetainedState]:
    """Have nothing of the last shard on the device when the next is built. Not done on leaving: all cells wait for the
    answer to a stop, and only this one for its world. `last`: see `park`."""
    parked = {number: park(retained, last) for number, retained in kept.items()}
    gc.collect()  # who left may have held the shard, which hangs in cycles, while its world was closed
    return parked


def park(retained: RetainedState, last: LastResort) -> RetainedState:
    """The same state with nothing of it on a GPU, so that the next shard finds room there: it is built with storage of
    its own, and its parts are views of that, so it could not be given this one. What is in the CPU's memory stays
    where it is; the rest is copied into pinned memory.

    A device on which something was aborted may never answer: `last` ends the process if a tensor does not come in time.
    """

    def here(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_cuda:
            return tensor
        with last.within("the copy of a kept tensor from the device"):
            return room_for(tensor).copy_(tensor)  # waits: the caller may let go of what was copied

    return replace(retained, tensors=[here(tensor) for tensor in retained.tensors])


def resume(step: Step, retained: RetainedState | None) -> None:
    """Go on from the state this worker kept; it keeps that until a generation stands."""
    assert retained is not None, "told to go on from a state that is not held here"
    assert retained.rank == step.member.rank, "told to go on from another rank's shard"
    for mine, held in zip(step.tensors(), retained.tensors, strict=True):
        mine.copy_(held)
    step.healed(retained.steps)
    step.evaluated = retained.evaluated
