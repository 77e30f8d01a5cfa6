"""Taking over from a controller that died: its workers are found and asked, and what it knew is known again."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shoal.control.lifelines import Line
from shoal.control.press import persistently
from shoal.control.run import Outcome, Run
from shoal.decisions import bounds
from shoal.decisions.events import TakenOver
from shoal.decisions.figures import not_finite
from shoal.decisions.readopt import Living, Past, as_lived, heard, rebuild, unrecorded
from shoal.ladder import Rung
from shoal.plan.reshape import Seen, Took
from shoal.protocol.greeting import Greeting
from shoal.protocol.said import Committed, Phase
from shoal.record import read
from shoal.record.place import checkpoints_in
from shoal_core.ckpt import among
from shoal_core.store import patiently

__all__ = ["take_over", "went_back"]

Records = Sequence[Mapping[str, Any]]

LOOK = 1.0
"""Seconds between two looks at whether workers that have not spoken yet are still there."""


async def take_over(one: Run) -> None:
    """Find the workers, and what was known. Training does not wait for this."""
    since = time.monotonic()
    one.ear.early = []
    events, records, saved = await asyncio.to_thread(on_record, one.rundir)
    ending = next((event for event in reversed(events) if event["kind"] in ("run_ending", "run_started")), None)
    if ending is not None and ending["kind"] == "run_ending":
        one.end(Outcome(ending["status"], ending["reason"], bool(ending.get("by_controller"))))
    one.notifier.again(events, one.scribe.pen.last_step + 1)
    past = Past.read(events, one.scribe.pen.last_step + 1, max(one.start, saved))
    there = await find_workers(one, since)
    living = {worker: living_of(line.greeting) for worker, line in there.items()}
    lived = as_lived(one.state.shape, past, living)
    one.desk.state, corrections = rebuild(one.state.shape, lived, living)
    if lived.committed < past.committed:
        one.scribe.rewound(lived.committed)  # a controller whose disk was full went back, and could not say so
    early, one.ear.early = one.ear.early, None
    one.state.told = {worker: number for worker, number in heard(events).items() if worker in living}
    one.state.tally.roll_backs = sum(event["kind"] == "rolled_back" for event in events)
    one.state.tally.deaths, one.state.tally.backs = went_back(events)
    catch_up(one, records, lived.committed, [message for _, message in early if isinstance(message, Committed)])
    one.since, one.state.tally.failures = failed_before(events, one.since)
    one.state.seen = seen_before(events, time.monotonic() - (time.time() - one.since))
    one.forecast.again(events)
    one.scribe.event("controller_back", seconds=time.monotonic() - since, workers=len(living))
    for line in there.values():
        one.ear.known(line)
    for event in corrections:
        one.desk.take(event)
    for line, message in early:
        one.ear.said(line, message)
    one.desk.take(TakenOver())


def on_record(rundir: Path) -> tuple[Records, Records, int]:
    """The journal, the committed steps, and the steps of the last whole checkpoint (0: none)."""
    root = checkpoints_in(rundir)
    whole = persistently(lambda: patiently(lambda: among.last_whole(root), root))
    return read.events(rundir), read.steps(rundir), whole.steps if whole else 0


def failed_before(events: Records, now: float) -> tuple[float, int]:
    """When the session began, and in how many of its generations somebody died who trained."""
    since, generation = now, -1
    struck: set[int] = set()
    for event in events:
        if event["kind"] == "run_started":
            since, struck = float(event["time"]), set()
        elif event["kind"] == "generation":
            generation = event["generation"]
        elif event["kind"] == "death" and event["cell"] is not None:
            struck.add(generation)
    return since, len(struck)


def seen_before(events: Records, since: float) -> Seen:
    """What the session, which began at `since` (monotonic), had seen of what things take, as far as it is on record."""
    seen = Seen(since)
    for event in events:
        if event["kind"] == "run_started":
            seen = Seen(since)
        elif event["kind"] == "checkpoint" and event.get("bytes"):
            seen = seen.held(int(event["bytes"]), 1)
        elif took := Took.told(event):
            seen = seen.changed(took)
    return seen


def went_back(events: Records) -> tuple[tuple[int, int], tuple[int, int]]:
    """`Tally.deaths` and `Tally.backs`, as the journal has them."""
    deaths, backs, going = (0, 0), (0, 0), set[str]()
    for event in events:
        match event["kind"]:
            case "run_started":
                deaths, backs, going = (0, 0), (0, 0), set()
            case "node_draining":
                going.add(event["node"])
            case "generation":
                deaths = (0, 0)
            case "death" if event["cell"] is not None:
                deaths = bounds.struck(deaths, announced=event["node"] in going)
            case "decision" if event["rung"] in (Rung.RECALL, Rung.RESTORE):
                backs = bounds.counted(backs, deaths)
    return deaths, backs


async def find_workers(one: Run, since: float) -> dict[str, Line]:
    """Ask all workers to speak to this controller; who does not in time, or is gone meanwhile, is ended."""
    asked = await asyncio.to_thread(one.spawner.adopt, one.meeting)
    lines, looked = one.lifelines.lines, time.monotonic()
    awaited = set(asked)
    while awaited - lines.keys() and time.monotonic() - since < one.timeouts.meet:
        await asyncio.sleep(0.01)
        if time.monotonic() - looked > LOOK:
            awaited &= set(await asyncio.to_thread(one.spawner.living))
            looked = time.monotonic()
    for mute in set(asked) - lines.keys():
        one.spawner.kill(mute)
    return {worker: line for worker, line in lines.items() if line.greeting.phase is not Phase.UNBORN}


def catch_up(one: Run, records: Records, committed: int, said: Sequence[Committed]) -> None:
    """Put commits that are not on record there. `records`: those that are; `committed`: steps that count of them;
    `said`: what workers say again."""
    kept = [record for record in records if record["step"] < committed]
    figures: list[Mapping[str, Any]] = list(kept)
    newest = commit_of(records[-1]) if records else None
    for commit in unrecorded(kept, said):
        if commit.steps <= one.scribe.pen.last_step + 1:
            one.scribe.rewound(commit.steps - 1)
        one.scribe.step(commit, commit.generation)
        newest = commit
        figures.append(commit.metrics)
        one.state.recorded = commit.steps
    one.state.newest = newest
    one.state.tally.not_finite = not_finite(figures)


def living_of(greeting: Greeting) -> Living:
    where = (greeting.seat, greeting.attempt, greeting.generation, greeting.phase, greeting.steps)
    return Living(greeting.node, *where, greeting.shape, greeting.mesh, greeting.kept)


def commit_of(record: Mapping[str, Any]) -> Committed:
    """A commit as the record has it, where what is no number is null: what a laggard needs to catch up."""
    *stats, norm_sq = (math.nan if value is None else value for value in (*record["stats"], record["norm_sq"]))
    return Committed("", record["generation"], record["step"] + 1, stats=tuple(stats), norm_sq=norm_sq)
