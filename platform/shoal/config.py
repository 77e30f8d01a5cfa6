"""The job file: YAML with `key.sub=value` overrides, validated before anything starts.

Unknown keys are refused, with the nearest key that exists. The `workload` section belongs to the workload: it is
validated by the `Config` of the class that `workload.path` names.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shoal.errors import UserError

__all__ = ["Job", "load_job", "merge_overrides", "parse", "read_yaml"]

RUN_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Checkpoint(Section):
    """Distributed checkpoints, written in the background."""

    every: int = Field(100, ge=0, description="steps between checkpoints; 0: only the last one")
    keep: int = Field(2, ge=1, description="how many whole checkpoints stay")


class Evaluation(Section):
    """Bits per byte on held-out text, at the start, at the end and in between."""

    every: int = Field(
        0, ge=0, description="steps between evaluations; 0: only before the first and after the last step"
    )
    enabled: bool = True


class Audit(Section):
    samples: bool = Field(False, description="write samples.jsonl: who took which sample into which committed step")


class Snapshots(Section):
    """Copies of the state in each worker's own memory, for steps that went wrong, and checks that replicas agree."""

    every: int = Field(0, ge=0, description="steps between two copies; 0: none, and no rolling back")
    elsewhere: bool = Field(True, description="copy them to other nodes too, to go on from if no cell is left")
    roll_backs: int = Field(3, ge=0, description="times a run may roll back; once more ends it")
    compare: int = Field(0, ge=0, description="steps between two comparisons of the replicas' checksums; 0: never")

    @property
    def recalls(self) -> bool:
        """Whether copies are kept on other nodes."""
        return self.every > 0 and self.elsewhere


class Injection(Section):
    """A fault on order, for drills: see `shoal.worker.inject`."""

    at: Literal["accumulate", "accumulated", "across", "vote", "commit", "committed", "join", "heal", "checkpoint"]
    step: int = Field(ge=0, description="the pending step (committed: the one just done)")
    cell: int = Field(0, ge=0)
    rank: int = Field(0, ge=0)
    how: Literal["kill", "freeze", "raise", "nan", "flip"] = "kill"


class Mlflow(Section):
    enabled: bool = True
    uri: str | None = Field(None, description="tracking server; by default SQLite in the storage folder")
    experiment: str = "shoal"


class Job(Section):
    """What to train, on how many workers, and what to keep of it."""

    run_id: str | None = Field(None, pattern=RUN_ID, description="name of the run; made up when not given")
    storage: Path = Field(Path("runs"), description="folder (shared by all nodes) that holds the runs")
    steps: int = Field(ge=1, description="optimizer steps to commit")
    cells: int = Field(2, ge=1, description="replicas of the model (HSDP groups)")
    workers_per_cell: int = Field(2, ge=1, description="workers that share one replica (FSDP x expert parallel)")
    spares: int | Literal["all"] = Field("all", description="warm spare workers to hold; all: every free slot")
    threads: int = Field(1, ge=1, description="CPU threads a worker computes with")
    slot_resource: str = Field("slot", description="the Ray resource one worker takes one of (GPU on GPU nodes)")
    reduce: Literal["fast", "exact"] = Field(
        "fast", description="exact: sums in fixed point, so that recoveries leave no trace, to the last bit"
    )
    seed: int = Field(0, ge=0, description="of the model's initial values")
    patience: float = Field(
        20.0,
        gt=0,
        description="seconds a worker may be silent before it is taken for dead; every timeout derives from it",
    )
    checkpoint: Checkpoint = Checkpoint()
    evaluation: Evaluation = Evaluation()
    stragglers: Literal["name", "replace"] = Field(
        "name", description="what to do about a cell that is slow step after step: only name it, or replace its slowest"
    )
    audit: Audit = Audit()
    snapshots: Snapshots = Snapshots()
    inject: list[Injection] = Field([], description="faults on order, for drills")
    mlflow: Mlflow = Mlflow()
    workload: dict[str, Any] = Field(description="`path: package.module:Class`, the rest is the workload's own")


Model = TypeVar("Model", bound=BaseModel)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: no such file, not YAML, or not a mapping.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})", "name an existing job file") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not YAML: {error}", "mend the line it names") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds no settings", "write `key: value` lines, as in docs/configuration.md")
    return found


def merge_overrides(settings: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """`settings` with each `key.sub=value` put in; values are read as YAML (`lr=1e-3` gives a number).

    Raises:
        UserError: no `=`, or the path runs through something that is not a section.
    """
    merged = {key: dict(value) if isinstance(value, dict) else value for key, value in settings.items()}
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path:
            raise UserError(f"{override!r} is no override", "write key.sub=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"{override!r}: the value is not YAML", "quote it") from error
        if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
            value = float(value)  # YAML 1.1 takes 1e-3 for a string
        *sections, key = path.split(".")
        here = merged
        for section in sections:
            inner = here.get(section) or {}
            if not isinstance(inner, dict):
                raise UserError(f"{path}: {section!r} is a value, not a section", "name a key of a section")
            here[section] = here = dict(inner)
        here[key] = value
    return merged


def parse(model: type[Model], settings: Mapping[str, Any], *, source: str, prefix: str = "") -> Model:
    """Validate `settings` by `model`; the error names every bad field by its full dotted key.

    Raises:
        UserError: an unknown key (with the nearest known one), a missing one, or a bad value.
    """
    try:
        return model.model_validate(dict(settings))
    except ValidationError as error:
        lines = [explain(model, item["loc"], item["type"], item["msg"], prefix) for item in error.errors()]
        raise UserError(f"{source}: " + "; ".join(lines), "correct the setting, see `docs/configuration.md`") from error


def explain(model: type[BaseModel], where: tuple[int | str, ...], kind: str, message: str, prefix: str) -> str:
    """One field's error in words."""
    key = prefix + ".".join(str(part) for part in where)
    if kind == "extra_forbidden":
        known = fields_at(model, where[:-1])
        near = difflib.get_close_matches(str(where[-1]), known, n=1, cutoff=0.0)
        stem = key.rpartition(".")[0]
        nearest = f"{stem}.{near[0]}" if stem and near else (near[0] if near else "")
        return f"unknown key {key!r}" + (f", did you mean {nearest!r}?" if nearest else "")
    if kind == "missing":
        return f"{key!r} is missing"
    return f"{key!r}: {message}"


def fields_at(model: type[BaseModel], where: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the section that `where` leads to."""
    for part in where:
        field = model.model_fields.get(str(part))
        inner = None if field is None else field.annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)


def load_job(path: Path, overrides: Iterable[str]) -> Job:
    """Read and validate a job file with its overrides (the `workload` section excepted)."""
    return parse(Job, merge_overrides(read_yaml(path), overrides), source=str(path))
