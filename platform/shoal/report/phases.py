"""What a recovery, or a change of shape, spent its time on. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["lasted", "phases_of"]


def phases_of(event: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of those that took place, one after the other: what shards took to be filled is part of forming cells."""
    known = {name: float(took) for name, took in (event.get("phases") or {}).items() if took is not None}
    if event["kind"] == "reshaped" and "form" in known:
        known["form"] -= known.get("fill", 0.0)
    return known


def lasted(event: Mapping[str, Any]) -> float:
    """Seconds from its beginning until it is told."""
    if event["kind"] == "reshaped":
        notice = (event.get("phases") or {}).get("notice") or 0.0
        return float((event.get("seconds") or 0.0) + notice)
    return float(event.get("full_strength") or event.get("next_commit") or 0.0)
