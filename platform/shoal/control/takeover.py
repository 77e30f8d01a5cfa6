"""Taking over from a controller that died: its workers are found and asked, and what it knew is known again."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shoal.control.actions import Action
from shoal.control.events import Lost
from shoal.control.orders import carry_out
from shoal.control.readopt import Past, Said, as_lived, heard, rebuild, unrecorded
from shoal.control.recall import assign_keepers
from shoal.control.verdict import not_finite
from shoal.names import node_of
from shoal.protocol.greeting import Greeting
from shoal.protocol.said import Committed, Phase
from shoal.record import read
from shoal_core import marker

if TYPE_CHECKING:
    from shoal.control.controller import Controller

__all__ = ["take_over"]


async def take_over(one: Controller) -> None:
    """Find the workers, and what was known. Training does not wait for this."""
    since = time.monotonic()
    events, records = read.events(one.rundir), read.steps(one.rundir)
    ending = next((event for event in reversed(events) if event["kind"] in ("run_ending", "run_started")), None)
    if ending is not None and ending["kind"] == "run_ending":
        one.end(ending["status"], ending["reason"])
    whole = marker.last_whole(one.rundir / "checkpoints")
    past = Past.read(events, one.scribe.pen.last_step + 1, max(one.start, whole.steps if whole else 0))
    one.roll_backs = sum(event["kind"] == "rolled_back" for event in events)
    if records:
        one.committed = commit_of(records[-1])
    one.ear.early = []
    asked = await asyncio.to_thread(one.spawner.adopt, one.meeting)
    lines = one.lifelines.lines
    while set(asked) - lines.keys() and time.monotonic() - since < one.timeouts.meet:
        await asyncio.sleep(0.01)
    for mute in set(asked) - lines.keys():
        one.spawner.kill(mute)
    there = {worker: line for worker, line in lines.items() if line.greeting.phase is not Phase.UNBORN}
    living = {worker: said_by(line.greeting) for worker, line in there.items()}
    one.ear.told = {worker: number for worker, number in heard(events).items() if worker in living}
    lived = as_lived(one.state.shape, past, living)
    one.state, corrections = rebuild(one.state.shape, lived, living)
    if lived.committed < past.committed:
        one.scribe.rewound(lived.committed)  # a controller whose disk was full went back, and could not say so
    early, one.ear.early = one.ear.early, None
    kept = [record for record in records if record["step"] < lived.committed]
    figures: list[Mapping[str, Any]] = list(kept)
    for commit in unrecorded(kept, [message for _, message in early if isinstance(message, Committed)]):
        if commit.steps <= one.scribe.pen.last_step + 1:
            one.scribe.rewound(commit.steps - 1)
        one.scribe.step(commit, commit.generation)
        one.committed = commit
        figures.append(commit.metrics)
    one.ear.not_finite = not_finite(figures)
    one.scribe.event("controller_back", seconds=time.monotonic() - since, workers=len(living))
    for worker, line in there.items():
        one.spawner.started[worker].heard = True
        one.chores.node_of[worker] = line.node
    for event in corrections:
        if isinstance(event, Lost):
            one.ear.died(event.worker, node_of(event.worker), None, event.how, time.time())
        one.on(event)
    for line, message in early:
        one.ear.said(line, message)
    actions: list[Action] = []
    assign_keepers(one.state, actions)
    for action in actions:
        carry_out(one, action)


def said_by(greeting: Greeting) -> Said:
    where = (greeting.seat, greeting.attempt, greeting.generation, greeting.phase, greeting.steps)
    return Said(greeting.node, *where)


def commit_of(record: Mapping[str, Any]) -> Committed:
    """A commit as the record has it, where what is no number is null: what a laggard needs to catch up."""
    *stats, norm_sq = (math.nan if value is None else value for value in (*record["stats"], record["norm_sq"]))
    return Committed("", record["generation"], record["step"] + 1, stats=tuple(stats), norm_sq=norm_sq)
