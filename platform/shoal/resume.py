"""Where `--resume` goes on from: the newest checkpoint that is whole, of this run, and of what is asked for now.

What was trained before and what is asked now must be one state and one text; if not, the difference is said and nothing
starts. Batches may change: positions in the global order go on from the samples consumed so far.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shoal.record import read
from shoal.record.place import checkpoints_in
from shoal_core.ckpt import among
from shoal_core.ckpt.errors import Damaged
from shoal_core.ckpt.folder import Folder
from shoal_core.ckpt.whole import Checkpoint
from shoal_core.errors import UserError
from shoal_core.workload import ORIGIN, Identity, Workload

__all__ = ["Found", "Origin", "check", "find", "origin_of"]

SHOWN = 3
"""Differences that are named one by one."""


@dataclass(frozen=True)
class Found:
    """A run's checkpoint to go on from. `folder`: none if there is no checkpoint at all; `marker`: what it says of
    itself; `tensors`: what it holds; `recorded`: samples consumed by then, by the record (None: it does not say);
    `passed`: newer checkpoints that are not used, and why."""

    folder: Folder | None = None
    marker: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, tuple[tuple[int, ...], str]] = field(default_factory=dict)
    recorded: int | None = None
    passed: list[tuple[Folder, str]] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return int(self.marker.get("steps", 0))

    @property
    def origin(self) -> Mapping[str, Any]:
        """The `Origin` of the session that saved it, if it says so."""
        section = self.marker.get("workload")
        origin = section.get(ORIGIN) if isinstance(section, dict) else None
        return origin if isinstance(origin, dict) else {}


@dataclass(frozen=True)
class Origin:
    """Stands in the job's `workload` section, so that all workers and every controller of the run agree.

    `start`: steps of the checkpoint that this session began with (None: it began from nothing); `steps`, `samples`:
    since that step batches are as they are now, and that many samples were consumed before; `data`: the identity of
    what is trained on."""

    start: int | None
    steps: int
    samples: int
    data: Mapping[str, str | int | None]


def find(rundir: Path) -> Found:
    """The newest checkpoint of a run that can be gone on from.

    One saved after a step that was not finite is taken only if there is no other.

    Raises:
        UserError: there are checkpoints, and none is whole and this run's.
    """
    root = checkpoints_in(rundir)
    runs = {event.get("run_id") for event in read.events(rundir) if event["kind"] == "run_started"}
    ends = {int(step["step"]) + 1: int(step["samples"][1]) for step in read.steps(rundir)}
    reached = max(ends, default=0)
    passed: list[tuple[Folder, str]] = []
    second: Found | None = None
    for whole in reversed(among.whole(root)):
        folder = whole.folder
        try:
            checkpoint = Checkpoint.open(folder)
            checkpoint.verify()
        except Damaged as error:
            passed.append((folder, error.problem))
            continue
        steps, marker, tensors = checkpoint.steps, checkpoint.marker, checkpoint.index.described
        of = marker.get("run_id")
        if runs and of is not None and of not in runs:
            passed.append((folder, f"{folder.address}: is of run {of}"))
        elif runs and steps > reached:
            passed.append((folder, f"{folder.address}: the run's record ends at step {reached}"))
        elif marker.get("finite", True):
            return Found(folder, marker, tensors, ends.get(steps), passed)
        else:
            second = second or Found(folder, marker, tensors, ends.get(steps), list(passed))
            passed.append((folder, f"{folder.address}: was saved after a step that was not finite"))
    if second is not None:
        return second
    if passed:
        raise UserError(
            "no checkpoint of the run can be gone on from: " + "; ".join(why for _, why in passed[:SHOWN]),
            f"restore one of them from a copy, or remove {root.address} to train from the beginning again",
        )
    return Found()


def check(found: Found, wanted: Identity | None, allow: Collection[str]) -> list[str]:
    """Hold a checkpoint against what is asked for now. Returns what should be known, a sentence each.

    `allow`: differences that are meant; `data` is the only one that can be.

    Raises:
        UserError: it is another state, or of other data; the message names the difference.
    """
    if others := sorted(set(allow) - {"data"}):
        raise UserError(f"--allow-change {others[0]}: cannot be allowed", "`data` is all that may change")
    if found.folder is None or wanted is None:
        return []
    if differs := state_differs(found.tensors, wanted["state"]):
        raise UserError(
            f"{found.folder.address}: holds another state than the job's workload: {differs}",
            "resume with the settings it was trained with, or begin another run",
        )
    before = found.origin.get("data")
    if not isinstance(before, dict):
        unknown = f"{found.folder.name} does not say what data it was trained on: they are taken for the job's"
        return [unknown] if found.steps else []
    changed = [
        f"{name} was {before[name]}, is {now}"
        for name, now in wanted["data"].items()
        if now is not None and before.get(name) is not None and before[name] != now
    ]
    if not changed:
        return []
    meaning = "positions go on where they are, in the new order: text read before may come again, and text left may not"
    if "data" not in allow:
        raise UserError(
            f"{found.folder.address}: was trained on other data than the job's: {'; '.join(changed)}",
            f"name the data it was trained on, or mean it: --allow-change data ({meaning})",
        )
    return [f"data change at step {found.steps}: {'; '.join(changed)}; {meaning}"]


def state_differs(
    held: Mapping[str, tuple[tuple[int, ...], str]], wanted: Mapping[str, tuple[tuple[int, ...], str]]
) -> str:
    """The first differences of two states in words, and how many there are; "" if they are the same. Names that the
    platform added are not looked at."""
    from shoal.checkpoint import OURS

    differences = []
    for name in sorted(held.keys() | wanted.keys()):
        if name.startswith(OURS) or held.get(name) == wanted.get(name):
            continue
        there, here = (
            f"{list(found[0])} {found[1]}" if found else "none" for found in (held.get(name), wanted.get(name))
        )
        differences.append(f"{name} is {there} there, {here} in the job")
    more = f", and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
    return "; ".join(differences[:SHOWN]) + more


def origin_of(found: Found, workload: Workload, data: Mapping[str, Any]) -> tuple[Origin, list[str]]:
    """Where the batches of the session begin to be counted, which `workload` is told; and what should be known of it.

    Nothing moves while batches stay as they were: then the origin is that of the session before.

    Raises:
        UserError: batches have changed, and the workload cannot go on from a number of samples.
    """
    if found.folder is None:
        return Origin(None, 0, 0, data), []
    steps, samples = (found.origin.get(name, 0) for name in ("steps", "samples"))
    if samples:
        workload.go_on(steps, samples)
    here = workload.samples(found.steps)[0]
    consumed = found.marker.get("samples", found.recorded if found.steps else 0)
    if not isinstance(consumed, int):
        unknown = (
            f"{found.folder.name} does not say how many samples it consumed: taken for {here}, by the job's batches"
        )
        return Origin(found.steps, steps, samples, data), [unknown]
    if here == consumed:
        return Origin(found.steps, steps, samples, data), []
    workload.go_on(found.steps, consumed)
    change = f"batches change: step {found.steps} goes on from sample {consumed}"
    return Origin(found.steps, found.steps, int(consumed), data), [change]
