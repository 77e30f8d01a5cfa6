"""Parts as tasks of Ray Data, or of threads: each done once or not at all, with its progress shown."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from shoal_data.build.inputs import Part
from shoal_data.build.progress import Progress
from shoal_data.errors import InputError

__all__ = ["Work", "on_ray", "run_parts", "session_for"]

#: what a task does: (part, settings) -> figures, with at least `bytes` of text and a `note`'s parts as plain numbers
Work = Callable[[Part, dict[str, Any]], dict[str, int]]

_WORTH_STARTING_RAY = 2 << 30  # bytes of text: threads are done with less before a Ray of its own has caught up
_IN_FLIGHT = 3  # parts that wait at a worker, so that it need not wait for the driver


def on_ray() -> bool:
    """Whether this process is part of a Ray session, as its driver or a worker."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def session_for(parts: Sequence[Part]) -> AbstractContextManager[None]:
    """Starts or joins, once for all runs within, the Ray that `parts` are worth: where a cluster is named (a job was
    submitted to it, `RAY_ADDRESS`, Ray is running) or they are many. Little text on a single machine has threads."""
    if not (os.environ.get("RAY_ADDRESS") or on_ray() or _size(parts) >= _WORTH_STARTING_RAY):
        return nullcontext()
    from shoal_data.build.session import ray_session

    return ray_session()


def run_parts(label: str, work: Work, parts: Sequence[Part], settings: dict[str, Any], totals: Sequence[str]) -> None:
    """Run `work` on every part: with Ray Data within a Ray session (see `session_for`), else in threads.

    `work` leaves its result in a file with the part's name, written whole, so a part that Ray runs twice (its node
    died) or that a killed job had begun leaves the same bytes. In threads it must let others run (no GIL).

    Args:
        label: what to call it in the progress line.
        settings: plain values that `work` gets beside its part.
        totals: figures of `work` to add up in the progress line.

    Raises:
        InputError: what `work` raised as such; the other parts keep their results.
    """
    run = _on_ray if on_ray() else _in_threads
    progress, sums = Progress(label, _size(parts)), dict.fromkeys(totals, 0)

    def note() -> str:
        return "  ".join(f"{value:,} {name}" for name, value in sums.items())

    for row in run(work, parts, settings):
        if row.get("error"):
            raise InputError(row["error"])
        for name in sums:
            sums[name] += row[name]
        progress.advance(row["bytes"], note())
    progress.finish(note())


def _size(parts: Sequence[Part]) -> int:
    return sum(piece.size for part in parts for piece in part.pieces)


def _on_ray(work: Work, parts: Sequence[Part], settings: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """In actors of Ray Data, as many as there are cores to begin with: they keep the tokenizer, and the next parts wait
    at them. Tasks of their own would leave a core idle for a fifth of the time between two parts."""
    import ray.data

    rows = [{"part": json.dumps(part.to_json())} for part in parts]
    cores = int(ray.cluster_resources().get("CPU", 1))
    pool = ray.data.ActorPoolStrategy(
        min_size=1,
        initial_size=max(1, min(cores, len(rows))),
        max_size=len(rows),
        max_tasks_in_flight_per_actor=_IN_FLIGHT,
    )
    return (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .map_batches(
            _Worker,
            fn_constructor_kwargs={"work": work, "settings": settings},
            batch_size=1,
            batch_format="numpy",
            compute=pool,
            num_cpus=1,
        )
        .iter_rows()
    )


class _Worker:
    """Does parts in a process of its own, one after the other."""

    def __init__(self, work: Work, settings: dict[str, Any]) -> None:
        self._work, self._settings = work, settings

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        (text,) = batch["part"]
        try:
            row = {**self._work(Part.from_json(json.loads(text)), self._settings), "error": ""}
        except InputError as error:
            # As a value: an exception would end the run behind Ray's traceback.
            row = {"error": str(error)}
        return {name: np.array([value]) for name, value in row.items()}


def _in_threads(work: Work, parts: Sequence[Part], settings: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """In as many threads as there are cores."""
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        tasks = [pool.submit(work, part, settings) for part in parts]
        for task in as_completed(tasks):
            yield task.result()
    finally:
        pool.shutdown(cancel_futures=True)
