"""Parts as work of Ray Data's actors, which keep their tokenizer and have the next parts waiting."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from shoal_core.errors import UserError
from shoal_data.jobs.attempt import SKIPPED, Work, attempt, files_of
from shoal_data.place import Place, address_of, place_at
from shoal_data.sources.causes import plural
from shoal_data.sources.parts import Part

__all__ = ["in_actors"]

_IN_FLIGHT = 3  # parts that wait at a worker, so that it need not wait for the driver
_EXECUTION = "ray.data._internal.execution"
_RETRIES = 2  # of a part whose worker died, before it is left to the next round


def in_actors(work: Work, parts: Sequence[Part], settings: dict[str, Any], stopped: Place) -> Iterator[dict[str, Any]]:
    """What `attempt` makes of each part.

    Parts that are lost with their workers are done again, in rounds, as long as a round gets any of them done.

    Args:
        stopped: no part begins once this file exists.

    Raises:
        UserError: parts whose worker dies each time.
    """
    import ray

    waiting = {part.id: part for part in parts}
    while waiting:
        before, cause = len(waiting), ""
        try:
            for row in _round(work, list(waiting.values()), settings, stopped):
                waiting.pop(int(row["part"]), None)
                if row["failure"] != SKIPPED:
                    yield row
        except ray.exceptions.RayError as error:
            cause = f" ({str(error).splitlines()[0]})"
        if waiting and len(waiting) == before:
            one = next(iter(waiting.values()))
            raise UserError(
                f"{files_of(one)}: the worker that does this part died {_RETRIES + 1} times{cause}",
                "it may be short of memory: give a smaller --part-bytes, or fewer slots a node; finished parts stay",
            )
        if waiting:
            print(f"{plural(len(waiting), 'part')} lost with a worker: done again", file=sys.stderr, flush=True)


def _round(work: Work, parts: Sequence[Part], settings: dict[str, Any], stopped: Place) -> Iterator[dict[str, Any]]:
    """In as many actors as there are cores to begin with. Tasks of their own would leave a core idle for a fifth of
    the time between two parts."""
    import ray.data
    from ray.util.annotations import RayDeprecationWarning

    _pass_by_value()
    rows = [{"part": json.dumps(part.to_json())} for part in parts]
    cores = int(ray.cluster_resources().get("CPU", 1))
    pool = ray.data.ActorPoolStrategy(
        min_size=1,
        initial_size=max(1, min(cores, len(rows))),
        max_size=len(rows),
        max_tasks_in_flight_per_actor=_IN_FLIGHT,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)  # of `max_task_retries`, which has no successor yet
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _Worker,
            fn_constructor_kwargs={
                "work": work,
                "settings": settings,
                "stopped": address_of(stopped),
                "at": os.getcwd(),
            },
            batch_size=1,
            batch_format="numpy",
            compute=pool,
            num_cpus=1,
            max_task_retries=_RETRIES,
        )
    done.context.max_errored_blocks = -1  # what is lost with a worker is left to the next round ...
    logging.getLogger(f"{_EXECUTION}.streaming_executor_state").setLevel(logging.CRITICAL)  # ... without tracebacks
    yield from done.iter_rows()


class _Worker:
    """Does parts in a process of its own, one after the other.

    Args:
        at: the driver's folder, to which the names of input files are relative.
    """

    def __init__(self, work: Work, settings: dict[str, Any], stopped: str, at: str) -> None:
        with contextlib.suppress(OSError):  # elsewhere in a job with a working directory: Ray has put its copy here
            os.chdir(at)
        self._work, self._settings, self._stopped = work, settings, place_at(stopped)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        (text,) = batch["part"]
        row = attempt(self._work, Part.from_json(json.loads(text)), self._settings, self._stopped.exists)
        return {name: np.array([value]) for name, value in row.items()}


def _pass_by_value() -> None:
    """Have Ray Data give its actors their settings by value.

    It gives them by reference to its object store, and Ray says of every such actor that it cannot be restarted once
    they are lost there (Ray's issues 53727 and 57733). Ours are some kilobytes.
    """
    from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator

    given: Any = ActorPoolMapOperator
    given._map_transformer_ref = property(lambda self: self._map_transformer)
    given._data_context_ref = property(lambda self: self.data_context)
