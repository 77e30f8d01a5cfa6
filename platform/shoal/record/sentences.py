"""One plain sentence an event, for terminals and the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shoal.ladder import LADDER, Rung
from shoal.printable import printable
from shoal.record.masking import mask_text
from shoal.saving.deadline import in_words
from shoal_core.units import size

__all__ = ["BACKGROUND", "count", "gpu_words", "sentence", "short_actor"]

Event = Mapping[str, Any]


def sentence(event: Event) -> str | None:
    """What happened, in one line without its time, fit to be shown anywhere: printable, credentials masked. None for
    an event that is of no interest to people."""
    kind = str(event.get("kind"))
    tell = _SENTENCES.get(kind)
    if tell is None:
        return None
    try:
        told = tell(event)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        told = f"An event {kind!r} is on record with fields that cannot be read ({type(error).__name__})."
    return printable(mask_text(told))


def short_actor(actor: str | None) -> str:
    """`run/cell1/stage0/shard1@node3` as `cell1/stage0/shard1@node3`: the run is known where sentences are read."""
    return (actor or "a worker").split("/", 1)[-1]


def _listing(items: Sequence[Any] | None) -> str:
    names = [str(item) for item in items or []]
    if len(names) > 4:
        return ", ".join(names[:3]) + f" and {len(names) - 3} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def count(number: Any, noun: str) -> str:
    """`1 cell`, `2 cells`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def gpu_words(figures: Mapping[str, Any]) -> list[str]:
    """What is known of GPUs (`layout.GPU_FIGURES`), in words."""
    words: dict[str, Callable[[float], str]] = {
        "tokens_per_second_per_gpu": lambda value: f"{value:,.0f} tokens/s/GPU",
        "mfu": lambda value: f"MFU {value:.1%}",
        "peak_memory_bytes": lambda value: f"peak {value / 2**30:.1f} GiB",
    }
    return [told(figures[name]) for name, told in words.items() if figures.get(name) is not None]


def _because(event: Event) -> str:
    return f": {event['reason']}" if event.get("reason") else ""


def _seconds(value: Any) -> str:
    return f"{value:.2f} s" if isinstance(value, int | float) else "an unknown time"


def _run_started(event: Event) -> str:
    shape = f"{count(event.get('cells'), 'cell')} of {count(event.get('workers_per_cell'), 'worker')}"
    if event.get("resumed_from") is not None:
        return f"Run {event.get('run_id')} goes on from step {event['resumed_from']} with {shape}."
    placed = f" ({'; '.join(event['placement'])})" if event.get("placement") else ""
    return f"Run {event.get('run_id')} started: {count(event.get('steps'), 'step')} on {shape}{placed}."


def _config_changed(event: Event) -> str:
    changes = event.get("changes") or {}
    return "The config changed: " + _listing([f"{key} {was} -> {now}" for key, (was, now) in changes.items()]) + "."


def _worker_ready(event: Event) -> str:
    return f"Worker {short_actor(event.get('actor'))} is ready on {event.get('node')} (pid {event.get('pid')})."


def _death(event: Event) -> str:
    place = f" of cell {event['cell']}" if event.get("cell") is not None else ", a spare,"
    when = f" during step {event['step']}" if event.get("step") is not None else ""
    how = f" ({event['how']})" if event.get("how") else ""
    return f"Worker {short_actor(event.get('actor'))}{place} died on {event.get('node')}{when}{how}."


def _node_lost(event: Event) -> str:
    took = _listing([short_actor(actor) for actor in event.get("actors") or []])
    return f"Node {event.get('node')} is lost" + (f", and with it {took}." if took else ".")


def _drain(event: Event) -> str:
    return f"Generation {event.get('generation')} ends{_because(event)}."


def _decision(event: Event) -> str:
    cells = event.get("cells") or []
    named = f"cell {cells[0]}" if len(cells) == 1 else f"cells {_listing(cells)}" if cells else "the cell"
    rung = str(event.get("rung"))
    meant = LADDER[Rung(rung)].decided.format(cells=named) if rung in LADDER else rung
    return f"Decision: {meant}{_because(event)}."


def _generation(event: Event) -> str:
    live = event.get("live")
    cells = count(len(event.get("cells") or {}) if live is None else live, "cell")
    if shape := event.get("shape"):
        cells += f" of {count(shape['pp'] * shape['fsdp'] * shape['ep'], 'worker')}"
    return f"Generation {event.get('generation')} stands at step {event.get('step')} with {cells}."


def _recovery(event: Event) -> str:
    if event.get("sentence"):
        return str(event["sentence"])
    nodes = event.get("nodes") or []
    what = f"after the loss of {_listing(nodes)}" if nodes else "after a failure"
    lost = event.get("steps_lost") or 0
    steps = "no step was lost" if not lost else f"{count(lost, 'step')} taken back"
    full = f", full strength after {_seconds(event['full_strength'])}" if event.get("full_strength") is not None else ""
    return (
        f"Recovered ({event.get('rung')}) {what}: the next step committed {_seconds(event.get('next_commit'))} "
        f"after the first sign{full}; {steps}."
    )


def _checkpoint(event: Event) -> str:
    held = event.get("bytes")
    told = f" ({size(held)}, {_seconds(event.get('seconds'))} in the background)" if held is not None else ""
    return f"Checkpoint of step {event.get('step')} is whole{told}."


def _checkpoint_failed(event: Event) -> str:
    remedy = f" Remedy: {event['remedy']}." if event.get("remedy") else ""
    step = event.get("step")
    return (
        f"The checkpoint of step {step} was not finished, does not count and is tried again{_because(event)}.{remedy}"
    )


def _checkpoint_passed_over(event: Event) -> str:
    where = f" It lies at {event['path']}." if event.get("path") else ""
    return f"The checkpoint of step {event.get('step')} is not gone on from{_because(event)}.{where}"


def _error(event: Event) -> str:
    lines = [line for line in (event.get("trace") or "").splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if not line[0].isspace()), "")  # a remedy stands indented below
    if str(event.get("actor")).endswith("/controller"):
        return f"The controller failed at something ({last}); training goes on."
    return f"The training code of {short_actor(event.get('actor'))} raised at step {event.get('step')}: {last}."


def _not_started(event: Event) -> str:
    return f"Worker {short_actor(event.get('actor'))} could not start on {event.get('node')}: {event.get('how')}."


def _formation_failed(event: Event) -> str:
    return f"Cell {event.get('cell')} could not be formed{_because(event)}."


def _record_stalled(event: Event) -> str:
    return (
        f"The record could not be written for {_seconds(event.get('seconds'))} ({event.get('reason')}); nothing of it "
        f"is missing, {event.get('lines')} lines waited."
    )


def _record_gap(event: Event) -> str:
    first, end = event.get("steps") or (0, 0)
    return (
        f"Steps {first} to {end - 1} are committed, and not on record: who knew of them died before they were written."
    )


def _record_behind(event: Event) -> str:
    return (
        f"The record on its store is behind ({event.get('reason')}); training goes on, and it is tried again. "
        f"Remedy: {event.get('remedy')}."
    )


def _no_progress(event: Event) -> str:
    return (
        f"No step has been committed for {_seconds(event.get('seconds'))}: {count(event.get('step'), 'step')} so far."
    )


def _checkpoint_overdue(event: Event) -> str:
    last = f"the last whole one is of step {event['last']}" if event.get("last") else "none is whole yet"
    return f"A checkpoint is overdue at step {event.get('step')}: {last}."


def _notify_failed(event: Event) -> str:
    return f"Nobody could be told by the {event.get('channel')}{_because(event)}. Training goes on; it is tried again."


def _spares_given(event: Event) -> str:
    return f"{count(len(event.get('actors') or []), 'idle spare')} made room for run {event.get('to')}."


def _pieces(event: Event) -> str:
    each = event.get("each") or 1
    return count(event.get("slots"), "slot") + (f", {each} to a node" if each > 1 else "")


def _evaluation(event: Event) -> str:
    for key, what in (("bpb", "text at step {}: {:.4f} bits a byte"), ("heldout_loss", "loss at step {}: {:.4f}")):
        if isinstance(event.get(key), int | float):
            return f"Held-out {what.format(event.get('step'), event[key])}."
    own = {name: value for name, value in event.items() if name not in ("time", "seq", "step")}
    figures = [f"{name} {value:.4f}" for name, value in own.items() if isinstance(value, int | float)]
    return f"Evaluation at step {event.get('step')}: {', '.join(figures) or 'nothing was measured'}."


def _controller_back(event: Event) -> str:
    workers = count(event.get("workers"), "worker")
    return f"The controller died; a new one took over {workers} in {_seconds(event.get('seconds'))}, training went on."


def _device_failed(event: Event) -> str:
    what = "has no memory left" if event.get("what") == "memory" else "cannot be used any more"
    return (
        f"The device of {short_actor(event.get('actor'))} on {event.get('node')} {what} at step {event.get('step')} "
        f"({event.get('message')}): its process ends."
    )


def _fenced(event: Event) -> str:
    said = f"; {event.get('stacks')} says where its threads were" if event.get("stacks") else ""
    return (
        f"Worker {short_actor(event.get('actor'))} on {event.get('node')} is taken for dead ({event.get('how')}){said}."
    )


def _rewound(event: Event) -> str:
    return f"{count(event.get('lost') or 0, 'committed step')} taken back: the run goes on from step {event.get('to')}."


def _rolled_back(event: Event) -> str:
    first, last = event.get("samples") or (None, None)
    return (
        f"Step {event.get('step')} went wrong: back to the state of step {event.get('to')} in memory, samples "
        f"{first} to {last} are skipped."
    )


def _disagreement(event: Event) -> str:
    return f"Cell {event.get('cell')}'s state differed from the other cells' at step {event.get('step')}."


def _straggler(event: Event) -> str:
    return (
        f"Worker {short_actor(event.get('actor'))} on {event.get('node')} is slow: {_seconds(event.get('seconds'))} "
        f"a step where others take {_seconds(event.get('typical'))}."
    )


def _profile_wanted(event: Event) -> str:
    first, last = event.get("steps") or (None, None)
    if event.get("problem"):
        return f"Steps {first} to {last} are not profiled: {event['problem']}."
    workers = ", ".join(map(short_actor, event.get("actors") or []))
    return f"Steps {first} to {last} of {workers} are to be profiled."


def _profile(event: Event) -> str:
    first, last = event.get("steps") or (None, None)
    told = f"is there: {event.get('path')}" if not event.get("problem") else f"was not written ({event['problem']})"
    return f"The profile of steps {first} to {last} of {short_actor(event.get('actor'))} {told}."


def _pipeline_step(event: Event) -> str:
    measured, planned = (float(event.get(key) or 0.0) for key in ("measured_idle", "planned_idle"))
    return (
        f"In step {event.get('step')} the ranks of a {event.get('schedule')} pipeline waited {measured:.1%} of the "
        f"time, by plan {planned:.1%}."
    )


def _device(event: Event) -> str:
    return f"Worker {short_actor(event.get('actor'))} computes on {event.get('device')} ({size(event['memory'])})."


def _predicted(event: Event) -> str:
    figures, told = event.get("figures") or {}, []
    if figures.get("step_seconds") is not None:
        told.append(f"a step of {figures['step_seconds']:.3g} s")
    if figures.get("memory_peak_bytes") is not None:
        told.append(f"{size(figures['memory_peak_bytes'])} of memory at most")
    why = [str(one) for one in figures.get("why") or ()]
    shape = f"{count(event.get('cells'), 'cell')} of {count(event.get('workers'), 'worker')}"
    return "; ".join([f"Predicted for {shape}: {' and '.join(told) or 'nothing'}", *why]) + "."


def _memory(event: Event) -> str:
    return f"Worker {short_actor(event.get('actor'))} took {size(event['bytes'])} at most."


def _experts_placed(event: Event) -> str:
    before, after = (max(event.get(key) or [0.0]) for key in ("before", "after"))
    loads = count(event.get("measured"), "step")
    return (
        f"Experts move with step {int(event.get('step') or 0) + 1}, by the load of {loads}: "
        f"the busiest worker lies {before:.2f} over the mean and will lie {after:.2f}."
    )


BACKGROUND = frozenset({"worker_ready", "device", "memory"})
"""Kinds of events that are of interest in the journal, not to a reader of the story."""
_SENTENCES: dict[str, Callable[[Event], str]] = {
    "run_started": _run_started,
    "config_changed": _config_changed,
    "worker_ready": _worker_ready,
    "death": _death,
    "node_lost": _node_lost,
    "drain": _drain,
    "decision": _decision,
    "generation": _generation,
    "recovery": _recovery,
    "reshaped": lambda event: f"{event.get('sentence')}.",
    "checkpoint": _checkpoint,
    "checkpoint_failed": _checkpoint_failed,
    "checkpoint_passed_over": _checkpoint_passed_over,
    "checkpoints_swept": lambda event: (
        f"Saves before this session left parts of {', '.join(map(str, event.get('folders') or ()))}: removed."
    ),
    "last_save": lambda event: f"Before nodes go, {in_words(event)}.",
    "not_started": _not_started,
    "formation_failed": _formation_failed,
    "record_stalled": _record_stalled,
    "record_gap": _record_gap,
    "record_behind": _record_behind,
    "record_caught_up": lambda event: (
        f"The record on its store is whole again, after {_seconds(event.get('seconds'))}."
    ),
    "no_progress": _no_progress,
    "checkpoint_overdue": _checkpoint_overdue,
    "notified": lambda event: f"People were told by the {event.get('channel')}.",
    "notify_failed": _notify_failed,
    "spares_given": _spares_given,
    "nodes_asked": lambda event: f"The cluster's autoscaler is asked for {_pieces(event)}.",
    "nodes_came": lambda event: f"{_listing(event.get('nodes'))} came: {count(event.get('slots'), 'slot')} asked for.",
    "nodes_withdrawn": lambda event: f"{count(event.get('slots'), 'slot')} less asked for: no longer needed.",
    "nodes_not_given": lambda event: (
        f"No node came for {_pieces(event)}: asked anew in {_seconds(event.get('again'))}."
    ),
    "nodes_short_lived": lambda event: f"Nodes came and died: asked for anew in {_seconds(event.get('again'))}.",
    "error": _error,
    "evaluation": _evaluation,
    "controller_back": _controller_back,
    "node_draining": lambda event: f"Node {event.get('node')} will be taken away: its workers move.",
    "callback_failed": lambda event: f"A callback failed, {event.get('callback')}: {event.get('problem')}.",
    "node_aside": lambda event: f"Node {event.get('node')} is set aside{_because(event)}.",
    "device_failed": _device_failed,
    "fenced": _fenced,
    "rewound": _rewound,
    "rolled_back": _rolled_back,
    "disagreement": _disagreement,
    "straggler": _straggler,
    "profile_wanted": _profile_wanted,
    "profile": _profile,
    "pipeline_step": _pipeline_step,
    "device": _device,
    "predicted": _predicted,
    "memory": _memory,
    "experts_placed": _experts_placed,
    "nothing_counted": lambda event: f"Of the samples of step {event.get('step')} nothing counts: it changes nothing.",
    "run_ending": lambda event: f"The run is about to end ({event.get('status')}){_because(event)}.",
    "run_ended": lambda event: f"The run ended ({event.get('status')}){_because(event)}.",
}
