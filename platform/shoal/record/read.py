"""The run directory from its readers' side: terminals, reports, trackers, audits. Nothing here writes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from shoal.errors import UserError
from shoal.record import layout
from shoal.record.jsonl import Tail, read_json, read_lines

__all__ = ["config", "events", "find_run", "follow", "plan", "runs", "samples", "steps"]


def steps(path: Path) -> list[dict[str, Any]]:
    """The committed steps of the run directory `path`, in order."""
    return list(read_lines(Path(path) / layout.STEPS))


def events(path: Path) -> list[dict[str, Any]]:
    """The journal, in order."""
    return list(read_lines(Path(path) / layout.EVENTS))


def samples(path: Path) -> Iterator[dict[str, Any]]:
    """`step, cell, worker, ids` of what entered the committed steps; nothing without `audit.samples`."""
    return read_lines(Path(path) / layout.SAMPLES)


def plan(path: Path) -> list[dict[str, Any]]:
    """`generation, time, assignment` of every generation, in order."""
    found = read_json(Path(path) / layout.PLAN) or {}
    return list(found.get("generations", []))


def config(path: Path) -> dict[str, Any]:
    """The resolved configuration; empty if it is not written yet."""
    file = Path(path) / layout.CONFIG
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except yaml.YAMLError as error:
        raise UserError(f"{file} is not YAML ({error})", "restore the file") from error
    return found if isinstance(found, dict) else {}


def runs(storage: Path | str) -> list[Path]:
    """The run directories in `storage`, the one last active first."""
    found = [path for path in Path(storage).glob("*/") if _is_run(path)]
    return sorted(found, key=lambda path: (path / layout.EVENTS).stat().st_mtime, reverse=True)


def _is_run(path: Path) -> bool:
    return (path / layout.EVENTS).is_file()


def find_run(run: str | Path | None, storage: Path | str) -> Path:
    """The directory of a run given by its id in `storage` or by its path; of the run last active if None.

    Raises:
        UserError: there is none; names the runs that exist.
    """
    if run is not None:
        for path in (Path(storage) / run, Path(run)):
            if _is_run(path):
                return path
    found = runs(storage)
    if run is None and found:
        return found[0]
    listing = ", ".join(path.name for path in found[:10]) + (", ..." if len(found) > 10 else "")
    problem = f"no run {str(run)!r} in {storage}" if run is not None else f"no runs in {storage}"
    raise UserError(problem, f"one of {listing}" if found else "name the storage with --storage or SHOAL_STORAGE")


def follow(
    path: Path, since: float = 0.0, stop: Callable[[], bool] | None = None, poll: float = 0.2
) -> Iterator[tuple[str, dict[str, Any]]]:
    """`("step" | "event", line)` as the lines come, by their time, from those stamped `since` (unix seconds) on.

    Waits for a directory that is not there yet; ends with the event `run_ended`, or once `stop()` is true and all
    that was written is read.
    """
    tails = {"step": Tail(Path(path) / layout.STEPS), "event": Tail(Path(path) / layout.EVENTS)}
    try:
        while True:
            stopping = stop is not None and stop()
            lines = [(kind, line) for kind, tail in tails.items() for line in tail.read() if line["time"] >= since]
            lines.sort(key=lambda found: found[1]["time"])
            yield from lines
            if stopping or any(line.get("kind") == "run_ended" for _, line in lines):
                return
            if not lines:
                time.sleep(poll)
    finally:
        for tail in tails.values():
            tail.close()
