"""Carries this worker's snapshots to their keeper in the background, and states out of other workers' memory: one back
when the run goes back to it, and parts of many where a cell has another shape than theirs."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from shoal.checkpoint import OURS, Group
from shoal.protocol.orders import Keeper, Recall, Refill
from shoal.saving.deadline import Speed
from shoal.timeouts import Timeouts
from shoal.worker.copies import LostCopy
from shoal.worker.peers import Peer, push
from shoal.worker.shelf import STATES, Held, Shelf, copy_name, state_name
from shoal.worker.snapshot import Kept, Snapshot
from shoal.worker.step import Step
from shoal_core.ckpt.errors import Damaged, Unfit
from shoal_core.ckpt.gather import gather
from shoal_core.ckpt.pieces import Piece
from shoal_core.ckpt.plan import Holder
from shoal_core.ckpt.state import destinations, held
from shoal_core.ckpt.tables import Table, in_order, merged, table_of
from shoal_core.errors import StoreError

__all__ = ["Courier", "filled", "placed", "put_together", "recall"]

logger = logging.getLogger(__name__)

LOOKS = 16
"""Workers that are asked at once for what they hold."""

Address = tuple[str, int]


class Courier:
    """`keeper`: who keeps copies of this worker's snapshots, if it was told to make any. `secret`: the run's. `shelf`:
    what the worker `own` holds for others."""

    def __init__(self, timeouts: Timeouts, secret: Callable[[], str], shelf: Shelf, own: str) -> None:
        self._timeouts, self._secret, self._shelf, self._own = timeouts, secret, shelf, own
        self._sending: threading.Thread | None = None
        self._table: tuple[weakref.ref[Step], int, Table] | None = None
        self.keeper: Keeper | None = None
        self.address: Address | None = None
        """Where others are given ranges of what is on the shelf, if they are."""
        self._speed = Speed()

    @property
    def speed(self) -> float:
        """Bytes a second at which copies go to the keeper; 0 if there is none."""
        return 0.0 if self.keeper is None else self._speed.bytes

    def keep(self, step: Step, shape: int) -> None:
        """Copy the state for a later roll back and, in the background, to the keeper. All ranks' copies are of the
        same steps: so one that is still on its way is waited for, unless its keeper does not answer. `shape`: the
        number of the cell's."""
        if self._sending is not None:
            self._sending.join(self._timeouts.silence)
            if self._sending.is_alive():
                self.keeper = None
        step.snapshot.take(step.tensors_by_commit(), step.steps)
        if self.keeper is not None:
            told = (step.member.rank, step.steps, self.keeper, shape)
            sent = (step.snapshot, step.snapshot.lend(), self.table(step), *told)
            self._sending = threading.Thread(target=self._send, args=sent, daemon=True, name="copy")
            self._sending.start()

    def table(self, step: Step) -> Table:
        """Which parts of the state a worker's tensors are, by name: of what has none it can be had by nobody but its
        own rank. Kept for as long as it is true."""
        known = self._table
        if known is None or known[0]() is not step or known[1] != step.shard.placings:
            table: Table = {}
            with contextlib.suppress(Unfit):  # which no checkpoint of it could do without: told there
                table = table_of(placed(step), step.tensors())
            known = self._table = weakref.ref(step), step.shard.placings, table
        return known[2]

    def held(self, step: Step) -> Held:
        """What a worker that stands between two steps has of the state, for as long as it does."""
        steps = step.steps
        return Held(step.tensors(), self.table(step), lambda: step.steps == steps and not step.torn)

    @contextlib.contextmanager
    def remembered(self, peers: Group, steps: int) -> Iterator[Mapping[str, tuple[Holder, Peer | Shelf]]]:
        """What the ranks of a cell have of the state after so many steps: copies that they keep, and shards of their
        own. Collective.

        Raises:
            RuntimeError: a peer is gone.
        """
        mine = [] if self.address is None else [name for name in self._shelf.names("") if name.endswith(f"/{steps}")]
        sources: dict[str, tuple[Peer | Shelf, list[str]]] = {}
        with contextlib.ExitStack() as open_ones:
            for rank, (where, names) in enumerate(peers.exchange([self.address, mine])):
                if names and rank == peers.rank:
                    sources[str(rank)] = self._shelf, names
                elif names:
                    peer = Peer(tuple(where), self._secret(), self._timeouts.build)
                    sources[str(rank)] = open_ones.enter_context(peer), names
            found = looked(sources)
            own = str(peers.rank)
            yield {key: (Holder(table, int(key != own)), sources[key][0]) for key, table in found.items()}

    def open(self, step: Step, shape: int) -> None:
        """Let others have ranges of the state of a worker that stands between two steps, in a shape of this number."""
        self._shelf.put(state_name(shape, step.steps), self.held(step))

    def lay_out(self, shape: int, steps: int, tensors: Sequence[torch.Tensor]) -> None:
        """The state that others may have ranges of lies in these tensors from now on; it stays as it is."""
        name = state_name(shape, steps)
        if (held := self._shelf.get(name)) is not None:
            self._shelf.put(name, Held(tensors, held.table))

    def put_away(self, but: Collection[int] = ()) -> None:
        """Nobody has ranges of this worker's own state any more, but of the shapes of these numbers."""
        kept = tuple(state_name(shape, "") for shape in but)
        for name in self._shelf.names(STATES):
            if not name.startswith(kept):
                self._shelf.drop(name)

    def refill(self, step: Step, order: Refill, shape: int) -> tuple[float, int]:
        """Fill a worker's shard, in the shape of a number, from what others, and itself, hold of other shapes; others
        may have ranges of it then. Returns the seconds it took, and the bytes that came from others.

        Raises:
            LostCopy: some of it is not to be had; the state is nobody's then.
        """
        began, place = time.monotonic(), step.member.cell * step.member.size + step.member.rank
        names = [state_name(number, order.steps) for number in order.numbers]
        holders = {worker: (address, list(names)) for worker, address in order.holders}
        for copy in order.copies:
            _, held = holders.setdefault(copy.keeper, (copy.address, []))
            held.append(copy_name(copy.rank, order.steps, copy.shape))
        given = put_together(step, holders, self._shelf, self._own, self._secret(), self._timeouts.build, place)
        step.healed(order.steps)
        self.open(step, shape)
        return time.monotonic() - began, given.total() - given[self._own]

    def _send(
        self, snapshot: Snapshot, kept: Kept, table: Table, rank: int, steps: int, keeper: Keeper, shape: int
    ) -> None:
        # without the keeper's word to the controller it is no copy
        with contextlib.suppress(OSError, ValueError):
            tensors, start = kept.read(), time.monotonic()
            held, secret = Held(tensors, table), self._secret()
            size = push(held, rank, steps, keeper, secret, self._timeouts.build, shape)
            self._speed.took(size, time.monotonic() - start)
        snapshot.give_back(kept)

    def fetch(self, step: Step, order: Recall) -> None:
        """Go on from the copy of a snapshot of this rank that another worker holds.

        Raises:
            LostCopy: it is not to be had any more; the state is nobody's then.
        """
        if order.keeper is None:
            raise LostCopy("its keeper is gone")
        where = step.member.rank, order.steps, order.keeper, self._secret(), self._timeouts.build, order.shape
        recall(step.tensors(), *where)
        step.healed(order.steps)


def recall(
    tensors: list[torch.Tensor], rank: int, steps: int, keeper: Keeper, secret: str, timeout: float, shape: int = 0
) -> Counter[str]:
    """Fill a rank's tensors from the copy of them that `keeper` holds, of the shape of a number. Returns the bytes.

    Raises: as `Courier.fetch`.
    """
    name = copy_name(rank, steps, shape)
    table, wanted, targets = in_order(tensors, name)
    sizes = {name: sum(tensor.nbytes for tensor in tensors)}
    with Peer(keeper.address, secret, timeout, sizes) as peer:
        try:
            return gather({"": Holder(table)}, {"": peer}, wanted, targets, peer.where(name))
        except (Damaged, StoreError) as error:
            raise LostCopy(f"the keeper did not give the copy of step {steps}: {error.problem}") from error


def placed(step: Step) -> list[tuple[Piece, torch.Tensor]]:
    """The parts of the state that a worker has, each with its tensor, as `Step.state_dict` names them. Not collective.

    Raises:
        Unfit: a value is no tensor, or is of a type that has no name.
    """
    return [*step.shard.placed(), *held(step.sums.state()).items()]


def put_together(
    step: Step,
    holders: Mapping[str, tuple[Address, Sequence[str]]],
    shelf: Shelf,
    own: str,
    secret: str,
    timeout: float,
    turn: int = 0,
) -> Counter[str]:
    """Fill a worker's new shard from what others, and itself, hold of one state, whatever shape they held it in: each
    range once, from itself what it has, and about equally from the others. `holders`: where each is, and the names of
    what it holds; `own`: which of them this worker is, which has it on its own `shelf`; `turn`: another for each
    reader. Returns the bytes that are of each. What the state is of (`Step.healed`) is the caller's to say.

    Raises:
        LostCopy: some range is not to be had; the shard is nobody's then.
    """
    with contextlib.ExitStack() as open_ones:
        sources: dict[str, Peer | Shelf] = {
            key: shelf if key == own else open_ones.enter_context(Peer(address, secret, timeout))
            for key, (address, _) in holders.items()
        }
        tables = looked({key: (source, holders[key][1]) for key, source in sources.items()})
        having = {key: Holder(table) for key, table in tables.items()}
        try:
            return filled(step, having, sources, own, turn)
        except (Damaged, StoreError, Unfit) as error:
            raise LostCopy(f"the state cannot be put together: {error.problem}") from error


def filled(
    step: Step, holders: Mapping[str, Holder], sources: Mapping[str, Peer | Shelf], own: str, turn: int = 0
) -> Counter[str]:
    """The same from holders that were looked at: first what says where in the shard its parts lie, then all the others.

    Raises:
        Unfit, Damaged, StoreError: as `gather`.
    """
    known = {tensor for holder in holders.values() for tensor in holder.table}
    shard, where = step.shard, "the workers' memory"

    def given(parts: Iterable[tuple[Piece, torch.Tensor]]) -> Counter[str]:
        return gather(holders, sources, *destinations(parts), where, own=own, turn=turn)

    first = shard.arrangement()
    counted = given(held({name: tensor for name, tensor in first.items() if name in known}).items())
    shard.arranged()
    rest = [(piece, tensor) for piece, tensor in placed(step) if piece.name not in first]
    return counted + given(one for one in rest if one[0].name in known or not one[0].name.startswith(OURS))


def looked(sources: Mapping[str, tuple[Peer | Shelf, Sequence[str]]]) -> dict[str, Table]:
    """Who has what by these names; who does not answer has nothing."""

    def look(one: tuple[Peer | Shelf, Sequence[str]]) -> Table:
        source, names = one
        try:
            found = source.tables(names[0] if len(names) == 1 else "")
        except StoreError as error:
            logger.warning("it is not asked for any of the state: %s", error.problem)
            return {}
        return merged(found[name] for name in names if name in found)

    with ThreadPoolExecutor(LOOKS, thread_name_prefix="look") as pool:
        tables = dict(zip(sources, pool.map(look, sources.values()), strict=True))
    return {key: table for key, table in tables.items() if table}
