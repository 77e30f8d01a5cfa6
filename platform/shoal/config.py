"""The job file: YAML with `key.sub=value` overrides, validated before anything starts.

Unknown keys are refused, with the nearest key that exists. The `workload` section belongs to the workload: it is
validated by the `Config` of the class that `workload.path` names.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from shoal.printable import printable
from shoal.record.masking import mask_text
from shoal.sections import WIDEST, Autoscale, Elastic, Notify, Section
from shoal.wording import explain, infinite
from shoal.yamlfile import load_yaml, read_text
from shoal_core.ckpt.retention import Keep
from shoal_core.errors import UserError
from shoal_core.store import join, local_folder, open_store

__all__ = ["Injection", "Job", "load_job", "merge_overrides", "parse", "read_yaml"]

RUN_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
SELECTS = r"!?(in\([\w.-]+(, ?[\w.-]+)*\)|[\w.-]*)"
RESOURCE = r"^[A-Za-z][A-Za-z0-9._-]{0,63}$"
STEPS = 1_000_000_000
"""More steps than anything trains for."""


class Checkpoint(Section):
    """Distributed checkpoints, written in the background."""

    every: Annotated[int, Field(ge=0, le=STEPS)] | Literal["auto"] = Field(
        100, description="steps between checkpoints; 0: only the last one; auto: by what saves and failures cost"
    )
    keep: Annotated[int, Field(ge=1, le=STEPS)] | Literal["all"] = Field(
        2, description="how many whole checkpoints stay, the newest"
    )
    keep_every: int = Field(0, ge=0, le=STEPS, description="the first in every span of so many steps stays; 0: none")
    keep_best: int = Field(0, ge=0, le=STEPS, description="how many stay that are the best by their `score`")
    score: str = Field(
        "bpb", min_length=1, description="figure by which they are, of the step or the held-out set: bpb, heldout_loss"
    )
    score_order: Literal["min", "max"] = Field("min", description="whether the least or the most of it is best")
    local: str | None = Field(
        None, description="a folder of each node's own disk: checkpoints are written there, then brought to the storage"
    )

    @property
    def stays(self) -> Keep:
        """Which checkpoints stay."""
        last = STEPS if self.keep == "all" else self.keep
        return Keep(last, self.keep_every, self.keep_best, self.score, self.score_order == "max")

    @field_validator("local")
    @classmethod
    def _of_each_node(cls, local: str | None) -> str | None:
        if local is not None and (not local.startswith("/") or printable(local) != local):
            raise ValueError("is no path from the root, such as /local/shoal, which every node has to itself")
        return local


class Evaluation(Section):
    """Bits per byte on held-out text, at the start, at the end and in between."""

    every: int = Field(
        0, ge=0, le=STEPS, description="steps between evaluations; 0: only before the first and after the last step"
    )
    enabled: bool = True


class Audit(Section):
    samples: bool = Field(False, description="write samples.jsonl: who took which sample into which committed step")


class Snapshots(Section):
    """Copies of the state in each worker's own memory, for steps that went wrong, and checks that replicas agree."""

    every: Annotated[int, Field(ge=0, le=STEPS)] | Literal["auto"] = Field(
        0, description="steps between two copies; 0: none, and no rolling back; auto: so that they take 2% of the time"
    )
    elsewhere: bool = Field(True, description="copy them to other nodes too, to go on from if no cell is left")
    roll_backs: int = Field(3, ge=0, le=STEPS, description="times a run may roll back; once more ends it")
    compare: int = Field(
        0, ge=0, le=STEPS, description="steps between two comparisons of the replicas' checksums; 0: never"
    )

    @property
    def recalls(self) -> bool:
        """Whether copies are kept on other nodes."""
        return self.every != 0 and self.elsewhere


class Failures(Section):
    """How often training may go back to what was saved: to copies in other nodes' memory, or to a checkpoint. What is
    healed without that is no failure."""

    most: int | None = Field(None, ge=0, le=STEPS, description="times; once more ends the run; none: any number")
    preemptions: int | None = Field(
        None, ge=0, le=STEPS, description="the same, where all that died were nodes that were announced to go"
    )


class Injection(Section):
    """A fault on order, for drills: see `shoal.worker.inject`."""

    at: (
        Literal["accumulate", "accumulated", "across", "vote", "commit", "committed", "meet", "join", "heal", "joined"]
        | Literal["checkpoint", "pause", "paused", "form", "left", "fill", "filled"]
    )
    step: int | None = Field(None, ge=0, le=STEPS, description="the pending step (committed: the one just done)")
    cell: int = Field(0, ge=0, le=WIDEST)
    rank: int = Field(0, ge=0, le=WIDEST)
    how: Literal["kill", "freeze", "hang", "raise", "nan", "flip"] = "kill"


class Mlflow(Section):
    enabled: bool = True
    uri: str | None = Field(
        None, description="tracking server; by default MLFLOW_TRACKING_URI, else SQLite in the storage folder"
    )
    experiment: str = Field("shoal", min_length=1, max_length=200)


class Job(Section):
    """What to train, on how many workers, and what to keep of it."""

    run_id: str | None = Field(None, pattern=RUN_ID, description="name of the run; made up when not given")
    storage: str = Field(
        "runs", description="where the runs lie: a folder that all nodes share, or a store such as s3://bucket/runs"
    )
    steps: int = Field(ge=1, le=STEPS, description="optimizer steps to commit")
    cells: int = Field(2, ge=1, le=WIDEST, description="replicas of the model (HSDP groups)")
    workers_per_cell: int = Field(
        2, ge=1, le=WIDEST, description="workers that share one replica (FSDP x expert parallel)"
    )
    spares: Annotated[int, Field(ge=0, le=WIDEST)] | Literal["all"] = Field(
        "all", description="warm spare workers to hold; all: every free slot"
    )
    threads: int = Field(1, ge=1, le=1024, description="CPU threads a worker computes with")
    slot_resource: str = Field(
        "slot", pattern=RESOURCE, description="the Ray resource one worker takes one of: GPU: its own GPU; or CPU"
    )
    slot_needs: dict[str, Annotated[float, Field(gt=0, lt=1e18)]] = Field(
        {},
        description="what a worker takes beside, or how much of the slot's resource if not one: {CPU: 8, memory: 16e9}",
    )
    slot_labels: dict[str, str] = Field(
        {}, description="labels of the nodes whose slots the run may take, in the words of Ray's label selectors"
    )
    worker_runtime_env: dict[str, Any] = Field(
        {}, description="runtime environment of the workers, in Ray's words, over that of the job"
    )
    log: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="from which level on controller and workers log; SHOAL_LOG of their environment goes before"
    )
    reduce: Literal["fast", "exact"] = Field(
        "fast", description="exact: sums in fixed point, so that recoveries leave no trace, to the last bit"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="of the model's initial values")
    patience: float = Field(
        20.0,
        ge=0.1,
        le=86_400.0,
        description="seconds a worker may be silent before it is taken for dead; every timeout derives from it",
    )
    checkpoint: Checkpoint = Checkpoint()
    evaluation: Evaluation = Evaluation()
    stragglers: Literal["name", "replace"] = Field(
        "name", description="what to do about a cell that is slow step after step: only name it, or replace its slowest"
    )
    failures: Failures = Failures()
    audit: Audit = Audit()
    snapshots: Snapshots = Snapshots()
    elastic: Elastic | None = Field(
        None, description="cells may take another shape, with these bounds; left out: they keep theirs"
    )
    autoscale: Autoscale = Field(
        Autoscale(), description="ask the cluster's autoscaler for nodes that the run lacks; false: never"
    )
    not_finite: int = Field(
        10, ge=0, description="steps in a row whose loss or gradient norm may be no number; one more ends the run"
    )
    predict: bool = Field(
        True,
        description="tell what a step should take, where the workload can say, and at the end how right it was",
    )
    inject: list[Injection] = Field([], description="faults on order, for drills")
    mlflow: Mlflow = Mlflow()
    notify: Notify | None = Field(None, description="who is told what happens to the run; left out: nobody")
    workload: dict[str, Any] = Field(description="`path: package.module:Class`, the rest is the workload's own")

    @property
    def place(self) -> str:
        """The address of the run: of its record and its checkpoints."""
        return join(self.storage, str(self.run_id))

    @field_validator("run_id")
    @classmethod
    def _not_mlflows(cls, run_id: str | None) -> str | None:
        if run_id in ("mlartifacts", "mlflow.db"):
            raise ValueError("MLflow's own files have that name in the storage folder; choose another")
        return run_id

    @field_validator("autoscale", mode="before")
    @classmethod
    def _yes_or_no(cls, autoscale: Any) -> Any:
        return {"enabled": autoscale} if isinstance(autoscale, bool) else autoscale

    @field_validator("storage", mode="before")
    @classmethod
    def _an_address(cls, storage: Any) -> Any:
        if isinstance(storage, os.PathLike):
            storage = os.fspath(storage)
        if isinstance(storage, str) and (not storage.strip() or printable(storage) != storage):
            raise ValueError("is empty, or holds characters that cannot be shown")
        try:
            if isinstance(storage, str) and local_folder(storage) is None:
                open_store(storage)
        except UserError as error:
            raise ValueError(f"{error.problem}: {error.remedy}") from error
        return storage

    @field_validator("slot_resource")
    @classmethod
    def _counted_by_workers(cls, resource: str) -> str:
        if resource in ("memory", "object_store_memory"):
            raise ValueError(f"Ray hands out {resource} by itself; name a custom resource, such as slot")
        return resource

    @field_validator("slot_labels")
    @classmethod
    def _a_selector(cls, labels: dict[str, str]) -> dict[str, str]:
        wrong = [f"{name}={wanted}" for name, wanted in labels.items() if not re.fullmatch(SELECTS, wanted) or not name]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is none of Ray's selectors: value, !value, in(a, b), !in(a, b)")
        return labels

    @field_validator("worker_runtime_env")
    @classmethod
    def _of_workers_alone(cls, env: dict[str, Any]) -> dict[str, Any]:
        for name in ("working_dir", "py_modules"):
            given = env.get(name) or []
            for one in [given] if isinstance(given, str) else given:
                if "://" not in str(one):
                    raise ValueError(
                        f"{name}: {one} is a folder of this machine, which Ray uploads for a whole job alone: give it "
                        "to ray.init or `ray job submit`, or name it by a URI"
                    )
        for name in ("pip", "conda", "uv"):
            if isinstance(given := env.get(name), str) and (name != "conda" or given.endswith((".yaml", ".yml"))):
                raise ValueError(
                    f"{name}: {given} is a file, which other nodes may not have: say here what stands in it"
                )
        variables = env.get("env_vars")
        for name, value in variables.items() if isinstance(variables, dict) else ():
            if not isinstance(value, str):
                raise ValueError(f"env_vars.{name}: is {type(value).__name__}, no text: put it in quotes")
        try:
            json.dumps(env, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"holds what the record cannot: {error}") from error
        return env

    @model_validator(mode="after")
    def _can_be_had(self) -> Self:
        if self.slot_needs.get("GPU", 1) != 1:
            raise ValueError("slot_needs: a worker computes on one GPU")
        if "object_store_memory" in self.slot_needs:
            raise ValueError("slot_needs: Ray hands out object_store_memory by itself")
        return self


Model = TypeVar("Model", bound=BaseModel)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: no such file, not YAML, a key said twice, or not a mapping.
    """
    try:
        found = load_yaml(read_text(path), str(path))
    except FileNotFoundError as error:
        raise UserError(f"{path}: cannot be read (there is no such file)", "name an existing job file") from error
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
        if not equals or not all(path.split(".")):
            raise UserError(f"{mask_text(override)!r} is no override", "write key.sub=value")
        value = load_yaml(text, f"the value of {path!r}")
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
        found = model.model_validate(dict(settings))
    except ValidationError as error:
        lines = [explain(model, item["loc"], item["type"], item["msg"], prefix) for item in error.errors()[:10]]
        raise UserError(f"{source}: " + "; ".join(lines), "correct the setting, see `docs/configuration.md`") from error
    for key in infinite(found.model_dump(exclude_unset=True), prefix):
        raise UserError(f"{source}: {key!r}: must be a finite number", "write a number such as 1.0e-3")
    return found


def load_job(path: Path, overrides: Iterable[str]) -> Job:
    """Read and validate a job file with its overrides (the `workload` section excepted)."""
    return parse(Job, merge_overrides(read_yaml(path), overrides), source=str(path))
