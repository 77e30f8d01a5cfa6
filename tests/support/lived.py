"""Whether a run may have lost steps: what its journal says of who held what. A pure function."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["undue"]

Holding = dict[str, tuple[int, int]]
"""Rank, and ranks of the shape, by worker."""


@dataclass
class Followed:
    """`holds`: whoever surely has a shard of the state at the newest committed step; `joins`: members of the newest
    generation, which have one as soon as a step is committed past `at`. `new`: its shape is another than theirs."""

    holds: Holding = field(default_factory=dict)
    joins: Holding = field(default_factory=dict)
    at: int = 0
    new: bool = False

    def committed(self, steps: int) -> None:
        if steps > self.at:
            self.holds, self.at, self.new = dict(self.joins), steps, False

    def lives(self) -> bool:
        """Whether a copy of each range surely lives. In a new shape both count until a step is committed: some may have
        let go of the former shards, others not joined yet."""
        return complete(self.holds) and (not self.new or complete(self.joins))


def undue(events: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of a journal, the times that committed steps were taken back though a copy of each range lived."""
    now, found, reshapes = Followed(), list[Mapping[str, Any]](), False
    for event in events:
        match event["kind"]:
            case "generation":
                now.committed(event["step"])
                crews = event["cells"].values()
                now.joins = {worker: (rank, len(crew)) for crew in crews for rank, worker in enumerate(crew)}
                now.new, reshapes = reshapes, False
            case "death":
                now.committed(event["step"])
                now.holds.pop(event["actor"], None)
                now.joins.pop(event["actor"], None)
            case "decision":
                reshapes = event["rung"] == "reshape"
            case "rewound":
                now.committed(event["to"] + event["lost"])
                if event["lost"] and now.lives():
                    found.append(event)
                now = Followed(at=event["to"])
    return found


def complete(holding: Holding) -> bool:
    """Whether all ranks of one shape are there."""
    shapes = {size for _, size in holding.values()}
    return any({rank for rank, of in holding.values() if of == size} == set(range(size)) for size in shapes)
