"""What was predicted of a run beside what it came to, from the lines of its record. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import Any, NamedTuple

from shoal.saving.interval import PRIOR
from shoal_core.units import size

__all__ = ["SECTIONS", "Compared", "compare", "notes", "row", "rows", "told"]

Line = Mapping[str, Any]

SECTIONS = ("predicted", "actual")
"""Of `run.json`."""
BULKY = ("memory_over_step", "pipeline")
"""Figures that the journal alone has."""
WARM = 2
"""Steps after a generation's first that are not counted either: kernels and corpora are met for the first time."""


def compare(steps: Sequence[Line], events: Sequence[Line], seconds: float) -> dict[str, dict[str, Any] | None]:
    """The sections `predicted` and `actual` of `run.json` (docs/record.md): of the shape of cells, among those that
    something was predicted of, that most steps were trained in. Null where nothing was predicted. seconds: of all
    sessions, which failures are reckoned for."""
    found = [(one, steps_in(one, steps)) for one in stretches(events)]
    if not found:
        return dict.fromkeys(SECTIONS)
    one, own = max(found, key=lambda pair: (len(pair[1]), pair[0].started))
    told, figures = one.predicted, one.predicted.get("figures") or {}
    shape = {name: told.get(name) for name in ("shape", "cells", "workers", "nodes", "device")}
    workers = int(told.get("cells") or 0) * int(told.get("workers") or 0)
    figures = {name: value for name, value in figures.items() if name not in BULKY}
    predicted = {**shape, **figures, "recoveries": seconds * workers / PRIOR}
    return {"predicted": predicted, "actual": came_to(one, own, events)}


class Stretch(NamedTuple):
    """A session's part in a shape of cells that something was `predicted` of. `started`: place in the journal of its
    `run_started`; `begins`, `ends`: steps of the session; `generations`: of the shape, in as many cells; `memory`:
    what workers told of it."""

    started: int
    predicted: Line
    begins: int
    ends: float
    generations: frozenset[int]
    memory: Sequence[Line]


def stretches(events: Sequence[Line]) -> Iterator[Stretch]:
    """One for each line `predicted`."""
    starts = [place for place, event in enumerate(events) if event["kind"] == "run_started"]
    begins = [int(events[place].get("resumed_from") or 0) for place in starts]
    sessions = zip(pairwise([*starts, len(events)]), begins, [*begins[1:], math.inf], strict=False)
    for (start, end), begin, following in sessions:
        session = events[start:end]
        for event in session:
            if event["kind"] != "predicted":
                continue
            generations = frozenset(
                int(one["generation"])
                for one in session
                if one["kind"] == "generation" and number_of(one) == event["shape"] and one["live"] == event["cells"]
            )
            memory = [one for one in session if one["kind"] == "memory" and one["shape"] == event["shape"]]
            yield Stretch(start, event, begin, following, generations, memory)


def number_of(generation: Line) -> int:
    """Of the shape of a generation's cells."""
    return int((generation.get("shape") or {}).get("number", 0))


def steps_in(stretch: Stretch, steps: Sequence[Line]) -> list[Line]:
    """The clean steps of a stretch: of the size that was predicted, not where something begins."""
    wanted = (stretch.predicted.get("figures") or {}).get("samples")
    found = []
    since, generation = 0, None
    for step in steps:
        if not stretch.begins <= step["step"] < stretch.ends:
            continue
        since = since + 1 if step["generation"] == generation else 0
        generation = step["generation"]
        first, last = step["samples"]
        whole = step["cells"] == stretch.predicted["cells"] and wanted in (None, last - first)
        if generation in stretch.generations and whole and since > WARM:
            found.append(step)
    return found


def came_to(stretch: Stretch, clean: Sequence[Line], events: Sequence[Line]) -> dict[str, Any]:
    """The section `actual`; null is what is not known."""
    seconds = [own_seconds(step) for step in clean]
    mfu = [step["mfu"] for step in clean if step.get("mfu") is not None]
    most = max(stretch.memory, key=lambda one: int(one["bytes"]), default=None)
    took = median(seconds) if seconds else None
    return {
        "clean_steps": len(clean),
        "memory_peak_bytes": None if most is None else most["bytes"],
        "memory_measured": None if most is None else most["measured"],
        "step_seconds": took,
        "tokens_per_second": median(step["tokens"] for step in clean) / took if took else None,
        "mfu": median(mfu) if mfu else None,
        "recoveries": sum(event["kind"] == "recovery" for event in events),
    }


def own_seconds(step: Line) -> float:
    """By the workers' own account, if they gave one."""
    return float(step.get("worker_seconds") or step["seconds"])


class Compared(NamedTuple):
    """A figure in words; `error`: of what was predicted, relative to what came, where both are known."""

    name: str
    predicted: str
    actual: str
    error: float | None

    @property
    def words(self) -> str:
        return "" if self.error is None else f"{self.error:+.1%}"


def rows(run: Mapping[str, Any]) -> list[Compared]:
    """The table of a `run.json` for people; empty where nothing was predicted."""
    predicted, actual = (run.get(name) for name in SECTIONS)
    if not isinstance(predicted, Mapping) or not isinstance(actual, Mapping):
        return []
    known = [name for name in WORDS if predicted.get(name) is not None or name in ALWAYS]
    return [row(name, predicted.get(name), actual.get(name)) for name in known]


def told(run: Mapping[str, Any]) -> list[str]:
    """The same in lines of text, and why something is not there."""
    found = rows(run)
    if not found:
        return []
    lines = [("", "predicted", "measured", ""), *((one.name, one.predicted, one.actual, one.words) for one in found)]
    wide = [max(len(line[place]) for line in lines) for place in range(4)]
    shown = [
        f"{name:<{wide[0]}}  {said:>{wide[1]}}  {came:>{wide[2]}}  {error:>{wide[3]}}".rstrip()
        for name, said, came, error in lines
    ]
    return [*shown, *notes(run)]


def notes(run: Mapping[str, Any]) -> list[str]:
    """What one should know of these figures, a sentence each."""
    predicted, actual = run["predicted"], run["actual"]
    found = [f"{one[:1].upper()}{one[1:]}." for one in predicted.get("why") or ()]
    if learned := predicted.get("learned"):
        found.append(
            f"Predicted with what runs before took: step x {learned['step']:g}, memory x {learned['memory']:g}."
        )
    if actual.get("memory_measured") in MEASURED:
        found.append(MEASURED[actual["memory_measured"]])
    return found


MEASURED = {
    "resident": "Memory is the process's resident set, less what it was before there was a model.",
    "device": "Memory is all that was taken of the GPU's.",
}
ALWAYS = ("memory_peak_bytes", "step_seconds")
WORDS = {
    "memory_peak_bytes": ("memory of the worker that needs most", size),
    "step_seconds": ("seconds of a step", lambda value: f"{value:.4g}"),
    "tokens_per_second": ("tokens a second", lambda value: f"{value:,.0f}"),
    "mfu": ("MFU", lambda value: f"{value:.1%}"),
    "recoveries": ("recoveries", lambda value: f"{value:.2g}" if value >= 0.001 or not value else "< 0.001"),
}
COUNTED = ("recoveries",)
"""A relative error says nothing of what is hardly ever one."""


def row(name: str, predicted: float | None, actual: float | None) -> Compared:
    called, words = WORDS[name]
    known = predicted is not None and actual is not None and actual > 0 and name not in COUNTED
    error = predicted / actual - 1 if known and predicted is not None and actual is not None else None
    shown = ["-" if one is None else words(one) for one in (predicted, actual)]
    return Compared(called, shown[0], shown[1], error)
