"""What Ray Train's own `Result.from_path` wants to find in a run's folder: a list of the checkpoints that stay.

The form is Ray's, and internal to it (`_CheckpointManagerState` in `ray/train/v2/_internal/execution/checkpoint`): a
test holds it against the installed one. Ray is not imported here: workers write this file, before they remove what does
not stay, so that it never names what was removed before.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

from shoal.record import layout
from shoal.record.jsonl import dumps
from shoal_core.ckpt import among
from shoal_core.ckpt.folder import name_of
from shoal_core.ckpt.retention import Keep, Saved, ranked
from shoal_core.store import Store, open_under

__all__ = ["refresh", "snapshot", "strike", "write"]


def snapshot(saved: Sequence[Saved], keep: Keep, ray_version: str) -> dict[str, Any]:
    """The list, of checkpoints in the order of their steps: the best last where the best are kept, else the newest."""
    order = {one.steps: place for place, one in enumerate(saved)}
    scored = ranked(saved, keep) if keep.best else []
    best = {one.steps for one in scored}
    results = [*(one for one in saved if one.steps not in best), *scored]
    return {
        "ray_version": ray_version,
        "checkpoint_results": [result(one) for one in results],
        "checkpoint_report_indices": [order[one.steps] for one in results],
        "latest_checkpoint_result": result(saved[-1]) if saved else None,
        "pending_training_results": [],
        "pending_validation_specs": [],
        "current_report_index": len(saved),
        "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }


def result(one: Saved) -> dict[str, Any]:
    """A checkpoint and its metrics: those of the step before it, counted from 0 as in `steps.jsonl`."""
    folder = f"{layout.CHECKPOINTS}/{name_of(one.steps)}"
    return {"version": 0, "checkpoint_dir_name": folder, "metrics": {"step": one.steps - 1, **one.metrics}}


def write(run: Store, keep: Keep, saved: Sequence[Saved]) -> None:
    """Replace the list of the run that lies in `run`. Raises StoreError: it is not taken."""
    run.put(layout.RAY_TRAIN, dumps(snapshot(saved, keep, _ray_version()), indent=1).encode())


def refresh(run: Store, keep: Keep) -> None:
    """Write the list anew from what lies there, when no worker does. Raises StoreError: the store does not answer."""
    write(run, keep, [among.saved(one) for one in among.whole(open_under(run, layout.CHECKPOINTS))])


def strike(run: Store, folder: str) -> None:
    """Take the checkpoint of that name off the list, if there is a list: somebody removes it by hand.

    Raises:
        StoreError: the store does not answer. ValueError: the list is damaged.
    """
    try:
        said = json.loads(run.get(layout.RAY_TRAIN))
        gone = f"{layout.CHECKPOINTS}/{folder}"
        kept = [
            (order, one)
            for order, one in zip(said["checkpoint_report_indices"], said["checkpoint_results"], strict=True)
            if one["checkpoint_dir_name"] != gone
        ]
    except FileNotFoundError:
        return
    except (KeyError, TypeError) as error:
        raise ValueError(f"{run.where(layout.RAY_TRAIN)}: is not of the form of one") from error
    said |= {"checkpoint_report_indices": [order for order, _ in kept], "checkpoint_results": [one for _, one in kept]}
    said["latest_checkpoint_result"] = max(kept, key=lambda each: each[0])[1] if kept else None
    run.put(layout.RAY_TRAIN, dumps(said, indent=1).encode())


@cache
def _ray_version() -> str:
    return version("ray")
