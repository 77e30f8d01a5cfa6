"""The run directory from its writer's side. The controller is the only writer; readers use `shoal.record.read`."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from shoal.record import layout
from shoal.record.jsonl import Appender, dumps, line_of, read_lines
from shoal.record.masking import flat_masked, masked
from shoal.record.place import local_record
from shoal.record.read import config as read_config
from shoal_core.errors import UserError
from shoal_core.files import replace_file
from shoal_core.store import join, unmounted

__all__ = ["RunDir", "check_run_id", "journal_entry", "step_entry"]

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def check_run_id(storage: Path | str, run_id: str, resume: bool) -> Path:
    """Where the run's directory is or will be (`place.local_record`). Writes nothing to the storage, so a driver may
    call it before anything starts.

    Raises:
        UserError: the id cannot name a directory, is in use and `resume` is false, or is unknown and `resume` is true.
        StoreError: the storage does not answer.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise UserError(
            f"run_id: {run_id!r} cannot name a run",
            "use letters, digits, '.', '_' and '-', beginning with a letter or digit",
        )
    place = join(storage, run_id)
    path = local_record(place)
    if path.exists() and not resume:
        raise UserError(
            f"run_id: {run_id!r} is in use ({place} exists)", "choose another run_id, or go on with it: --resume"
        )
    if resume and not path.is_dir():
        problem, remedy = f"run_id: there is no run {run_id!r} to resume in {storage}", "leave out --resume"
        if nothing := unmounted(storage):
            raise UserError(f"{problem}, {nothing}", f"mount its disk, name the storage of the run, or {remedy}")
        raise UserError(problem, f"{remedy}, or name its storage")
    return path


def step_entry(step: Mapping[str, Any], last: int) -> dict[str, Any]:
    """A line of `steps.jsonl` (`layout.StepRecord` and further figures): `time` is now unless given, and a figure of
    the contract that the workload does not hand out is null.

    Raises:
        ValueError: another field is missing, or the step is not past `last`, the last one recorded (it is to be taken
            back first).
    """
    record = {"time": time.time(), **dict.fromkeys(layout.STEP_FIGURES), **step}
    missing = [field for field in layout.STEP_FIELDS if field not in record]
    if missing:
        raise ValueError(f"a step record without {', '.join(missing)}")
    if record["step"] <= last:
        raise ValueError(f"step {record['step']} is recorded already (the last is {last})")
    return record | {"tokens": round(record["tokens"])}  # workloads sum figures as floats


def journal_entry(kind: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the journal; `time` is now unless given. A field of the contract (`layout.EVENT_FIELDS`) that is not
    known is null: readers find every field of a kind."""
    return {"time": time.time(), "kind": kind, **dict.fromkeys(layout.EVENT_FIELDS.get(kind, ())), **fields}


class RunDir:
    """Opens an existing run directory for writing, mending what a writer that crashed left unfinished.

    `guard`: called before every write; raises an OSError if this process may not write any more.
    """

    def __init__(self, path: Path | str, guard: Callable[[], None] = lambda: None) -> None:
        self.path, self._guard = Path(path), guard
        for unfinished in self.path.glob(".*.tmp"):
            unfinished.unlink()
        self._steps = Appender(self.path / layout.STEPS)
        self._events = Appender(self.path / layout.EVENTS)
        self._samples: Appender | None = None
        if (self.path / layout.SAMPLES).exists():
            self._samples = Appender(self.path / layout.SAMPLES)
        self._last_step = self._find_last_step()

    @classmethod
    def create(cls, storage: Path | str, run_id: str, config: Mapping[str, Any], resume: bool) -> RunDir:
        """Claim `run_id`, or with `resume` open the run that has it. Writes the resolved config without its secrets;
        one that differs from the recorded one is told in the journal (`config_changed`).

        Raises:
            UserError: as `check_run_id`, or the folder cannot be written.
        """
        path = check_run_id(storage, run_id, resume)
        try:
            path.mkdir(parents=True, exist_ok=resume)
            (path / layout.CHECKPOINTS).mkdir(exist_ok=True)
        except FileExistsError as error:  # claimed by another between the check and here
            raise UserError(f"run_id: {run_id!r} is in use ({path} exists)", "choose another run_id") from error
        except OSError as error:
            raise UserError(f"storage: {path} cannot be written ({error.strerror})", "name another storage") from error
        for of_the_end in (layout.RUN, layout.STATUS):  # a run that goes on has not ended
            (path / of_the_end).unlink(missing_ok=True)
        run = cls(path)
        config_file = path / layout.CONFIG
        if config_file.exists():
            before, after = flat_masked(read_config(path)), flat_masked(config)
            changes = {
                key: [before.get(key), after.get(key)]
                for key in sorted(before.keys() | after.keys())
                if before.get(key) != after.get(key)
            }
            if changes:
                run.append_event("config_changed", changes=changes)
        text = yaml.safe_dump(masked(dict(config)), sort_keys=False, allow_unicode=True)
        replace_file(config_file, text, mode=0o600)
        return run

    @property
    def last_step(self) -> int:
        """The last step in `steps.jsonl`; -1 when there is none."""
        return self._last_step

    def append_step(self, step: Mapping[str, Any]) -> None:
        """Record a committed step: `step_entry` tells what of it. Raises: as `step_entry` and `append`."""
        record = step_entry(step, self._last_step)
        self.append(layout.STEPS, line_of(record))
        self._last_step = int(record["step"])

    def append_samples(self, samples: Mapping[str, Any]) -> None:
        """Record which samples a worker put into a committed step: `step, cell, worker, ids`."""
        self.append(layout.SAMPLES, line_of(samples))

    def append_event(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Add a line to the journal and return it (`journal_entry`)."""
        event = journal_entry(kind, fields)
        self.append(layout.EVENTS, line_of(event))
        return event

    def append(self, name: str, line: bytes) -> None:
        """Add a line to one of the files of lines.

        Raises:
            OSError: it could not be written; no part of it stays.
        """
        self._guard()
        if name == layout.SAMPLES and self._samples is None:
            self._samples = Appender(self.path / layout.SAMPLES)
        file = {layout.STEPS: self._steps, layout.EVENTS: self._events, layout.SAMPLES: self._samples}[name]
        assert file is not None
        file.write(line)

    def truncate_steps(self, step: int) -> int:
        """Take back the steps `>= step` (training goes on from an earlier state). Returns how many were recorded.

        Raises:
            OSError: it could not be done, or in part: do it again.
        """
        self._guard()
        if (
            self._samples is not None
        ):  # samples first: a crash between leaves committed steps unaudited, not the reverse
            self._samples.keep(lambda record: record["step"] < step)
        dropped = self._steps.keep(lambda record: record["step"] < step)
        self._last_step = self._find_last_step()
        return dropped

    def replace_plan(self, generations: list[dict[str, Any]]) -> None:
        """Write `plan.json` anew: of each generation its number, its time, and cell -> list of actors."""
        self._guard()
        replace_file(self.path / layout.PLAN, dumps({"generations": generations}, indent=1) + "\n", durable=False)

    def write_status(self, status: Mapping[str, Any]) -> None:
        """Replace the live snapshot; `written` is now unless given, and `workers` may be any iterable. They are encoded
        one by one, so that no other thread waits for thousands of them."""
        self._guard()
        head = {"written": time.time(), **status}
        workers = ", ".join(map(dumps, head.pop("workers", ())))
        text = f'{dumps(head).removesuffix("}")}, "workers": [{workers}]}}\n'
        replace_file(self.path / layout.STATUS, text, durable=False)

    def write_run(self, run: Mapping[str, Any]) -> None:
        """Write `run.json`, the figures at the end (`shoal.record.summary.summarize`)."""
        self._guard()
        replace_file(self.path / layout.RUN, dumps(dict(run), indent=1) + "\n")

    def close(self) -> None:
        """Release the files."""
        for appender in (self._steps, self._events, self._samples):
            if appender is not None:
                appender.close()

    def _find_last_step(self) -> int:
        return max((int(record["step"]) for record in read_lines(self.path / layout.STEPS)), default=-1)
