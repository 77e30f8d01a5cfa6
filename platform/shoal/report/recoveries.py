"""What befell a run, in sentences and bars: recoveries, changes of shape, and whatever else."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from shoal.record.sentences import sentence
from shoal.report.history import History
from shoal.report.phases import lasted, phases_of
from shoal.report.style import PHASES

__all__ = ["recoveries"]

OTHERS = (
    "node_draining",
    "controller_back",
    "fenced",
    "device_failed",
    "node_aside",
    "rolled_back",
    "disagreement",
    "straggler",
    "experts_placed",
)
"""Events that are told beside the recoveries."""


def recoveries(history: History) -> str:
    """One sentence and one bar of phases for each, changes of shape among them; all bars on one scale. Then what else
    befell the run."""
    events = history.kind("recovery", "reshaped")
    others = [
        f"<li>{history.clock(event['time']):.1f} s: {escape(sentence(event) or '')}</li>"
        for event in history.kind(*OTHERS)
    ]
    listed = f"<ul class=small>{''.join(others)}</ul>" if others else ""
    if not events:
        return f"<p>None was needed.</p>{listed}"
    scale = max(*(max(sum(phases_of(event).values()), lasted(event)) for event in events), 1e-9)
    rows = [row(history, event, scale) for event in events]
    there = {name for event in events for name in phases_of(event)}
    chips = "".join(
        f"<span><i style='background:{colour}'></i>{name.replace('_', ' ')}</span>"
        for name, colour in PHASES.items()
        if name in there
    )
    legend = f"<p class=legend>{chips}<span><b>|</b> next committed step of the run</span></p>"
    listing = f"<ol class=recoveries>\n{''.join(rows)}\n</ol>"
    return f"<p class=small>All bars have one scale: {scale:.2f} s.</p>\n{listing}\n{legend}\n{listed}"


def row(history: History, event: Mapping[str, Any], scale: float) -> str:
    """An event's sentence, its bar and its seconds."""
    phases = phases_of(event)
    parts = "".join(
        f"<i style='width:{100 * took / scale:.2f}%;background:{PHASES.get(name, '#8a97a3')}' "
        f"title='{escape(name)} {took:.2f} s'></i>"
        for name, took in phases.items()
    )
    mark = ""
    if event.get("next_commit") is not None:
        place = min(100.0, 100 * event["next_commit"] / scale)
        mark = f"<b style='left:{place:.2f}%' title='next committed step'></b>"
    told = "; ".join(f"{escape(name.replace('_', ' '))} {took:.2f}" for name, took in phases.items())
    began = history.clock(event["time"] - lasted(event))
    return (
        f"<li><p>{escape(sentence(event) or '')}</p>\n<div class=bar>{parts}{mark}</div>\n"
        f"<p class=small>began {began:.1f} s into the run; seconds: {told}</p></li>"
    )
