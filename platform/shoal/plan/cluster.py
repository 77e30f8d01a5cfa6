"""The cluster as the planner sees it: nodes, their slots and the failure domains they stand in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["LEVELS", "NOWHERE", "Level", "Node", "Site", "Slots"]

LEVELS = ("node", "rack", "zone")
"""Failure domains, the smallest first."""
Level = str
Slots = Mapping[str, int]
"""Free slots of each node, by node name."""


@dataclass(frozen=True)
class Site:
    """Where a node stands. Nodes without a label (the empty name) count as one rack of their zone, or as one zone: it
    is not known that they are apart."""

    rack: str = ""
    zone: str = ""

    def domain(self, level: Level, node: str) -> tuple[str, ...]:
        """The name of `node`'s domain at a level; racks of different zones are different racks."""
        if level == "node":
            return (node,)
        return (self.zone, self.rack) if level == "rack" else (self.zone,)


NOWHERE = Site()


@dataclass(frozen=True)
class Node:
    """A living Ray node, as the planner sees it. `slots`: those that the run at hand may take."""

    name: str
    ray_id: str
    slots: int
    draining: bool = False
    site: Site = NOWHERE
    memory: float = 0.0
    """Bytes that Ray says it has for its workers; 0 if it says none."""
