"""A user's own `ray.train.UserCallback`s, called in the controller's process by a thread that reads the record.

Neither training nor the controller waits for one: the record is the queue. One that raises or hangs is told in the
journal.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import cloudpickle

from shoal.names import is_worker
from shoal.printable import printable
from shoal.record import layout, read
from shoal.record.jsonl import dumps, read_json
from shoal.record.masking import mask_text
from shoal.record.raystate import RunState
from shoal.record.sentences import sentence
from shoal.storage import arrow_filesystem
from shoal_core.errors import UserError
from shoal_core.files import replace_file

__all__ = ["Callbacks", "Configs", "packed"]

logger = logging.getLogger(__name__)
LARGEST = 64 << 10
"""Bytes that callbacks may have: what is larger Ray keeps in the driver's node, and a controller that is started again
finds it no more once the driver is gone."""
HANGS = 30.0
"""Seconds after which a call that has not returned is told."""
NOTED = 1.0
"""Seconds between two notes of how far callbacks were told."""
KEPT = 10_000
"""Newest steps whose figures are at hand for the checkpoint that holds them."""
POSITION = ".callbacks.json"


@dataclass(frozen=True)
class Configs:
    """What a driver hands to its run's controller: Ray's configs, with the callbacks in the first, and the workload's
    settings."""

    run_config: Any
    scaling_config: Any
    workload: Mapping[str, Any]


def packed(given: Configs) -> bytes:
    """As it travels in the arguments of the controller's actor, which Ray keeps with the cluster; empty without any.

    Raises:
        UserError: it cannot travel.
    """
    if not given.run_config.callbacks:
        return b""
    field = "RunConfig.callbacks"
    try:
        found = bytes(cloudpickle.dumps(given))
    except Exception as error:  # whatever a __reduce__ of theirs raises
        raise UserError(
            f"{field}: cannot be sent to the controller ({type(error).__name__}: {error})",
            "let them open files, connections and locks when they are first called, not when they are made",
        ) from error
    if len(found) > LARGEST:
        raise UserError(
            f"{field}: {len(found):,} bytes, and {LARGEST:,} at most are sent to the controller",
            "let them load what is large when they are first called",
        )
    return found


class Callbacks:
    """Calls the callbacks of a run. `given`: see `packed`; `run`: the folder of its record; `session`: its id in Ray
    Train's state; `again`: a controller before this one called them, as far as it noted; `journal`: puts a line on
    record."""

    def __init__(self, given: bytes, run: Path, session: str, *, again: bool, journal: Callable[..., None]) -> None:
        self._given, self._run, self._session, self._journal = given, run, session, journal
        self._since = 0.0 if again else time.time()
        self._told = self._noted = noted(run) if again else 0.0
        """Lines up to this time (unix seconds) were told; and are noted as that."""
        self._state, self._steps = RunState(), deque[dict[str, Any]](maxlen=KEPT)
        self._calls: tuple[list[Any], Any] | None = None
        """The callbacks, and the context they are given."""
        self._now: tuple[str, float] | None = None
        """The call that is made, and since when (monotonic)."""
        self._failed: dict[str, int] = {}
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=call, daemon=True, name=name)
            for name, call in (("callbacks", self._work), ("callbacks-watch", self._watch))
        ]

    def start(self) -> None:
        """Begin; never waits."""
        for thread in self._threads:
            thread.start()

    def close(self, seconds: float) -> None:
        """Tell what is left, for so long at most."""
        self._closing.set()
        self._threads[0].join(seconds)
        if self._threads[0].is_alive():
            logger.warning("callbacks were not told all of the run: they are not done after %g s", seconds)

    def _work(self) -> None:
        try:
            for kind, line in read.follow(self._run, self._since, self._closing.is_set):
                self._take(kind, line)
            self._note(time.time())
        except Exception as error:
            logger.exception("callbacks are not called any more")
            self._tell("callbacks", f"they are not called any more: {type(error).__name__}: {error}")

    def _take(self, kind: str, line: dict[str, Any]) -> None:
        told = line["time"] <= self._told
        if kind == "step":
            figures = {name: value for name, value in line.items() if name not in layout.INNER}
            self._steps.append(figures)
            if not told:
                self._report(figures, None)
        else:
            crew = () if self._state.attempt is None else self._state.attempt.workers
            with suppress(ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
                self._state.take(line)
            if not told:
                self._event(line, crew)
        if not told and line["time"] > self._noted + NOTED:
            self._note(line["time"])

    def _event(self, line: dict[str, Any], crew: tuple[str, ...]) -> None:
        """`crew`: the run's workers by their rank, as it was before."""
        actor = line.get("actor")
        match line["kind"]:
            case "checkpoint":
                from ray.train import Checkpoint

                files, folder = arrow_filesystem(str(line["path"]))
                known = (one for one in reversed(self._steps) if one["step"] == line["step"] - 1)
                self._report(next(known, {"step": line["step"] - 1}), Checkpoint(folder, files))
            case "death" if actor in crew:
                self._call("after_exception", worker_exceptions={crew.index(actor): RuntimeError(sentence(line))})
            case "error" if is_worker(str(actor)):
                rank = crew.index(actor) if actor in crew else len(crew)
                self._call("after_exception", worker_exceptions={rank: RuntimeError(line["trace"])})

    def _report(self, figures: dict[str, Any], checkpoint: Any) -> None:
        self._call("after_report", metrics=[dict(figures)], checkpoint=checkpoint)

    def _call(self, method: str, **arguments: Any) -> None:
        if self._calls is None:
            self._calls = self._unpacked()
        callbacks, context = self._calls
        for callback in callbacks:
            name = f"{type(callback).__name__}.{method}"
            self._now = (name, time.monotonic())
            try:
                getattr(callback, method)(run_context=context, **arguments)
            except BaseException as error:  # one that would leave the process (SystemExit) ends nothing here
                self._tell(name, f"it raised {type(error).__name__}: {error}")
            finally:
                self._now = None

    def _unpacked(self) -> tuple[list[Any], Any]:
        """Where one cannot be had, none is: that is told, and what comes is not asked for again."""
        try:
            from ray.train import BackendConfig, DataConfig
            from ray.train.v2._internal.execution.context import TrainRunContext

            given = cloudpickle.loads(self._given)
            configs = (given.run_config, dict(given.workload), given.scaling_config)
            context = TrainRunContext(*configs, backend_config=BackendConfig(), dataset_config=DataConfig())
            object.__setattr__(context, "run_id", self._session)  # a field that Ray draws by itself
            return list(given.run_config.callbacks), context
        except Exception as error:
            self._tell("callbacks", f"the controller cannot make them: {type(error).__name__}: {error}")
            return [], None

    def _watch(self) -> None:
        told: tuple[str, float] | None = None
        while not self._closing.wait(HANGS / 4):
            now = self._now
            if now is not None and now != told and time.monotonic() > now[1] + HANGS:
                told = now
                self._tell(now[0], f"it has not returned for {HANGS:g} s; what comes waits for it, training does not")

    def _tell(self, name: str, problem: str) -> None:
        """The first, second, fourth, eighth time, and so on."""
        times = self._failed[name] = self._failed.get(name, 0) + 1
        if times & (times - 1) == 0:
            logger.warning("%s: %s", name, problem)
            self._journal("callback_failed", callback=name, problem=printable(mask_text(problem)), times=times)

    def _note(self, when: float) -> None:
        self._noted = when
        try:
            replace_file(self._run / POSITION, dumps({"time": when}), durable=False)
        except OSError as error:
            logger.warning("how far callbacks were told is not noted: %s", error)


def noted(run: Path) -> float:
    """Up to when callbacks were told, by a controller before this one; where nobody knows, up to now."""
    try:
        return float((read_json(run / POSITION) or {})["time"])
    except (UserError, LookupError, TypeError, ValueError):
        return time.time()
