"""Room for a second run: idle spares are asked for, and who holds the slots is named."""

from __future__ import annotations

import pytest

from shoal.on_ray import room
from shoal.plan import Mesh, Node, Wanted
from shoal_core.errors import UserError

TAKEN = ["a/cell0/stage0/shard0@n1", "a/spare1@n1", "a/spare2@n2", "b/cell0/stage0/shard0@n2"]


class Cluster:
    """Two nodes of two slots, all taken; run `a` gives up as many spares as it has."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, spares: int) -> None:
        self.free, self.spares = {"n1": 0, "n2": 0}, spares
        self.asked: list[tuple[str, int, str]] = []
        monkeypatch.setattr(room, "view", lambda _: [Node(name, name, slots) for name, slots in self.free.items()])
        monkeypatch.setattr(room, "all_workers", lambda: TAKEN)
        monkeypatch.setattr(room, "ask", self.ask)

    def ask(self, other: str, count: int, run_id: str) -> int:
        self.asked.append((other, count, run_id))
        given = min(count, self.spares) if other == "a" else 0
        for node in list(self.free)[:given]:
            self.free[node] += 1
        return given


@pytest.mark.parametrize(("cells", "spares", "fit"), [(1, 2, 1), (2, 2, 2), (2, 1, 1)])
def test_other_runs_make_room(monkeypatch: pytest.MonkeyPatch, cells: int, spares: int, fit: int) -> None:
    cluster = Cluster(monkeypatch, spares)
    found = room.planned("slot", Wanted(Mesh(ep=1), cells, 0), "c")
    assert len(found.cells) == fit
    assert f"run a gave up {min(cells, spares)} idle spare" in found.notes[-1]
    assert cluster.asked[0] == ("a", cells, "c")


def test_nobody_is_asked_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, 2)
    cluster.free["n1"] = 1
    room.planned("slot", Wanted(Mesh(ep=1), 1, 0), "c")
    assert cluster.asked == []


def test_who_holds_the_slots_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, 0)
    with pytest.raises(UserError, match="taken are 3 by run a, 1 by run b") as refused:
        room.planned("slot", Wanted(Mesh(ep=1), 1, 0), "c")
    assert "wait for their end" in refused.value.remedy
    assert [other for other, _, _ in cluster.asked] == ["a", "b"]


def test_an_empty_cluster_is_refused_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    Cluster(monkeypatch, 0)
    monkeypatch.setattr(room, "all_workers", list)
    with pytest.raises(UserError, match="no node has any") as refused:
        room.planned("slot", Wanted(Mesh(ep=1), 1, 0), "c")
    assert "run" not in refused.value.problem


def test_a_controller_that_does_not_answer_gives_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "find_actor", lambda _: None)
    assert room.ask("a", 1, "c") == 0
