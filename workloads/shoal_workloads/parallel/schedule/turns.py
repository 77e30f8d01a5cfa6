"""What a rank does besides computing: which transfers it begins to receive, waits for and sends, in which order.

NCCL has no tags: a communicator runs the operations of a rank one at a time, in the order in which they were issued,
and the n-th send of one side meets the n-th receive of the other, whatever they were meant for. So both sides issue in
one order here, and what is waited for never stands behind what comes later, both by construction:

- a **line** is one way from rank to rank for one kind of transfer: what forwards make, or what backwards make. Nothing
  else travels where it does, so a forward never stands behind a backward;
- the receiver posts its receives of a line in the order in which the sender makes them, which it reads off the sender's
  order of the schedule, and not in the order in which it needs them;
- sends are never waited for within a step.

A transport without tags gives each line a communicator that this rank and its peer use for nothing else (`channels`).
The tests walk what all ranks do here under such rules (`tests/support/deliveries.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Literal, NamedTuple

from shoal_workloads.parallel.schedule.actions import Action, Schedule, Step
from shoal_workloads.parallel.schedule.walk import actions_of

__all__ = ["AHEAD", "Line", "Transfer", "Turn", "channels", "incoming", "outgoing", "turns"]

AHEAD = 2  # turns whose input is asked for while another is computed


class Line(NamedTuple):
    """One way from rank to rank of a chain, for what forwards (F) or backwards (B) make."""

    source: int
    target: int
    kind: Literal["F", "B"]


class Transfer(NamedTuple):
    """What a stage made of a micro-batch, on its way to the stage that needs it. Where `line` leads from a rank to
    itself, nothing travels."""

    line: Line
    stage: int
    micro_batch: int

    @property
    def local(self) -> bool:
        return self.line.source == self.line.target


class Turn(NamedTuple):
    """A step of a rank's order with what goes before and after it.

    Attributes:
        ask: transfers to begin receiving, in this order.
        actions: of the step.
        needs: of each action, the transfer it waits for; none at the ends of the model.
        makes: of each action, the transfer it makes.
    """

    ask: tuple[Transfer, ...]
    step: Step
    actions: tuple[Action, ...]
    needs: tuple[Transfer | None, ...]
    makes: tuple[Transfer | None, ...]


def incoming(schedule: Schedule, action: Action) -> Transfer | None:
    """What an action waits for from another stage."""
    if action.kind == "F" and action.stage > 0:
        return _transfer(schedule, "F", action.stage - 1, action.stage, action.micro_batch)
    if action.kind in "BI" and action.stage < schedule.stages - 1:
        return _transfer(schedule, "B", action.stage + 1, action.stage, action.micro_batch)
    return None


def outgoing(schedule: Schedule, action: Action) -> Transfer | None:
    """What an action makes for another stage."""
    if action.kind == "F" and action.stage < schedule.stages - 1:
        return _transfer(schedule, "F", action.stage, action.stage + 1, action.micro_batch)
    if action.kind in "BI" and action.stage > 0:
        return _transfer(schedule, "B", action.stage, action.stage - 1, action.micro_batch)
    return None


def _transfer(schedule: Schedule, kind: Literal["F", "B"], stage: int, to: int, micro_batch: int) -> Transfer:
    line = Line(schedule.rank_of(stage, micro_batch), schedule.rank_of(to, micro_batch), kind)
    return Transfer(line, stage, micro_batch)


def _sent(schedule: Schedule, rank: int) -> Iterator[Transfer]:
    """What a rank sends, in the order in which it makes it."""
    for step in schedule.orders[rank]:
        for action in actions_of(step):
            made = outgoing(schedule, action)
            if made is not None and not made.local:
                yield made


def turns(schedule: Schedule, rank: int) -> list[Turn]:
    """The order of `rank`, with its transfers."""
    order = [(step, actions_of(step)) for step in schedule.orders[rank]]
    needs = [tuple(incoming(schedule, action) for action in actions) for _, actions in order]
    sources = {need.line.source for row in needs for need in row if need is not None and not need.local}
    coming: defaultdict[Line, list[Transfer]] = defaultdict(list)
    for source in sorted(sources):
        for transfer in _sent(schedule, source):
            coming[transfer.line].append(transfer)
    place = {transfer: place for line in coming.values() for place, transfer in enumerate(line)}
    asked: defaultdict[Line, int] = defaultdict(int)
    done, found = 0, []
    for turn, (step, actions) in enumerate(order):
        ask: list[Transfer] = []
        while done < min(len(order), turn + 1 + AHEAD):
            for need in needs[done]:
                if need is not None and not need.local:
                    ask += coming[need.line][asked[need.line] : place[need] + 1]
                    asked[need.line] = max(asked[need.line], place[need] + 1)
            done += 1
        makes = tuple(outgoing(schedule, action) for action in actions)
        found.append(Turn(tuple(ask), step, actions, needs[turn], makes))
    return found


def channels(schedule: Schedule) -> dict[Line, int]:
    """A number for every line of the schedule, so that no rank is at an end of two lines of one number.

    A communicator over all ranks for each number then carries one line on each rank, also where it runs everything that
    a rank issues in one order, whoever the peer is (as NCCL's do that are made with the device, by `device_id`)."""
    lines = {transfer.line for rank in range(schedule.ranks) for transfer in _sent(schedule, rank)}
    found: dict[Line, int] = {}
    taken: defaultdict[int, set[int]] = defaultdict(set)
    for line in sorted(lines, key=lambda line: (line.kind, line.source < line.target, line.source, line.target)):
        number = next(n for n in range(len(lines)) if n not in taken[line.source] | taken[line.target])
        found[line] = number
        taken[line.source].add(number)
        taken[line.target].add(number)
    return found
