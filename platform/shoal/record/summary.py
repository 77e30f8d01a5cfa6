"""The figures of a run, computed from its record: the content of `run.json`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from statistics import median
from typing import Any

from shoal.record import layout, read
from shoal.record.audit import committed_ids_audit
from shoal.record.expected import compare
from shoal.record.jsonl import read_json

__all__ = ["gpu_figures", "sessions", "summarize"]

Line = Mapping[str, Any]


def summarize(path: Path) -> dict[str, Any]:
    """The content of `run.json` for the run directory `path`, at any time; docs/record.md explains each figure.

    `status` is that of the last `run_ended` event, or "running". A figure that cannot be known yet is null.

    Raises:
        UserError: the record is damaged.
    """
    path = Path(path)
    with read.readable(path):
        return _figures(path)


def _figures(path: Path) -> dict[str, Any]:
    steps, events = read.steps(path), read.events(path)
    kinds = Counter(event["kind"] for event in events)
    recoveries = [event for event in events if event["kind"] == "recovery"]
    evaluations = [event for event in events if event["kind"] == "evaluation"]
    bpb, heldout = (
        [event[name] for event in evaluations if event.get(name) is not None] for name in ("bpb", "heldout_loss")
    )
    last: Line = steps[-1] if steps else {}
    audit = committed_ids_audit(path, steps)
    ended = events[-1] if events and events[-1]["kind"] == "run_ended" else None
    spans = sessions(steps, events)
    training = sum(span["training"] for span in spans)
    tokens = round(sum(step["tokens"] for step in steps))
    next_commits = [event["next_commit"] for event in recoveries if event.get("next_commit") is not None]
    return {
        "run_id": next((event["run_id"] for event in events if event["kind"] == "run_started"), path.name),
        "status": ended["status"] if ended else "running",
        "reason": ended.get("reason") if ended else None,
        "steps": len(steps),
        "tokens": tokens,
        "loss": last.get("loss"),
        "lm_loss": last.get("lm_loss"),
        "mtp_loss": last.get("mtp_loss"),
        "loss_first": steps[0]["loss"] if steps else None,
        "bpb": bpb[-1] if bpb else None,
        "bpb_before": bpb[0] if len(bpb) > 1 else None,
        "heldout_loss": heldout[-1] if heldout else None,
        "heldout_loss_before": heldout[0] if len(heldout) > 1 else None,
        "deaths": kinds["death"],
        "nodes_lost": kinds["node_lost"],
        "recoveries": len(recoveries),
        "recovery_events": recoveries,
        "next_commit_median": median(next_commits) if next_commits else None,
        "steps_lost": sum(event.get("lost") or 0 for event in events if event["kind"] == "rewound"),
        "samples_repeated": audit.repeated,
        "samples_skipped": audit.skipped,
        "samples_outside": audit.outside,
        "samples_source": audit.source,
        "checkpoints": kinds["checkpoint"],
        "sessions": len(spans),
        "seconds": sum(span["seconds"] for span in spans),
        "training_seconds": training,
        "tokens_per_second": tokens / training if training > 0 else None,
        "step_seconds_median": median(step["seconds"] for step in steps) if steps else None,
        "gpu": gpu_figures(steps),
        **compare(steps, events, sum(span["seconds"] for span in spans)),
        "mlflow_run_id": (read_json(path / layout.MLFLOW) or {}).get("mlflow_run_id"),
    }


def gpu_figures(steps: Sequence[Line]) -> dict[str, float]:
    """Medians of what is told of GPUs (`layout.GPU_FIGURES`), of memory the most; empty without GPUs."""
    known = {name: [step[name] for step in steps if step.get(name) is not None] for name in layout.GPU_FIGURES}
    of_all = {"peak_memory_bytes": max}
    return {name: of_all.get(name, median)(told) for name, told in known.items() if told}


def sessions(steps: Sequence[Line], events: Sequence[Line]) -> list[dict[str, float]]:
    """Each stretch from a `run_started` to the last line before the next: `start`, `end` (unix seconds), `seconds`
    between them, and `training`: seconds from the beginning of its first committed step to the commit of its last,
    recoveries included. Which line belongs to which is told by their order and numbers, not by a clock."""
    starts = [place for place, event in enumerate(events) if event["kind"] == "run_started"]
    found = []
    for place, following in zip_longest(starts, starts[1:]):
        first = int(events[place].get("resumed_from") or 0)
        last = math.inf if following is None else int(events[following].get("resumed_from") or 0)
        commits = [step for step in steps if first <= step["step"] < last]
        start = events[place]["time"]
        end = max([start, *(line["time"] for line in (*events[place:following], *commits))])
        befores: list[Line | None] = [None, *commits]
        training = sum(_took(before, step) for before, step in zip(befores, commits, strict=False))
        found.append({"start": start, "end": end, "seconds": end - start, "training": training})
    return found


def _took(before: Line | None, step: Line) -> float:
    """Seconds from the commit `before` to this one. Within a generation by the step's own account, which no clock that
    is set anew disturbs; else by the times of both."""
    own = max(0.0, float(step.get("worker_seconds") or step["seconds"]))
    if before is None:
        return max(0.0, float(step["seconds"]))
    since = float(step["time"] - before["time"])
    return own if since < 0 or before["generation"] == step["generation"] else since
