"""The report's part on what was predicted as the run began, beside what it came to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from shoal.record.expected import notes, rows
from shoal.record.sentences import count
from shoal.report.history import History
from shoal.report.planned import memory_figure
from shoal.report.style import svg

__all__ = ["as_predicted", "figures_of"]


def figures_of(history: History) -> Mapping[str, Any]:
    """What was predicted of the shape of cells that `run.json` tells of, as the journal has it."""
    shape = (history.run["predicted"] or {}).get("shape")
    found = [event for event in history.kind("predicted") if event["shape"] == shape]
    return (found[-1].get("figures") or {}) if found else {}


def as_predicted(history: History) -> str:
    """A table and the memory over the step; nothing where nothing was predicted."""
    found = rows(history.run)
    if not found:
        return ""
    head = "".join(f"<th>{name}</th>" for name in ("", "predicted", "measured", "error"))
    lines = (
        "<tr>"
        + "".join(f"<td>{escape(word)}</td>" for word in (one.name, one.predicted, one.actual, one.words))
        + "</tr>"
        for one in found
    )
    told = "".join(f"<p>{escape(note)}</p>" for note in notes(history.run))
    shape = history.run["predicted"]
    where = f"{count(shape['cells'], 'cell')} of {count(shape['workers'], 'worker')} on {shape['device']}"
    steps = count(history.run["actual"]["clean_steps"], "undisturbed step")
    about = f"<p>{escape(where)}; measured over {steps}.</p>"
    moments = list(memory_of(figures_of(history)))
    picture = ""
    if moments:
        measured = history.run["actual"]["memory_peak_bytes"]
        picture = svg(memory_figure(moments, measured), "memory over a step by part, as predicted")
    return f"<table>\n<tr>{head}</tr>\n" + "\n".join(lines) + f"\n</table>\n{about}{told}{picture}"


def memory_of(figures: Mapping[str, Any]) -> Iterator[tuple[float, Mapping[str, int]]]:
    """Moments of a step in seconds, or in shares of it where those are not known, and bytes by part."""
    over = figures.get("memory_over_step") or {"times": (), "parts": {}}
    seconds = figures.get("step_seconds") or 1.0
    for place, time in enumerate(over["times"]):
        yield time * seconds, {name: sizes[place] for name, sizes in over["parts"].items()}
