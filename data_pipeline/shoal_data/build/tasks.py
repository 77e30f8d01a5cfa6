"""Parts as tasks of Ray Data, or of threads: each done once or not at all, with its progress shown."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from typing import Any

import numpy as np

from shoal_data.build.inputs import Part
from shoal_data.build.progress import Progress
from shoal_data.errors import InputError

__all__ = ["cluster_is_named", "run_in_threads", "run_parts"]

#: what a task does: (part, settings) -> figures, with at least `bytes` of text and a `note`'s parts as plain numbers
Work = Callable[[Part, dict[str, Any]], dict[str, int]]


def cluster_is_named() -> bool:
    """Whether there is a cluster to run on: a job was submitted to it, `RAY_ADDRESS` names it, or Ray is running."""
    ray = sys.modules.get("ray")
    return "RAY_ADDRESS" in os.environ or (ray is not None and bool(ray.is_initialized()))


def run_parts(label: str, work: Work, parts: Sequence[Part], settings: dict[str, Any], totals: Sequence[str]) -> None:
    """Run `work` on every part with Ray Data, one task a part.

    `work` leaves its result in a file with the part's name, written whole, so a part that Ray runs twice (its node
    died) or that a killed job had begun leaves the same bytes.

    Args:
        label: what to call it in the progress line.
        settings: plain values that `work` gets beside its part.
        totals: figures of `work` to add up in the progress line.

    Raises:
        InputError: what `work` raised as such; the other parts keep their results.
    """
    import ray.data

    from shoal_data.build.session import ray_session

    with ray_session():
        rows = [{"part": json.dumps(part.to_json())} for part in parts]
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            partial(_work_on, work=work, settings=settings), batch_size=1, batch_format="numpy", num_cpus=1
        )
        _follow(label, parts, done.iter_rows(), totals)


def run_in_threads(
    label: str, work: Work, parts: Sequence[Part], settings: dict[str, Any], totals: Sequence[str]
) -> None:
    """`run_parts` without Ray, in as many threads as there are cores; `work` must let others run (no GIL)."""
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        tasks = [pool.submit(work, part, settings) for part in parts]
        _follow(label, parts, (task.result() for task in as_completed(tasks)), totals)
    finally:
        pool.shutdown(cancel_futures=True)


def _follow(label: str, parts: Sequence[Part], done: Iterable[dict[str, Any]], totals: Sequence[str]) -> None:
    """Show progress as the figures of each part come in.

    Raises:
        InputError: the figures are those of a part that failed.
    """
    progress = Progress(label, sum(piece.size for part in parts for piece in part.pieces))
    sums = dict.fromkeys(totals, 0)

    def note() -> str:
        return "  ".join(f"{value:,} {name}" for name, value in sums.items())

    for row in done:
        if row.get("error"):
            raise InputError(row["error"])
        for name in sums:
            sums[name] += row[name]
        progress.advance(row["bytes"], note())
    progress.finish(note())


def _work_on(batch: dict[str, Any], work: Work, settings: dict[str, Any]) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for text in batch["part"]:
        try:
            rows.append({**work(Part.from_json(json.loads(text)), settings), "error": ""})
        except InputError as error:
            # As a value: an exception would end the run behind Ray's traceback.
            rows.append({"error": str(error)})
    names = {name for row in rows for name in row}
    return {name: np.array([row.get(name, 0) for row in rows]) for name in names}
