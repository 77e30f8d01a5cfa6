"""What pydantic finds wrong with settings, in words that name the key and what it may be. Pure."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel

__all__ = ["explain", "infinite"]

BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def infinite(value: Any, key: str) -> Iterator[str]:
    """Keys of the numbers that are not finite, at any depth."""
    if isinstance(value, float) and not math.isfinite(value):
        yield key.rstrip(".")
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from infinite(item, f"{key}{name}.")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from infinite(item, f"{key}{index}.")


def explain(model: type[BaseModel], where: tuple[int | str, ...], kind: str, message: str, prefix: str) -> str:
    """One field's error in words."""
    key = prefix + ".".join(str(part) for part in where if re.fullmatch(r"\w+", str(part)))  # not a union's branch
    if kind == "extra_forbidden":
        known = fields_at(model, where[:-1])
        near = difflib.get_close_matches(str(where[-1]), known, n=1, cutoff=0.0)
        stem = key.rpartition(".")[0]
        nearest = f"{stem}.{near[0]}" if stem and near else (near[0] if near else "")
        return f"unknown key {key!r}" + (f", did you mean {nearest!r}?" if nearest else "")
    if kind == "missing":
        return f"{key!r} is missing"
    why = message.removeprefix("Value error, ")
    if not where:  # of several fields together: it names them itself
        return f"{prefix}{why}" if why.partition(":")[0].partition(".")[0] in model.model_fields else why
    return f"{key!r}: {why}{allowed(model, where)}"


def allowed(model: type[BaseModel], where: tuple[int | str, ...]) -> str:
    """The range of a number's field in words; empty for other fields."""
    limits: list[str] = []
    for part in names(where):
        field = model.model_fields.get(part)
        if field is None:
            break
        limits = [
            f"{words} {getattr(limit, name):,}"
            for limit in field.metadata
            for name, words in BOUNDS.items()
            if isinstance(getattr(limit, name, None), int | float)
        ]
        model = section_of(field.annotation) or model
    return f" (allowed: {', '.join(limits)})" if limits else ""


def fields_at(model: type[BaseModel], where: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the section that `where` leads to."""
    for part in names(where):
        field = model.model_fields.get(part)
        inner = None if field is None else section_of(field.annotation)
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def names(where: tuple[int | str, ...]) -> list[str]:
    """The keys of a path, without places in lists."""
    return [part for part in where if isinstance(part, str)]


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, or may hold, or holds a list of; None if it is a value."""
    kinds = (annotation, *get_args(annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
