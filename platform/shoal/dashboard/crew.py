"""Who is there, on which node and in which seat, as a journal tells it line by line. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from shoal.names import node_of
from shoal.record.generations import Membership, membership
from shoal_core.mesh import Mesh

__all__ = ["MOST_GONE", "Crew", "Member"]

MOST_GONE = 64
"""Workers that are still shown after they went."""
_SEAT = re.compile(r"/stage(\d+)/shard\d+@")


@dataclass(frozen=True)
class Member:
    """A worker. `cell, rank, stage, shard`: its seat, or the one that it had; None for a spare. `state`: `trains`,
    `spare` or `gone`, and then `since` when and `how`."""

    actor: str
    node: str
    pid: int | None = None
    cell: str | None = None
    rank: int | None = None
    stage: int | None = None
    shard: int | None = None
    state: str = "spare"
    since: float | None = None
    how: str | None = None


class Crew:
    """The workers of a run and its nodes."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        """Nobody is there yet."""
        self.generation: int | None = None
        self.gone_in_all = 0
        self._here: dict[str, Member] = {}
        self._gone: dict[str, Member] = {}
        self._nodes: dict[str, str] = {}
        """Nodes of which there is something to say: `lost`, `draining` or `aside`."""
        self._membership: Membership | None = None
        self._mesh: Mesh | None = None

    def take(self, event: Mapping[str, Any]) -> None:
        """Follow one line of the journal.

        Raises:
            ValueError: see `shoal.record.generations.membership`.
        """
        match event["kind"]:
            case "run_started":
                self._begin()  # another session starts its workers anew
            case "worker_ready":
                self._ready(event)
            case "generation":
                self._sit(membership(self._membership, event))
            case "death":
                self._die(event)
            case "node_lost":
                self._nodes[str(event["node"])] = "lost"
            case "node_draining":
                self._nodes[str(event["node"])] = "draining"
            case "node_aside":
                self._nodes[str(event["node"])] = "aside"

    def picture(self) -> dict[str, Any]:
        """As the page shows it: `workers`, those who went last; `nodes`; how many `gone` there were in all."""
        here = sorted(self._here.values(), key=_by_seat)
        nodes = {member.node: "here" for member in here} | {member.node: "gone" for member in self._gone.values()}
        nodes |= {member.node: "here" for member in here} | self._nodes
        return {
            "generation": self.generation,
            "workers": [asdict(member) for member in (*here, *self._gone.values())],
            "nodes": dict(sorted(nodes.items(), key=lambda item: _natural(item[0]))),
            "gone": self.gone_in_all,
        }

    @property
    def counts(self) -> dict[str, int]:
        """How many there are of each kind."""
        seats = sum(member.state == "trains" for member in self._here.values())
        cells = {member.cell for member in self._here.values() if member.cell is not None}
        return {"training": seats, "spares": len(self._here) - seats, "cells": len(cells), "gone": self.gone_in_all}

    def _ready(self, event: Mapping[str, Any]) -> None:
        actor, node = str(event["actor"]), str(event.get("node") or node_of(str(event["actor"])))
        if self._nodes.get(node) == "lost":
            del self._nodes[node]
        replaced = next((name for name, member in self._gone.items() if member.node == node), None)
        if replaced is not None:  # somebody is in its place
            del self._gone[replaced]
        self._here[actor] = Member(actor, node, event.get("pid"))

    def _sit(self, now: Membership) -> None:
        self._membership, self.generation = now, now.generation
        seats = {actor: (str(cell), rank) for cell, crew in now.cells.items() for rank, actor in enumerate(crew)}
        mesh = self._shape(now)
        for actor in {**self._here, **seats}:
            member = self._here.get(actor) or Member(actor, node_of(actor))
            if actor in seats:
                cell, rank = seats[actor]
                stage, shard = (None, rank) if mesh is None else mesh.coords(rank)
                member = replace(member, cell=cell, rank=rank, stage=stage, shard=shard, state="trains")
            else:
                member = replace(member, cell=None, rank=None, stage=None, shard=None, state="spare")
            self._here[actor] = member
            self._gone.pop(actor, None)

    def _shape(self, now: Membership) -> Mesh | None:
        """The axes of a cell: told of shapes that came later, read off the names of the first seats otherwise."""
        if now.shape:
            return Mesh(*(int(now.shape.get(axis, 1)) for axis in ("pp", "fsdp", "ep")))
        if self._mesh is None:
            crew: Any = max(now.cells.values(), key=len, default=())
            stages = {int(found[1]) for actor in crew if (found := _SEAT.search(actor))}
            pp = max(stages, default=0) + 1
            self._mesh = Mesh(pp, max(1, len(crew) // pp)) if crew else None
        return self._mesh

    def _die(self, event: Mapping[str, Any]) -> None:
        actor = str(event["actor"])
        member = self._here.pop(actor, None) or Member(actor, str(event.get("node") or node_of(actor)))
        self._gone[actor] = replace(member, state="gone", since=event["time"], how=event.get("how"))
        self.gone_in_all += 1
        while len(self._gone) > MOST_GONE:
            del self._gone[next(iter(self._gone))]


def _by_seat(member: Member) -> tuple[Any, ...]:
    if member.cell is None:
        return (1, (), 0, _natural(member.node), member.actor)
    return (0, _natural(member.cell), member.rank, (), member.actor)


def _natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sorts `node10` after `node9`."""
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", name) if part)
