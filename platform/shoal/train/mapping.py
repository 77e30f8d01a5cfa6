"""Ray Train's configs in a job's words. Pure: Ray is not imported, only what its configs hold is read.

Every field has a rule, which says what of the job it becomes, or refuses it by name with the remedy. Nothing is left
out: a field that a later Ray adds is refused until it has a rule (and a test that walks Ray's fields fails).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any
from urllib.parse import urlencode

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
    """What a worker takes: one unit of a resource, which names the slot, and others beside. It computes with as many
    threads as it takes CPUs, as Ray's workers do."""
    asked = {name: amount for name, amount in (given.value or {}).items() if amount}
    if given.config.use_gpu:
        asked.setdefault("GPU", 1)
    cpus = asked.get("CPU", 0)
    if not asked:
        asked = {"CPU": 1}
    if asked.get("GPU", 1) != 1:
        raise given.refused("a worker computes on one GPU", 'say {"GPU": 1} and more workers')
    own = [name for name in asked if name not in ("CPU", "memory")]
    name = "GPU" if "GPU" in asked else own[0] if own else "CPU"
    if "CPU" not in asked and name == "CPU":
        raise given.refused("a worker takes memory and nothing else", 'name the CPU too: {"CPU": 1, "memory": ...}')
    needs = {other: float(amount) for other, amount in asked.items() if (other, amount) != (name, 1)}
    if (accelerator := given.config.accelerator_type) is not None:
        needs[f"accelerator_type:{accelerator}"] = 0.001  # Ray's own way: each such node offers one
    threads = {"threads": int(cpus)} if cpus > 1 and "threads" not in given.own else {}
    return {"slot_resource": name, "slot_needs": needs, **threads}


def picked(given: Given) -> Settings:
    """Labels of the nodes that count, the same for all workers."""
    each = given.value if isinstance(given.value, list) else [given.value]
    if any(one != each[0] for one in each):
        raise given.refused("the workers of a run are alike: any may take another's place", "give one selector for all")
    return {"slot_labels": dict(each[0])} if each[0] else {}


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
    "label_selector": picked,
    "accelerator_type": met,  # by the rule of resources_per_worker
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

LEVELS = {"DEBUG": "debug", "INFO": "info", "WARNING": "warning", "WARN": "warning", "ERROR": "error"}


def logs_from(given: Given) -> Settings:
    """From which level on controller and workers log."""
    if given.value not in LEVELS:
        raise given.refused("Shoal's log has no such level", f"say one of {', '.join(LEVELS)}")
    return {"log": LEVELS[given.value]}


LOGGING: Mapping[str, Rule] = {"log_level": logs_from}


def environment(given: Given) -> Settings:
    """The runtime environment of the workers."""
    return {"worker_runtime_env": dict(given.value)} if given.value else {}


def stored(given: Given) -> Settings:
    """Where runs lie. A filesystem beside it becomes the address that every worker opens."""
    files = given.config.storage_filesystem
    if files is None:
        return {"storage": given.value}
    return {"storage": address(given, files, str(given.value))}


def address(given: Given, files: Any, path: str) -> str:
    """The address of what lies at `path` of a pyarrow filesystem.

    Raises:
        UserError: no address says it.
    """
    refused = Given("RunConfig.storage_filesystem", files, None, given.config, given.own).refused
    remedy = "say where it is by storage_path alone: a folder that all nodes share, or s3://bucket/runs?endpoint_override=..."
    if "://" in path:
        raise refused(f"storage_path={path!r} is an address of its own", "leave the filesystem out")
    kind = getattr(files, "type_name", type(files).__name__)
    if kind == "subtree":
        return address(given, files.base_fs, f"{files.base_path.rstrip('/')}/{path.strip('/')}")
    if kind == "local":
        if not path.startswith("/"):
            raise refused(f"{path} is no path from the root", "begin it with /")
        return path
    if kind != "s3":
        raise refused(
            f"every worker opens the storage by its address, and of a {kind} filesystem none is known", remedy
        )
    (options,) = files.__reduce__()[1]
    said = {name: options[name] for name in ("endpoint_override", "region", "scheme") if options.get(name)}
    if not options.get("endpoint_override"):
        said.pop("scheme", None)
    if any(options.get(name) for name in ("access_key", "session_token", "role_arn", "anonymous", "tls_ca_file_path")):
        raise refused(
            "it was given credentials or another way in, which an address does not hold",
            "leave them to the environment (AWS_ACCESS_KEY_ID, AWS_PROFILE, a role), and " + remedy,
        )
    return f"s3://{path.strip('/')}" + (f"?{urlencode(said)}" if said else "")


RUN: Mapping[str, Rule] = {
    "name": key("run_id"),
    "storage_path": stored,
    "storage_filesystem": met,  # by the rule above
    "failure_config": section(lambda: FAILURE),
    "checkpoint_config": section(lambda: CHECKPOINT),
    "callbacks": called,
    "worker_runtime_env": environment,
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
    if not is_dataclass(config):
        raise UserError(f"{config!r:.200} is no config of Ray's", "make ray.train.ScalingConfig(...), RunConfig(...)")
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
