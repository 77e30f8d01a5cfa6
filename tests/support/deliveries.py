"""What becomes of a schedule's transfers on a transport: delivered, delivered to the wrong place, or stuck for ever.

A transport is a rule that names the communicator of a transfer. Of a communicator each rank runs its operations one at
a time, in the order in which it issued them; a send is done when the peer has come to a receive from this rank,
whatever either was meant for. That is how NCCL works. A transport with tags (gloo) is the rule under which every
transfer has a communicator of its own.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

from shoal_workloads.parallel.schedule import Schedule, Transfer, Turn, channels, turns

__all__ = ["Delivery", "Op", "Rule", "by_line", "by_tag", "check_order", "deliver", "program"]

Rule: TypeAlias = Callable[[Transfer], Hashable]
"""A transfer -> its communicator. A communicator is known by the same name on all ranks."""


class Op(NamedTuple):
    """What a rank does about a transfer; `wait` is for a transfer that it receives, `sent` for one that it sends."""

    what: Literal["receive", "wait", "send", "sent"]
    transfer: Transfer


@dataclass
class Delivery:
    """Attributes:
    transfers: how many arrived.
    stuck: the first operation that each rank never got past, by rank.
    wrong: (what was sent, what it was taken for).
    """

    transfers: int = 0
    stuck: dict[int, Op] = field(default_factory=dict)
    wrong: list[tuple[Transfer, Transfer]] = field(default_factory=list)


def by_tag(transfer: Transfer) -> Hashable:
    """gloo: every transfer is known by its tag."""
    return transfer


def by_line(schedule: Schedule) -> Rule:
    """The communicators that `channels` numbers, over all ranks."""
    number = channels(schedule)
    return lambda transfer: number[transfer.line]


def program(order: Sequence[Turn]) -> Iterator[Op]:
    """What a rank issues and waits for in a step, as the executor does it."""
    sent = []
    for turn in order:
        yield from (Op("receive", transfer) for transfer in turn.ask)
        yield from (Op("wait", need) for need in turn.needs if need is not None and not need.local)
        for made in turn.makes:
            if made is not None and not made.local:
                sent.append(made)
                yield Op("send", made)
    yield from (Op("sent", transfer) for transfer in sent)


class _Network:
    """Operations that were issued and have not met their other half."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._queues: defaultdict[tuple[Hashable, int], deque[Op]] = defaultdict(deque)
        self.done: set[tuple[str, Transfer]] = set()
        self.found = Delivery()

    def issue(self, rank: int, op: Op) -> list[int]:
        """Returns the ranks whose operations were done by it."""
        name = self._rule(op.transfer)
        self._queues[name, rank].append(op)
        awake: list[int] = []
        while queue := self._queues[name, rank]:
            source, target, _ = queue[0].transfer.line
            sends, takes = self._queues[name, source], self._queues[name, target]
            if not (sends and takes and sends[0].what == "send" and takes[0].what == "receive"):
                break
            if sends[0].transfer.line.target != target or takes[0].transfer.line.source != source:
                break
            sent, taken = sends.popleft().transfer, takes.popleft().transfer
            self.done |= {("sent", sent), ("wait", taken)}
            self.found.transfers += 1
            if sent != taken:
                self.found.wrong.append((sent, taken))
            awake += [source, target]
        return awake


def deliver(programs: Sequence[Iterator[Op]], rule: Rule) -> Delivery:
    """Let all ranks do their `programs` as far as they can. Which of them goes first makes no difference: who meets
    whom follows from the order that each issues in."""
    network = _Network(rule)
    at: list[Op | None] = [next(program, None) for program in programs]
    ready = list(range(len(programs)))
    while ready:
        rank = ready.pop()
        while (op := at[rank]) is not None:
            if op.what in ("receive", "send"):
                ready += network.issue(rank, op)
            elif op not in network.done:
                break
            at[rank] = next(programs[rank], None)
    network.found.stuck = {rank: op for rank, op in enumerate(at) if op is not None}
    return network.found


def check_order(schedule: Schedule, rule: Rule) -> Delivery:
    """What becomes of the transfers of a whole step."""
    return deliver([program(turns(schedule, rank)) for rank in range(schedule.ranks)], rule)
