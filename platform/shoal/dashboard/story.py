"""What befell a run, as the page's timeline tells it: an entry an event. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal.printable import printable
from shoal.record.sentences import BACKGROUND, sentence
from shoal.report.phases import lasted, phases_of

__all__ = ["GROUPS", "entry"]

GROUPS: dict[str, str] = {
    **dict.fromkeys(("recovery", "reshaped", "controller_back", "rolled_back"), "recovery"),
    **dict.fromkeys(
        ("death", "node_lost", "node_draining", "node_aside", "device_failed", "fenced", "disagreement", "error"),
        "loss",
    ),
    **dict.fromkeys(("checkpoint", "checkpoint_failed", "last_save"), "checkpoint"),
    "evaluation": "evaluation",
    **dict.fromkeys(("run_started", "run_ended", "run_ending"), "run"),
}
"""What kinds of events have a mark of their own in the picture; the others are only listed."""


def entry(event: Mapping[str, Any]) -> dict[str, Any] | None:
    """An event as it is told; None for one that is of no interest to people.

    `time`, `kind`, `group`, `text`; of recoveries and changes of shape also `rung`, when it `began`, its `seconds` and
    `phases`, `next_commit` and the steps `lost`."""
    kind = str(event["kind"])
    if kind in BACKGROUND or (text := sentence(event)) is None:
        return None
    told: dict[str, Any] = {"time": event["time"], "kind": printable(kind), "group": GROUPS.get(kind, "other")}
    told |= {"text": text, "step": event.get("step") if isinstance(event.get("step"), int) else None}
    if kind in ("recovery", "reshaped"):
        took = lasted(event)
        told |= {
            "rung": printable(event.get("rung") or kind),
            "began": event["time"] - took,
            "seconds": took,
            "phases": [[printable(name).replace("_", " "), took] for name, took in phases_of(event).items()],
            "next_commit": event.get("next_commit"),
            "lost": event.get("steps_lost") or 0,
        }
    return told
