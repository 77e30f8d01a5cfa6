"""The run directory from its readers' side: terminals, reports, trackers, audits. Nothing here writes.

A record may have been cut, edited or damaged: whatever is wrong with it is one `UserError` that names the file.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shoal.record import generations, layout
from shoal.record.jsonl import DAMAGED, last_lines, read_lines
from shoal.record.tails import After, Tail
from shoal.yamlfile import load_yaml, read_text
from shoal_core.errors import UserError

__all__ = [
    "COUNTED",
    "LARGEST",
    "config",
    "events",
    "first_event",
    "follow",
    "last_events",
    "last_steps",
    "plan",
    "readable",
    "samples",
    "steps",
    "steps_after",
    "tail_events",
    "tail_steps",
    "wrong_step",
]

LARGEST = 1e300
"""No figure is larger; whole numbers of JSON may be of any size."""
COUNTED = ("tokens", "seconds", "cells", "generation")


def steps(path: Path) -> list[dict[str, Any]]:
    """The committed steps of the run directory `path`, in order, each once."""
    last = -1

    def wrong(line: dict[str, Any]) -> str | None:
        nonlocal last
        if problem := wrong_step(line):
            return problem
        before, last = last, line["step"]
        return None if before < last else f"tells of step {last} after step {before}"

    return list(read_lines(Path(path) / layout.STEPS, wrong))


def events(path: Path) -> list[dict[str, Any]]:
    """The journal, in order."""
    return list(read_lines(Path(path) / layout.EVENTS, _wrong_event))


def last_steps(path: Path, size: int) -> list[dict[str, Any]]:
    """The last committed steps, as many as `size` bytes hold (`last_lines`)."""
    return last_lines(Path(path) / layout.STEPS, size, wrong_step)


def last_events(path: Path, size: int) -> list[dict[str, Any]]:
    """The last lines of the journal, as many as `size` bytes hold (`last_lines`)."""
    return last_lines(Path(path) / layout.EVENTS, size, _wrong_event)


def samples(path: Path) -> Iterator[dict[str, Any]]:
    """`step, cell, worker, ids` of what entered the committed steps; nothing without `audit.samples`."""
    return read_lines(Path(path) / layout.SAMPLES, _wrong_samples)


def tail_steps(path: Path) -> Tail:
    """The committed steps as they come."""
    return Tail(Path(path) / layout.STEPS, wrong_step)


def tail_events(path: Path, start: tuple[int, int] = (0, 0)) -> Tail:
    """The journal as it grows; `start`: see `Tail`."""
    return Tail(Path(path) / layout.EVENTS, _wrong_event, start)


def steps_after(path: Path, step: int) -> After:
    """The committed steps after `step` (-1: all) as they come, each number once though it may be taken back."""
    return After(Path(path) / layout.STEPS, "step", step, wrong_step)


def first_event(path: Path) -> dict[str, Any] | None:
    """The first line of the journal; None: there is none yet."""
    return next(read_lines(Path(path) / layout.EVENTS, _wrong_event), None)


def plan(path: Path) -> list[dict[str, Any]]:
    """`generation, time, assignment` (cell -> actors) of every generation, in order, from the journal.

    Raises:
        UserError: the record is damaged.
    """
    with readable(path):
        return [
            {"generation": one.generation, "time": one.time, "assignment": dict(one.cells)}
            for one in generations.history(events(path))
        ]


def config(path: Path) -> dict[str, Any]:
    """The resolved configuration, without its secrets; empty if it is not written yet."""
    file = Path(path) / layout.CONFIG
    try:
        found = load_yaml(read_text(file), str(file))
    except FileNotFoundError:
        return {}
    return found if isinstance(found, dict) else {}


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Around whatever makes something of a record's fields: one that is not what docs/record.md says is one sentence.

    Raises:
        UserError: instead of what the wrong field led to.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: a field of the record is not what docs/record.md says ({what})", DAMAGED) from error


def follow(
    path: Path, since: float = 0.0, stop: Callable[[], bool] | None = None, poll: float = 0.2
) -> Iterator[tuple[str, dict[str, Any]]]:
    """`("step" | "event", line)` as the lines come, by their time. Of what is there already, lines stamped before
    `since` (unix seconds) are left out.

    Waits for a directory that is not there yet; ends with the event `run_ended`, or once `stop()` is true and all
    that was written is read.
    """
    tails = {"step": tail_steps(path), "event": tail_events(path)}
    first = True
    try:
        while True:
            stopping = stop is not None and stop()
            found = [
                [(kind, line) for line in tail.read() if not first or line["time"] >= since]
                for kind, tail in tails.items()
            ]
            first = False
            # by time, but in each file's own order: a clock may be set back
            lines = list(heapq.merge(*found, key=lambda pair: pair[1]["time"]))
            yield from lines
            if stopping or any(line.get("kind") == "run_ended" for _, line in lines):
                return
            if not lines:
                time.sleep(poll)
    finally:
        for tail in tails.values():
            tail.close()


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def wrong_step(line: dict[str, Any]) -> str | None:
    """What of a line of `steps.jsonl` is not as docs/record.md says; None: nothing."""
    if not _count(line.get("step")):
        return "has no step number"
    samples = line.get("samples")
    if not (isinstance(samples, list) and len(samples) == 2 and all(map(_count, samples)) and samples[0] <= samples[1]):
        return "does not say which samples the step took"
    for field in ("time", *COUNTED):
        if not _number(line.get(field)):
            return f"has no {field!r} that is a number"
    for field in layout.STEP_FIELDS:
        if field != "samples" and not (line.get(field) is None or _number(line[field])):
            return f"has a {field!r} that is no number"
    return None


def _wrong_event(line: dict[str, Any]) -> str | None:
    if not isinstance(line.get("kind"), str):
        return "does not say what kind of event it is"
    return None if _number(line.get("time")) else "has no 'time' that is a number"


def _wrong_samples(line: dict[str, Any]) -> str | None:
    ids = line.get("ids")
    if not (_count(line.get("step")) and isinstance(ids, list) and all(map(_count, ids))):
        return "does not say which samples entered which step"
    return None
