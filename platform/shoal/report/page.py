"""The report's page: what a reader asks first comes first, the raw record last."""

from __future__ import annotations

import time
from collections.abc import Iterable
from html import escape
from typing import Any

import numpy as np

from shoal.printable import printable
from shoal.record import layout
from shoal.record.place import storage_of
from shoal.record.sentences import BACKGROUND, gpu_words, sentence
from shoal.report.figures import loss_figure, optimizer_figure
from shoal.report.heatmap import balance_figure, violations
from shoal.report.history import History
from shoal.report.pipeline import Bar, Lanes, pipeline_figure
from shoal.report.predicted import as_predicted, figures_of
from shoal.report.recoveries import recoveries
from shoal.report.style import cell_colour, svg
from shoal.report.stylesheet import STYLESHEET
from shoal.report.timeline import timeline_figure
from shoal_core.units import duration, size

__all__ = ["page"]

NAMED = 8
"""Steps that are named before the rest are only counted."""


def page(history: History) -> str:
    """The whole page; it refers to nothing outside itself."""
    body = "\n".join(
        (
            header(history),
            tiles(history),
            section("Is it learning?", learning(history)),
            section("What happened, when and where", timeline(history)),
            section("Recoveries", recoveries(history)),
            section(
                "Steps", svg(optimizer_figure(history), "seconds, gradient norm and learning rate") + waits(history)
            ),
            predicted(history),
            balance(history),
            pipeline(history),
            section("Checkpoints", checkpoints(history)),
            details("The story, event by event", story(history)),
            details("Configuration", table(("setting", "value"), history.config.items())),
            section("Where to look next", where_next(history)),
        )
        if history.steps
        else (
            header(history),
            section("No step is committed yet", "<p>There is nothing to draw.</p>"),
            details("The story, event by event", story(history)),
            details("Configuration", table(("setting", "value"), history.config.items())),
        )
    )
    title = escape(f"Shoal: {history.run['run_id']}")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f'<meta name="viewport" content="width=device-width">\n<style>{STYLESHEET}</style>\n</head>\n'
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def section(title: str, content: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>"


def details(title: str, content: str) -> str:
    return f"<details>\n<summary>{escape(title)}</summary>\n{content}\n</details>"


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = ["<tr>" + "".join(f"<td>{escape(str(value))}</td>" for value in row) + "</tr>" for row in rows]
    return f"<table>\n<tr>{cells}</tr>\n" + "\n".join(lines) + "\n</table>"


def number(value: float | None, digits: int = 3) -> str:
    return "unknown" if value is None else f"{value:,.{digits}f}"


def plural(count: int, noun: str, nouns: str | None = None) -> str:
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"


def header(history: History) -> str:
    run = history.run
    started = next((event for event in history.kind("run_started")), None)
    shape = ""
    if started is not None:
        shape = f", {plural(started['cells'], 'cell')} of {plural(started['workers_per_cell'], 'worker')}"
    if any(one.reshaped for one in history.shapes):
        shape += f" (at last {history.shapes[-1].cells} of {history.shapes[-1].workers})"
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(started["time"])) if started else "not started"
    sessions = f" in {run['sessions']} sessions" if run["sessions"] > 1 else ""
    reason = (
        f" <span class=reason>{escape(str(run['reason']))}</span>" if run["reason"] and run["status"] != "done" else ""
    )
    return (
        f"<header><h1>{escape(str(run['run_id']))}</h1> "
        f'<span class="status {escape(str(run["status"]))}">{escape(str(run["status"]))}</span>{reason}\n'
        f"<p>{when}, {duration(run['seconds'])}{sessions}{shape}, {plural(run['steps'], 'step')}, "
        f"{plural(run['tokens'], 'token')}</p></header>"
    )


def tile(question: str, answer: str, more: str, good: bool | None = None) -> str:
    mood = "" if good is None else " good" if good else " bad"
    return f'<div class="tile{mood}"><h3>{question}</h3><strong>{answer}</strong><p>{more}</p></div>'


def tiles(history: History) -> str:
    """The four questions: lost anything? learning? what died? how fast?"""
    run = history.run
    wrong = {
        "skipped": run["samples_skipped"],
        "seen twice": run["samples_repeated"],
        "foreign": run["samples_outside"],
    }
    found = [f"{plural(count, 'sample')} {how}" for how, count in wrong.items() if count]
    source = (
        "counted from the ids of every sample"
        if run["samples_source"] == "samples"
        else "counted from the steps' ranges"
    )
    if found or run["steps_lost"]:
        lost = tile("Lost anything?", ", ".join([plural(run["steps_lost"], "step") + " redone", *found]), source, False)
    else:
        lost = tile("Lost anything?", "nothing", f"0 steps lost, 0 samples skipped or seen twice, {source}", True)
    first, last = history.steps[0].get("lm_loss"), run["lm_loss"]
    loss = f"{number(first, 2)} → {number(last, 2)}"
    if run["bpb"] is not None and run["bpb_before"] is not None:
        more = f"bits a byte of held-out text; next-token loss {loss}"
        learning = tile(
            "Learning?", f"{run['bpb_before']:.3f} → {run['bpb']:.3f}", more, run["bpb"] < run["bpb_before"]
        )
    elif run["heldout_loss"] is not None and run["heldout_loss_before"] is not None:
        before, after = run["heldout_loss_before"], run["heldout_loss"]
        learning = tile(
            "Learning?", f"{before:.3f} → {after:.3f}", f"held-out loss; training loss {loss}", after < before
        )
    else:
        better = first is not None and last is not None and last < first
        learning = tile("Learning?", loss, "next-token loss, nats; no held-out evaluation", better)
    if run["deaths"]:
        answer = plural(run["nodes_lost"], "node") if run["nodes_lost"] else plural(run["deaths"], "worker")
        median = run["next_commit_median"]
        back = f"; next committed step after {median:.2f} s (median)" if median is not None else ""
        times = plural(run["recoveries"], "recovery", "recoveries")
        died = tile("What died?", answer, f"{plural(run['deaths'], 'worker')}, {times}{back}")
    else:
        died = tile("What died?", "nothing", "no worker, no node")
    gpus = "".join(f"; {told}" for told in gpu_words(run.get("gpu") or {}))
    speed = tile(
        "How fast?", f"{number(run['tokens_per_second'], 0)} tokens/s",
        f"recoveries included; a step takes {number(run['step_seconds_median'], 2)} s (median){gpus}",
    )  # fmt: skip
    return f"<div class=tiles>\n{lost}\n{learning}\n{died}\n{speed}\n</div>"


def learning(history: History) -> str:
    text = svg(loss_figure(history), "loss by step")
    entropy, loss = history.entropy, history.run["lm_loss"]
    if entropy is not None and loss is not None:
        side = "below" if loss < entropy else "above"
        text += (
            f"<p>The loss ended {abs(entropy - loss):.2f} nats {side} {entropy:.2f}, the entropy of the tokens' "
            f"frequencies: what a model that knows nothing but those would reach.</p>"
        )
    return text


def waits(history: History) -> str:
    """Nothing for a corpus in a folder. A crew's first step has to wait; that another did is worth a look."""
    told = [step for step in history.steps if step.get("data_waits") is not None]
    if not told:
        return ""
    late = [step for step in told if step["data_waits"]]
    seconds = sum(step["data_wait_seconds"] for step in late)
    batches = sum(int(step["data_waits"]) for step in late)
    where = ", ".join(str(step["step"] + 1) for step in late[:NAMED]) + (", ..." if len(late) > NAMED else "")
    found = ""
    if late:
        found = f": {plural(batches, 'batch', 'batches')}, {seconds:.2f} s of all workers, in step {where}"
    return f"<p>{plural(len(late), 'step')} of {len(told):,} waited for the corpus, which lies on a store{found}.</p>"


def balance(history: History) -> str:
    """Nothing for a workload without experts."""
    values = violations(history)
    if not len(values):
        return ""
    text = svg(balance_figure(history), "load imbalance of experts by layer and step")
    last = values[:, -1]
    if not np.isnan(last).all():
        text += (
            f"<p>In the last step the busiest expert of a layer took {1 + np.nanmean(last):.2f} times the mean load "
            f"(mean over layers), at worst {1 + np.nanmax(last):.2f} times, in MoE layer {int(np.nanargmax(last))}.</p>"
        )
    return section("Are the experts evenly used?", text)


def predicted(history: History) -> str:
    """Nothing where nothing was."""
    content = as_predicted(history)
    return section("As predicted?", content) if content else ""


def pipeline(history: History) -> str:
    """The last step that was measured; nothing for a workload without pipeline stages."""
    measured = history.kind("pipeline_step")
    if not measured:
        return ""
    event = measured[-1]
    planned, seen = (pipeline_lanes(event[key]) for key in ("planned", "measured"))
    lanes = figures_of(history).get("pipeline")
    expected = None if lanes is None else pipeline_lanes(lanes)
    drawn = pipeline_figure(planned, seen, "s", expected)
    text = svg(drawn, "a pipeline step, planned and measured") + (
        f"<p>Step {event['step'] + 1:,} of cell {escape(str(event['cell']))}, schedule {escape(event['schedule'])}. "
        f"{'' if expected is None else 'Predicted: as the run began. '}"
        f"Planned: every action takes its mean measured time, messages take none. Its ranks would wait "
        f"{event['planned_idle']:.1%} of the time; they waited {event['measured_idle']:.1%}.</p>"
    )
    return section("Is the pipeline full?", text)


def pipeline_lanes(rows: Iterable[Iterable[Any]]) -> Lanes:
    return [[Bar(*bar) for bar in row] for row in rows]


def timeline(history: History) -> str:
    cells = sorted({stay.cell for stay in history.stays if stay.cell is not None}, key=lambda cell: (len(cell), cell))
    chips = [f"<span><i style='background:{cell_colour(cell)}'></i>cell {escape(cell)}</span>" for cell in cells[:8]]
    chips.append(f"<span><i style='background:{cell_colour(None)}'></i>spare or on its way in</span>")
    chips.append("<span><b>×</b> died</span><span><i class=recovering></i>recovering</span>")
    if any(shape.reshaped for shape in history.shapes):
        chips.append("<span><b class=another>┊</b> cells of another shape from here on</span>")
    return f"{svg(timeline_figure(history), 'workers by node over time')}\n<p class=legend>{''.join(chips)}</p>"


def checkpoints(history: History) -> str:
    events = history.kind("checkpoint")
    if not events:
        return "<p>None was written.</p>"
    rows = [
        (
            event["step"],
            f"{history.clock(event['time']):.1f} s",
            "" if event.get("bytes") is None else size(event["bytes"]),
            "" if event.get("seconds") is None else f"{event['seconds']:.2f} s",
            event.get("path") or "",
        )
        for event in events
    ]
    return table(("after step", "at", "size", "took, in the background", "where"), rows)


def story(history: History) -> str:
    rows = [
        (f"{history.clock(event['time']):.2f}", history.committed(event["time"]), text)
        for event in history.events
        if event["kind"] not in BACKGROUND and (text := sentence(event)) is not None
    ]
    return table(("seconds", "steps", "what"), rows)


def where_next(history: History) -> str:
    """Commands and files, as they are called from the folder that holds the storage."""
    run_id, storage = escape(str(history.run["run_id"])), escape(printable(storage_of(history.path)))
    items = [
        f"<code>shoal status {run_id} --storage {storage}</code>: workers, progress, last events",
        f"<code>shoal dashboard {run_id} --storage {storage}</code>: all of this as it happens, beside other runs",
        f"<code>{layout.STEPS}</code>, <code>{layout.EVENTS}</code>, <code>{layout.PLAN}</code> beside this file: the "
        "record that all of this page is drawn from",
    ]
    if history.run["mlflow_run_id"]:
        items.append(
            f"MLflow run <code>{escape(str(history.run['mlflow_run_id']))}</code>: the same figures beside other runs"
        )
    if history.kind("checkpoint"):
        items.append(
            "the last checkpoint, under <code>checkpoints/</code>: <code>shoal train JOB.yaml --resume</code> "
            "goes on from it"
        )
    return "<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>"
