"""Groups that can be walked away from, on whatever carries them (`transport`).

Nobody blocks in a collective that reaches over cells: it is polled beside the stop flag, and on the flag the worker
leaves. The abandoned work and its buffers are kept until the next generation stands, then freed in a thread (freeing a
group joins its threads).
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from shoal.worker.rendezvous import Keys, Rendezvous, RingKeys
from shoal.worker.transport import Communicator, GlooTransport, Pending, Transport

__all__ = ["GROUPS", "WORLD", "Groups", "Stopped", "leave_world"]

SHORTEST, LONGEST = 0.0002, 0.002
"""Seconds between two looks at what is waited for: a fiftieth of the wait so far, within these."""
PATIENCE = 5
"""Times a group's timeout that gloo waits for a peer to connect (`Pair::waitUntilConnected`)."""
WORLD, GROUPS, ACROSS = "world", "groups", "across"
"""What stores are used for."""

Wanted = Sequence[tuple[str, int, int]]
"""Groups by (key, rank, size)."""


class Stopped(Exception):
    """The generation is over: the controller said so while this worker waited."""


class Groups:
    """The groups of one worker, and those it has left behind.

    `stopped`: tells whether to walk away. `timeout`: seconds, of every group; a safety net, not what ends a wait.
    `build_timeout`: seconds for building one, when all its members are there: only a death in between exhausts it.
    `rendezvous`: where the members of one membership find each other. `transport`: what carries the tensors; gloo, if
    it is left out.
    """

    def __init__(
        self,
        timeout: float,
        build_timeout: float,
        stopped: Callable[[], bool],
        rendezvous: Rendezvous,
        transport: Transport | None = None,
    ) -> None:
        self._timeout, self._build_timeout, self._stopped = timeout, build_timeout, stopped
        self._rendezvous = rendezvous
        self._gloo = GlooTransport(timeout)
        self.transport = transport or self._gloo
        self._held: dict[str, Keys] = {}
        self._left: list[Any] = []

    def until(self, done: Callable[[], bool]) -> None:
        """Wait for `done`.

        Raises:
            Stopped: the flag came first.
        """
        since = time.monotonic()
        while not done():
            if self._stopped():
                raise Stopped
            time.sleep(min(LONGEST, max(SHORTEST, (time.monotonic() - since) / 50)))

    def pause(self, seconds: float) -> None:
        """Wait for so long. Raises: as `until`."""
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= end)

    def meet(self, key: str, size: int) -> None:
        """Wait until all `size` members of `key` are here. A group is only built once nobody has to be waited for.

        That all have come, or that one turns round before, is decided once, at the controller: nobody goes on alone
        into a group whose other members have turned round.

        Raises:
            Stopped: somebody left, or was told to. DistError: the controller that would have decided is gone, or has
            opened another membership.
        """
        self._meet(key, size)

    def _meet(
        self, key: str, size: int, wanted: Sequence[str] = (), puts: Mapping[str, bytes] | None = None
    ) -> Sequence[tuple[str, str]]:
        """The same, and tell `puts` there; returns what was told of the `wanted` keys."""
        if size == 1:
            return ()
        meeting = self._rendezvous.meet(key, size, wanted, puts)
        try:
            self.until(meeting.settled)
        except Stopped:
            if not self._rendezvous.turn(key, size).go(self._timeout):
                raise
            return meeting.told()
        finally:
            self._rendezvous.forget(meeting)
        if not meeting.go(0.0):
            self.until(lambda: False)
        return meeting.told()

    def build(self, meeting: str, size: int, wanted: Wanted, across: Wanted = ()) -> list[Any]:
        """Groups outside the default world: of each wanted one, None for a group of one. `across`: those that carry the
        cells' tensors; the others are always gloo's. The `size` members of all of them come to one `meeting`, and tell
        each other there where they listen; nobody connects before.

        Raises: as `meet`.
        """
        former = self._held.get(GROUPS)
        keys = self._held[GROUPS] = RingKeys(self._rendezvous, self._build_timeout)
        keyed = [*wanted, *across] if self.transport.keyed else wanted
        built: list[Communicator | None] = [
            None if count == 1 else self._gloo.make(dist.PrefixStore(key, keys), rank, count)
            for key, rank, count in keyed
        ]
        ahead, mine = keys.introduction({key: (rank, count) for key, rank, count in keyed})
        try:
            keys.learn(self._meet(meeting, size, ahead, mine))
        except (Stopped, RuntimeError):
            self.leave(*built)
            raise
        finally:
            self._left.append(former)  # what was left behind may still ask it
        if not self.transport.keyed:
            store = self._keys(ACROSS)
            built += [
                None if count == 1 else self.transport.make(dist.PrefixStore(key, store), rank, count)
                for key, rank, count in across
            ]
        return built

    def world(self, key: str, rank: int, size: int) -> None:
        """Make the cell's default world; its members have met already.

        torch names a world by a counter that an attempt which failed leaves behind; members must agree on the name.
        """
        dist.distributed_c10d._world.group_count = 0
        dist.init_process_group(
            self.transport.backend,
            store=dist.PrefixStore(key, self._keys(WORLD)),
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=self._build_timeout / (PATIENCE if self.transport.backend == "gloo" else 1)),
            device_id=self.transport.device_id,
        )
        self.transport.check()
        if "gloo" in self.transport.backend:  # of a backend that is not its own torch would only warn
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=self._timeout), dist.group.WORLD)

    def beside(self) -> Any:
        """Another group of all in the cell's world, of gloo; its members have met. Collective.

        Whoever waits there for one that has turned round meanwhile is told by nobody: it comes out within the time that
        building takes at most, so that it can still answer a stop. What is done in the group may take longer.
        """
        made = dist.new_group(backend="gloo", timeout=timedelta(seconds=self._build_timeout / PATIENCE))
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=self._timeout), made)
        return made

    def _keys(self, use: str) -> Keys:
        """A store for what is built now; held here until the next of its `use`, since torch holds only its C++ half."""
        self._held[use] = Keys(self._rendezvous, self._build_timeout)
        return self._held[use]

    def mentioned(self, use: str, address: bytes) -> bool:
        """Whether the members of what was built last for this `use` told each other an address."""
        return use in self._held and self._held[use].mention(address)

    def finish(self, group: Communicator, pending: Pending) -> None:
        """Poll what was begun in a group to its end.

        Raises:
            Stopped: walked away; its buffers stay alive. RuntimeError: it failed.
        """
        self._left.append(pending)
        try:
            self.until(pending.done)
            pending.finish()
        except (Stopped, RuntimeError):
            group.abandon()
            raise
        self._left.pop()

    def sum(self, group: Communicator | None, tensor: torch.Tensor, started: Callable[[], None] = lambda: None) -> None:
        """Add `tensor` over the group, in place; `started` is called once this worker's part is under way. Who is alone
        waits for nobody, but looks whether to walk away all the same.

        Raises: as `finish`.
        """
        if group is None:
            started()
            if self._stopped():
                raise Stopped
            return
        self._stand(group)
        pending = group.sum(tensor)
        started()
        self.finish(group, pending)

    def copy(self, group: Communicator, tensor: torch.Tensor) -> None:
        """Copy `tensor` from rank 0 of the group to the others, in place."""
        self._stand(group)
        self.finish(group, group.copy(tensor))

    def _stand(self, group: Communicator) -> None:
        """Wait until something can be begun in a group. Raises: as `finish`."""
        if not group.ready():
            try:
                self.until(group.ready)
            except (Stopped, RuntimeError):
                group.abandon()
                raise

    def leave(self, *groups: Communicator | None) -> None:
        """Keep groups that may hold unfinished work until `retire`."""
        for group in groups:
            if group is not None:
                group.abandon()
                self._left.append(group)

    def retire(self) -> None:
        """Free what was left behind, off the training thread: nobody waits for it any more."""
        left, self._left = self._left, []

        def free() -> None:
            for item in left:
                if isinstance(item, Communicator):
                    item.free()
            left.clear()

        threading.Thread(target=free, daemon=True, name="retire").start()

    def leave_world(self) -> None:
        """Leave the cell's world so that its sockets close and peers blocked on them are freed."""
        self.transport.close()
        leave_world()


def leave_world() -> None:
    """Leave the cell's world so that its sockets close and peers blocked on them are freed.

    The collection is needed: the world hangs in reference cycles, and while it lives its sockets stay open.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
    gc.collect()
