"""Whose a record on a store is: the manifest names its holder, and every holder's first deed is to swap it.

That is a compare-and-swap, so of two controllers one wins; and since whatever is published is a swap too, the one
before notices at its next and publishes nothing more, however long it was frozen or cut off. No clock is asked: that a
holder lives is seen by watching whether the manifest changes, as it does every few seconds.
"""

from __future__ import annotations

import os
import secrets
import socket
import time

from shoal.record import manifest as manifests
from shoal.record.lease import Held, Holder, LeaseLost, may_take
from shoal.record.manifest import Manifest
from shoal_core.errors import UserError
from shoal_core.store import Store, get_small

__all__ = ["PARTS", "WATCH", "Grip", "check", "read", "take"]

WATCH = 10.0
"""Seconds for which a record is watched before its holder counts as gone: twice what it may be behind."""
LOOK = 0.5
"""Seconds between two looks at it meanwhile."""
MOST = 64 << 20
"""Bytes of a manifest that is believed to be one: a hundred of a record's terabyte."""
PARTS = "record"
"""Where a record's objects lie, but for its manifest."""


def read(store: Store) -> tuple[Manifest, str | None]:
    """The manifest in a run's place, and its version for `Store.swap`; an empty one and None if there is none.

    Should it be replaced between the two questions, the version is an older one, with which no swap succeeds.

    Raises:
        UserError: it is damaged. StoreError: it cannot be read.
    """
    try:
        known = store.stat(manifests.NAME)
        return manifests.parse(get_small(store, manifests.NAME, MOST, known)), known.version
    except FileNotFoundError:
        return Manifest(), None
    except ValueError as error:
        where = store.where(manifests.NAME)
        raise UserError(f"{where}: {error}", "restore it from a copy, or choose another run_id") from error


def take(store: Store, owner: str, *, watch: float = WATCH) -> Grip:
    """Take the record in a run's place for the session `owner`, unless another one that lives has it. What the manifest
    names from then on is all that its former holders ever published.

    Raises:
        Held: another lives, or was quicker. UserError: the store has no conditional writes, or the manifest is damaged.
        StoreError: the store does not answer.
    """
    found, version = read(store)
    allowed, end = may_take(found.holder, owner, None), time.monotonic() + watch
    while allowed is None:
        time.sleep(min(LOOK, watch / 10))
        now, version = read(store)
        if now.writes != found.writes:
            allowed = may_take(now.holder, owner, True)
        elif time.monotonic() > end:
            allowed = True
        found = now
    if not allowed:
        words = found.holder.words() if found.holder else "elsewhere"
        raise Held(
            f"{store.address}: this run is running now {words}: it gave a sign of life a moment ago",
            "end it first (shoal stop), or choose another run_id",
        )
    before = found.holder
    epoch = before.epoch + 1 if before is not None and before.owner == owner else 0
    mine = found.taken(Holder(owner, epoch, socket.gethostname(), os.getpid()), secrets.token_hex(8))
    grip = Grip(store, found, version)
    try:
        grip.swap(mine)
    except LeaseLost as error:
        raise Held(str(error), "wait for it") from error
    return grip


def check(store: Store, owner: str) -> None:
    """To be called before something of a session is written by others than its controller, who may be gone.

    Raises:
        LeaseLost: another session has the run.
    """
    try:
        holder = read(store)[0].holder
    except UserError:
        return  # it tells nothing
    if holder is not None and not may_take(holder, owner, alive=True):
        raise LeaseLost(f"{store.address}: this run was taken by another session, {holder.words()}")


class Grip:
    """The hold on a record that this process has. One thread at a time.

    Attributes:
        manifest: as it stands on the store, by all that is known here.
        before: as it stood before it was taken.
    """

    def __init__(self, store: Store, manifest: Manifest, version: str | None) -> None:
        self.store, self.before, self.manifest, self._version = store, manifest, manifest, version

    def swap(self, wanted: Manifest) -> bool:
        """Put `wanted` in the manifest's place; False: a write before this one, whose answer was lost, had been done
        after all, and `manifest` is that one now: make another of it.

        Raises:
            LeaseLost: another holds the record. StoreError: it may have been done, or not.
        """
        version = self.store.swap(manifests.NAME, manifests.dump(wanted), self._version)
        if version is None:
            found, version = read(self.store)
            if version is None or found.token != wanted.token:
                mine, theirs = wanted.holder, found.holder
                succeeded = mine is not None and theirs is not None and mine.owner == theirs.owner
                another = "controller" if succeeded else "session"
                words = theirs.words() if theirs else "which has ended since"
                what = f"this run was taken by another {another}, {words}"
                if version is None:
                    what = f"somebody removed {manifests.NAME}, so that nobody knows whose this run is"
                raise LeaseLost(f"{self.store.address}: {what}", succeeded=succeeded)
            self.manifest, self._version = found, version
            return found == wanted
        self.manifest, self._version = wanted, version
        return True

    def release(self) -> None:
        """Nobody writes the record any more, and whoever comes next need not watch. Raises: as `swap`."""
        left = self.manifest.left()
        version = self.store.swap(manifests.NAME, manifests.dump(left), self._version)
        if version is not None:
            self.manifest, self._version = left, version
