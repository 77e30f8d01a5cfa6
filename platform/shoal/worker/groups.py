"""Process groups that can be walked away from.

A stuck gloo collective cannot be aborted, so nobody blocks in one that reaches over cells: it is polled beside the
stop flag, and on the flag the worker leaves. The abandoned work and its buffers are kept until the next generation
stands, then freed in a thread (freeing a group joins its threads).
"""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from shoal.worker.rendezvous import Keys, Rendezvous, RingKeys

__all__ = ["GROUPS", "WORLD", "Groups", "Stopped", "leave_world"]

SHORTEST, LONGEST = 0.0002, 0.002
"""Seconds between two looks at what is waited for: a fiftieth of the wait so far, within these."""
WORLD, GROUPS = "world", "groups"
"""What stores are used for."""


class Stopped(Exception):
    """The generation is over: the controller said so while this worker waited."""


class Groups:
    """The groups of one worker, and those it has left behind.

    `stopped`: tells whether to walk away. `timeout`: seconds, of every group; a safety net, not what ends a wait.
    `build_timeout`: seconds for building one, when all its members are there: only a death in between exhausts it.
    `rendezvous`: where the members of one membership find each other.
    """

    def __init__(
        self, timeout: float, build_timeout: float, stopped: Callable[[], bool], rendezvous: Rendezvous
    ) -> None:
        self._timeout, self._build_timeout, self._stopped = timeout, build_timeout, stopped
        self._rendezvous = rendezvous
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

    def meet(self, key: str, size: int) -> None:
        """Wait until all `size` members of `key` are here. A group is only built once nobody has to be waited for.

        That all have come, or that one turns round before, is decided once, at the controller: nobody goes on alone
        into a group whose other members have turned round.

        Raises:
            Stopped: somebody left, or was told to. DistError: the controller that would have decided is gone, or has
            opened another membership.
        """
        if size == 1:
            return
        meeting = self._rendezvous.meet(key, size)
        try:
            self.until(meeting.settled)
        except Stopped:
            if not self._rendezvous.turn(key, size).go(self._timeout):
                raise
            return
        finally:
            self._rendezvous.forget(meeting)
        if not meeting.go(0.0):
            self.until(lambda: False)

    def build(self, wanted: Sequence[tuple[str, int, int]]) -> list[Any]:
        """Groups outside the default world: of each (key, rank, size), None for a group of one. The members of each
        have met already.

        Raises:
            DistError: there is no controller.
        """
        keys = self._held[GROUPS] = RingKeys(self._rendezvous, self._build_timeout)
        built = [
            None if size == 1 else dist.ProcessGroupGloo(dist.PrefixStore(key, keys), rank, size, self._options())
            for key, rank, size in wanted
        ]
        keys.exchange({key: (rank, size) for key, rank, size in wanted})
        return built

    def _options(self) -> Any:
        """Of a group: its members connect when they first speak to each other. In a large run a worker has to do with
        few of the others, and could not hold a connection to each."""
        gloo: Any = dist.ProcessGroupGloo  # of which the stubs do not know all
        options = gloo._Options()
        # torch looks at this variable only where it makes the devices itself; without it gloo takes this host's name,
        # which may stand for loopback, where no other node would find it.
        names = os.environ.get("GLOO_SOCKET_IFNAME", "")
        options._devices = [
            gloo.create_device(interface=name, lazy_init=True) if name else gloo.create_default_device(lazy_init=True)
            for name in names.split(",")
        ]
        options._timeout = timedelta(seconds=self._timeout)
        return options

    def world(self, key: str, rank: int, size: int) -> None:
        """Make the cell's default world; its members have met already.

        torch names a world by a counter that an attempt which failed leaves behind; members must agree on the name.
        """
        dist.distributed_c10d._world.group_count = 0
        dist.init_process_group(
            "gloo",
            store=dist.PrefixStore(key, self._keys(WORLD)),
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=self._build_timeout),
        )
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=self._timeout), dist.group.WORLD)

    def _keys(self, use: str) -> Keys:
        """A store for what is built now; held here until the next of its `use`, since torch holds only its C++ half."""
        self._held[use] = Keys(self._rendezvous, self._build_timeout)
        return self._held[use]

    def mentioned(self, use: str, address: bytes) -> bool:
        """Whether the members of what was built last for this `use` told each other an address."""
        return use in self._held and self._held[use].mention(address)

    def finish(self, work: dist.Work, *buffers: torch.Tensor) -> None:
        """Poll a collective to its end.

        Raises:
            Stopped: walked away; `buffers` stay alive. RuntimeError: it failed.
        """
        self._left.append((work, buffers))
        self.until(work.is_completed)
        work.wait()  # completed is also what failed is: this raises
        self._left.pop()

    def sum(
        self, group: dist.ProcessGroup | None, tensor: torch.Tensor, started: Callable[[], None] = lambda: None
    ) -> None:
        """Add `tensor` over the group, in place; `started` is called once this worker's part is under way. Who is alone
        waits for nobody, but looks whether to walk away all the same.

        Raises: as `finish`.
        """
        if group is None:
            started()
            if self._stopped():
                raise Stopped
            return
        work = group.allreduce([tensor])
        started()
        self.finish(work, tensor)

    def copy(self, group: dist.ProcessGroup, tensor: torch.Tensor) -> None:
        """Copy `tensor` from rank 0 of the group to the others, in place."""
        options = dist.BroadcastOptions()
        options.rootRank = 0
        options.rootTensor = 0
        self.finish(group.broadcast([tensor], options), tensor)

    def leave(self, *groups: dist.ProcessGroup | None) -> None:
        """Keep groups that may hold unfinished work until `retire`."""
        self._left += [group for group in groups if group is not None]

    def retire(self) -> None:
        """Free what was left behind, off the training thread: nobody waits for it any more."""
        left, self._left = self._left, []

        def free() -> None:
            for item in left:
                if isinstance(item, dist.ProcessGroupGloo):
                    item.abort()
            left.clear()

        threading.Thread(target=free, daemon=True, name="retire").start()


def leave_world() -> None:
    """Leave the cell's world so that its sockets close and peers blocked on them are freed.

    The collection is needed: the world hangs in reference cycles, and while it lives its sockets stay open.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
    gc.collect()
