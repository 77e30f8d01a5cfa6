"""Ray Train's configs in a job's words. Pure: Ray is not imported, only what its configs hold is read.

Every field has a rule, which says what of the job it becomes, or refuses it by name with the remedy. Nothing is left
out: a field that a later Ray adds is refused until it has a rule (and a test that walks Ray's fields fails).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from shoal_core.errors import UserError

__all__ = ["CHECKPOINT", "FAILURE", "LOGGING", "RUN", "SCALING", "Given", "merged", "settings"]

Settings = dict[str, Any]
"""Settings of a job, sections within each other."""
ANY_NUMBER = -1
"""Ray's word for it."""
LARGEST = 1_000_000_000


@dataclass(frozen=True)
class Given:
    """A field of a config, as its owner gave it. `label`: its full name; `own`: what else is said, in Shoal's words."""

    label: str
    value: Any
    default: Any
    config: Any
    own: Mapping[str, Any]

    def refused(self, why: str, remedy: str) -> UserError:
        return UserError(f"{self.label}={self.value!r}: {why}", remedy)


Rule = Callable[[Given], Settings]


def only(*allowed: Any, why: str, remedy: str) -> Rule:
    """Takes these values, which ask for nothing that is not so anyway; of others says `why` not."""

    def rule(given: Given) -> Settings:
        if given.value not in allowed:
            raise given.refused(why, remedy)
        return {}

    return rule


def unused(remedy: str, why: str = "Shoal has nothing of the kind") -> Rule:
    """Takes the value that Ray has where nothing is said."""

    def rule(given: Given) -> Settings:
        if given.value != given.default:
            raise given.refused(why, remedy)
        return {}

    return rule


def met(given: Given) -> Settings:
    """Takes any value: what it asks for is so, whatever it says (docs/ray-train.md tells why)."""
    return {}


def key(*path: str) -> Rule:
    """What it says is a setting of the job."""

    def rule(given: Given) -> Settings:
        return nested(path, given.value)

    return rule


def times(*path: str) -> Rule:
    """A number of times, -1 for any."""

    def rule(given: Given) -> Settings:
        return nested(path, None if given.value == ANY_NUMBER else given.value)

    return rule


def section(rules: Callable[[], Mapping[str, Rule]]) -> Rule:
    """A config within a config."""

    def rule(given: Given) -> Settings:
        return settings(given.value, rules(), given.own)

    return rule


def nested(path: tuple[str, ...], value: Any) -> Settings:
    for name in reversed(path):
        value = {name: value}
    return dict(value)


# ---- ScalingConfig


def workers(given: Given) -> Settings:
    """Workers become cells. Of (fewest, most) the fewest bound how small the run begins and what shapes it takes."""
    value, per_cell = given.value, given.own.get("workers_per_cell", 1)
    fewest, most = value if isinstance(value, tuple) else (value, value)
    if not most:
        raise given.refused("a run needs a worker", "for one in this process use shoal.testing.alone, or num_workers=1")
    if not isinstance(per_cell, int) or per_cell < 1 or most % per_cell:
        raise given.refused(
            f"cells of {per_cell!r} workers (workers_per_cell) do not make up {most}",
            "give a number of workers that is a multiple of workers_per_cell",
        )
    shape: Settings = {"cells": most // per_cell, "workers_per_cell": per_cell}
    if isinstance(value, tuple):
        shape["elastic"] = {"min_workers": max(1, fewest)}
    return shape


def grown_after(given: Given) -> Settings:
    """How long workers must have been there before the run grows; Ray too looks only if it is elastic."""
    return {"elastic": {"hold_s": given.value}} if isinstance(given.config.num_workers, tuple) else {}


def slot(given: Given) -> Settings:
    """What a worker holds: one unit of one resource."""
    asked = {name: amount for name, amount in (given.value or {}).items() if amount}
    gpu = bool(given.config.use_gpu)
    if gpu:
        asked.setdefault("GPU", 1)
    if not asked:
        asked = {"CPU": 1}
    if list(asked.values()) != [1]:
        raise given.refused(
            "a worker of Shoal's holds one unit of one resource",
            'name it alone: {"GPU": 1} (with use_gpu=True), {"CPU": 1}, or one of your own; give it threads by '
            'shoal_config={"threads": N}',
        )
    return {"slot_resource": next(iter(asked))}


SCALING: Mapping[str, Rule] = {
    "num_workers": workers,
    "elastic_resize_monitor_interval_s": grown_after,
    "use_gpu": met,  # by the rule of the next
    "resources_per_worker": slot,
    "placement_strategy": only(
        "PACK",
        why="Shoal places by itself: a cell on few nodes, copies of one shard apart",
        remedy="leave it out; `shoal plan` shows the places",
    ),
    "label_selector": unused("offer a resource on those nodes alone, and name it in resources_per_worker"),
    "accelerator_type": unused("offer a resource on those nodes alone, and name it in resources_per_worker"),
    "trainer_resources": unused("leave it out: the controller takes none"),
    "use_tpu": unused("train on GPUs or CPUs", "Shoal knows no TPUs"),
    "topology": unused("train on GPUs or CPUs", "Shoal knows no TPUs"),
}


# ---- RunConfig


def kept(given: Given) -> Settings:
    """How many checkpoints stay; with a score the best, and the newest in any case."""
    scored = given.config.checkpoint_score_attribute
    if scored is None:
        return {"checkpoint": {"keep": given.value or "all", "keep_best": 0}}
    newest = 1 if given.value else "all"
    order = given.config.checkpoint_score_order
    best = {"keep_best": given.value or LARGEST, "score": scored, "score_order": order}
    return {"checkpoint": {"keep": newest, **best}}


def called(given: Given) -> Settings:
    """A user's callbacks: no setting comes of them. Others of Ray's hook into a controller that does not run here."""
    for one in given.value or ():
        if "UserCallback" not in {base.__name__ for base in type(one).__mro__}:
            raise given.refused(
                f"{type(one).__name__} belongs to Ray Train's own controller, which does not run here",
                "make it a ray.train.UserCallback",
            )
    return {}


CHECKPOINT: Mapping[str, Rule] = {
    "num_to_keep": kept,
    "checkpoint_score_attribute": met,  # by the rule above, and so is the next
    "checkpoint_score_order": met,
    "checkpoint_frequency": unused('say shoal_config={"checkpoint": {"every": N}}'),
    "checkpoint_at_end": unused("leave it out: the last state is always saved"),
}

FAILURE: Mapping[str, Rule] = {
    "max_failures": times("failures", "most"),
    "max_preemption_failures": times("failures", "preemptions"),
    "fail_fast": unused("say max_failures=0"),
    "controller_failure_limit": only(
        ANY_NUMBER, why="Shoal's controller always comes back; training goes on without it", remedy="leave it out"
    ),
    "relax_collectives_on_preemption": met,
    "preemption_grace_s": met,
}

LOGGING: Mapping[str, Rule] = {
    "log_level": only("INFO", why="this is not handed on", remedy="set SHOAL_LOG in the environment of the job"),
}

RUN: Mapping[str, Rule] = {
    "name": key("run_id"),
    "storage_path": key("storage"),
    "storage_filesystem": unused(
        "say where it is by storage_path alone: a folder that all nodes share, or s3://bucket/runs?endpoint_override=...",
        "every worker opens the storage by its address",
    ),
    "failure_config": section(lambda: FAILURE),
    "checkpoint_config": section(lambda: CHECKPOINT),
    "callbacks": called,
    "worker_runtime_env": only(
        {}, None, why="workers have that of their job", remedy="give it to ray.init or `ray job submit --runtime-env`"
    ),
    "logging_config": section(lambda: LOGGING),
    "sync_config": unused("leave it out"),
    "verbose": unused("leave it out"),
    "stop": unused('say shoal_config={"steps": N}'),
    "progress_reporter": unused("leave it out"),
    "log_to_file": unused("leave it out: logs are Ray's, and the run's ray.log"),
}


def settings(config: Any, rules: Mapping[str, Rule], own: Mapping[str, Any]) -> Settings:
    """What a config of Ray's (a dataclass) becomes.

    Raises:
        UserError: a field asks for what Shoal does not do, or is not known here.
    """
    found: Settings = {}
    for field in fields(config):
        value = getattr(config, field.name)
        given = Given(f"{type(config).__name__}.{field.name}", value, field.default, config, own)
        rule = rules.get(field.name)
        if rule is None:
            raise given.refused("this version of Shoal does not know it", "use ray 2.60, or a newer Shoal")
        found = merged(found, rule(given), f"{type(config).__name__} says it twice")
    return found


def merged(one: Mapping[str, Any], other: Mapping[str, Any], clash: str, prefix: str = "") -> Settings:
    """Both together. `clash`: what is said where both have a setting; a section is none.

    Raises:
        UserError: they do.
    """
    both = dict(one)
    for name, value in other.items():
        mine = both.get(name)
        if name not in both:
            both[name] = value
        elif isinstance(mine, Mapping) and isinstance(value, Mapping):
            both[name] = merged(mine, value, clash, f"{prefix}{name}.")
        else:
            raise UserError(f"{prefix}{name}: {clash}", "say it once")
    return both
