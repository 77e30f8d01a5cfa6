"""A workload out of a job's `workload` section: its class imported, and held against what is asked of one."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import new_class
from typing import Any, cast

from pydantic import BaseModel

from shoal_core.errors import UserError
from shoal_core.workload import ORIGIN, ReplicaShard, Workload

__all__ = ["build_shard", "imported", "importing", "load_workload", "make_workload", "own_settings", "predicts"]

WORKLOAD_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*(:[A-Za-z_]\w*)?")
_imported: ContextVar[str | None] = ContextVar("imported", default=None)


@contextmanager
def importing(module: str) -> Iterator[None]:
    """While this lasts, the module or script of a workload is imported (`imported`)."""
    before = _imported.set(module)
    try:
        yield
    finally:
        _imported.reset(before)


def imported() -> str | None:
    """What is imported for its workload just now, as workers and checks do; None: nothing. Who starts runs asks."""
    return _imported.get()


def predicts(workload: Workload) -> bool:
    """Whether it says beforehand what a step takes."""
    return type(workload).predicted is not Workload.predicted


def own_settings(section: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a `workload` section that is the workload's own."""
    return {key: value for key, value in section.items() if key not in ("path", ORIGIN)}


def make_workload(section: Mapping[str, Any]) -> Workload:
    """The workload of a job's `workload` section that was checked before."""
    kind = load_workload(section["path"])
    workload = kind(kind.Config.model_validate(own_settings(section)))
    origin = section.get(ORIGIN) or {}
    if origin.get("samples"):
        workload.go_on(origin["steps"], origin["samples"])
    return workload


def load_workload(path: object) -> type[Workload]:
    """The class at `package.module:Class`, with what it left out. It need not be a subclass of `Workload`, as long as
    it has what is asked of one.

    Raises:
        UserError: not such a path, no such module or class, or a class that is no workload.
    """
    remedy = "name an importable class as package.module:Class"
    if not isinstance(path, str) or not WORKLOAD_PATH.fullmatch(path):
        raise UserError(f"workload.path: {str(path)[:200]!r} names no class", remedy)
    module, _, name = path.partition(":")
    try:
        with importing(module):
            found = getattr(importlib.import_module(module), name or "Workload")
    except UserError:  # it does what no import may
        raise
    except Exception as error:  # whatever a module raises while it is loaded
        raise UserError(
            f"workload.path: {path!r} cannot be loaded ({type(error).__name__}: {error})",
            f"{remedy}; a module in a folder of your own is found with PYTHONPATH=FOLDER"
            if isinstance(error, ModuleNotFoundError)
            else remedy,
        ) from error
    config = getattr(found, "Config", None)
    if not (isinstance(found, type) and isinstance(config, type) and issubclass(config, BaseModel)):
        raise UserError(f"workload.path: {path!r} is no workload: it has no pydantic model `Config`", remedy)
    missing = lacking(found, {*Workload.__abstractmethods__, *getattr(found, "__abstractmethods__", ())})
    if missing:
        raise UserError(
            f"workload.path: {path!r} is no workload: it lacks {missing}",
            getattr(found, "if_lacking", Workload.if_lacking),
        )
    if issubclass(found, Workload):
        return found
    return cast("type[Workload]", new_class(found.__name__, (found, Workload)))


def build_shard(workload: Workload, seed: int, *, state_follows: bool = False) -> ReplicaShard:
    """What `workload.build` returns, or `build_to_fill` where its state follows, held against what is asked of a shard.

    Raises:
        UserError: it lacks some of it.
    """
    shard = workload.build_to_fill(seed) if state_follows else workload.build(seed)
    missing = lacking(shard, [name for name in vars(ReplicaShard) if not name.startswith("_")])
    if missing:
        raise UserError(
            f"workload: what {type(workload).__name__}.build returns lacks {missing}",
            "make it a subclass of shoal_core.workload.ReplicaShard",
        )
    return shard


def lacking(candidate: object, names: Iterable[str]) -> str:
    """Those of the `names` that a class or an object does not have, or only as what is still to be written."""
    found = {name: getattr(candidate, name, None) for name in names}
    return ", ".join(sorted(n for n, it in found.items() if it is None or getattr(it, "__isabstractmethod__", False)))
