"""Parts as work of Ray Data's actors, or of threads: each done once or not at all, with its progress shown."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from shoal_core.errors import StoreError
from shoal_data.jobs.attempt import SKIPPED, Failures, Work, attempt
from shoal_data.jobs.imports import import_early
from shoal_data.jobs.session import RaySession, on_ray
from shoal_data.place import Place
from shoal_data.progress import Progress
from shoal_data.sources.parts import Part

__all__ = ["on_ray", "run_parts", "use_ray"]

_WORTH_STARTING_RAY = 2 << 30  # bytes of text: threads are done with less before a Ray of its own has caught up


def use_ray(session: RaySession, parts: Sequence[Part], *, wait: bool) -> None:
    """Begin (and wait for) the Ray that `parts` are worth: where a cluster is named (a job was submitted to it,
    `RAY_ADDRESS`, Ray is running) or they are many. Little text on a single machine has threads.

    Raises:
        UserError: Ray cannot be had.
    """
    if parts and (os.environ.get("RAY_ADDRESS") or _size(parts) >= _WORTH_STARTING_RAY):
        if wait:
            session.wait()
        else:
            session.begin()


def run_parts(
    label: str, work: Work, parts: Sequence[Part], settings: dict[str, Any], totals: Sequence[str], folder: Place
) -> None:
    """Run `work` on every part: with Ray Data within a Ray session (see `use_ray`), else in threads.

    `work` leaves its result in a file with the part's name, written whole, so a part that Ray runs twice (its node
    died) or that a killed job had begun leaves the same bytes. In threads it must let others run (no GIL).

    When parts fail, those that have begun are finished, and so are all others if the cause may lie in one file alone.

    Args:
        label: what to call it in the progress line.
        settings: plain values that `work` gets beside its part.
        totals: figures of `work` to add up in the progress line.
        folder: where the job keeps its files, seen by all nodes.

    Raises:
        UserError: what `work` raised as such, or what kept it from its work (disk, memory, a store); the other parts
            keep their results.
    """
    progress, sums, failures = Progress(label, _size(parts)), dict.fromkeys(totals, 0), Failures()
    stop = _Stop(folder)

    def note() -> str:
        return "  ".join(f"{value:,} {name}" for name, value in sums.items())

    run = _on_ray if on_ray() else _in_threads
    with stop:
        for row in run(work, parts, settings, stop):
            if row["failure"]:
                failures.add(row)
                if failures.enough:
                    stop.set()
                continue
            for name in sums:
                sums[name] += int(row[name])
            progress.advance(int(row["bytes"]), note())
    progress.finish(note())
    failures.check()


class _Stop:
    """Says that no other part begins: to threads at once, to processes on any node by a file."""

    def __init__(self, folder: Place) -> None:
        self.path = folder / "stopped"
        self.event = threading.Event()

    def __enter__(self) -> None:
        self.path.unlink(missing_ok=True)  # of a job that was killed

    def __exit__(self, *_: object) -> None:
        self.path.unlink(missing_ok=True)

    def set(self) -> None:
        self.event.set()
        with contextlib.suppress(OSError, StoreError):  # on a full disk the others find out for themselves
            self.path.touch()


def _size(parts: Sequence[Part]) -> int:
    return sum(piece.size for part in parts for piece in part.pieces)


def _on_ray(work: Work, parts: Sequence[Part], settings: dict[str, Any], stop: _Stop) -> Iterator[dict[str, Any]]:
    from shoal_data.jobs.pool import in_actors  # brings Ray Data

    return in_actors(work, parts, settings, stop.path)


def _in_threads(work: Work, parts: Sequence[Part], settings: dict[str, Any], stop: _Stop) -> Iterator[dict[str, Any]]:
    """In as many threads as there are cores."""
    import_early()
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        tasks = [pool.submit(attempt, work, part, settings, stop.event.is_set) for part in parts]
        for task in as_completed(tasks):
            row = task.result()
            if row["failure"] != SKIPPED:
                yield row
    finally:
        stop.event.set()
        pool.shutdown(cancel_futures=True)
