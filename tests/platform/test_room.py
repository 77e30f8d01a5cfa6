"""Room for a second run: idle spares are asked for, who holds the slots is named, and nodes are waited for."""

from __future__ import annotations

import pytest

from shoal.decisions.asking import Standing
from shoal.on_ray import room
from shoal.on_ray.slots import Slot
from shoal.plan import Mesh, Node, Wanted
from shoal.sections import Autoscale
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
    found = room.planned(Slot("slot"), Wanted(Mesh(ep=1), cells, 0), "c")
    assert len(found.cells) == fit
    assert f"run a gave up {min(cells, spares)} idle spare" in found.notes[-1]
    assert cluster.asked[0] == ("a", cells, "c")


def test_nobody_is_asked_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, 2)
    cluster.free["n1"] = 1
    room.planned(Slot("slot"), Wanted(Mesh(ep=1), 1, 0), "c")
    assert cluster.asked == []


def test_who_holds_the_slots_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, 0)
    with pytest.raises(UserError, match="taken are 3 by run a, 1 by run b") as refused:
        room.planned(Slot("slot"), Wanted(Mesh(ep=1), 1, 0), "c")
    assert "wait for their end" in refused.value.remedy
    assert [other for other, _, _ in cluster.asked] == ["a", "b"]


def test_an_empty_cluster_is_refused_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    Cluster(monkeypatch, 0)
    monkeypatch.setattr(room, "all_workers", list)
    with pytest.raises(UserError, match="no node has any") as refused:
        room.planned(Slot("slot"), Wanted(Mesh(ep=1), 1, 0), "c")
    assert "run" not in refused.value.problem


def test_a_controller_that_does_not_answer_gives_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "find_actor", lambda _: None)
    assert room.ask("a", 1, "c") == 0


class Cloud:
    """An autoscaler whose nodes come at the third look, unless it is `mute`; each takes what was asked for of it until
    that is given back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, there: bool = True, mute: bool = False) -> None:
        self.is_there, self.mute, self.looks = there, mute, 0
        self.free: dict[str, int] = {}
        self.asked: list[tuple[int, ...]] = []
        self.now = 0.0
        monkeypatch.setattr(room, "view", lambda _: [Node(name, name, slots) for name, slots in self.free.items()])
        monkeypatch.setattr(room, "all_workers", list)
        monkeypatch.setattr(room, "RayAutoscaler", lambda run_id, slot: self)
        monkeypatch.setattr(room, "time", self)

    def there(self) -> bool:
        return self.is_there

    def ask(self, pieces: tuple[int, ...]) -> None:
        self.asked.append(tuple(pieces))
        if not pieces and self.looks >= 3 and not self.mute:
            self.free["n1"] = 2

    def standing(self) -> Standing:
        self.looks += 1
        return Standing((1, 1), (("n1", 1), ("n1", 1))) if self.looks >= 3 and not self.mute else Standing((1,) * 4)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


TWO_OF_TWO = Wanted(Mesh(ep=2), 2, 0)


def test_a_job_waits_for_the_nodes_of_its_first_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    cloud, said = Cloud(monkeypatch), list[str]()
    found = room.planned_in_time(Slot("slot"), TWO_OF_TWO, "c", Autoscale(), said.append)
    assert found.cells == (0,)
    assert cloud.asked == [(1, 1, 1, 1), ()]
    assert "asking the cluster's autoscaler for 4 slots" in said[0]


def test_a_job_is_refused_where_no_node_comes_in_time_or_nobody_is_to_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for cloud, autoscale, asked in (
        (Cloud(monkeypatch, there=False), Autoscale(), []),
        (Cloud(monkeypatch), Autoscale(enabled=False), []),
        (Cloud(monkeypatch, mute=True), Autoscale(wait_s=60.0, spares=1), [(1, 1, 1, 1, 1), ()]),
    ):
        monkeypatch.setattr(room, "RayAutoscaler", lambda *_, cloud=cloud: cloud)
        monkeypatch.setattr(room, "time", cloud)
        with pytest.raises(UserError, match="needs 2 slots, the cluster has 0 free"):
            room.planned_in_time(Slot("slot"), TWO_OF_TWO, "c", autoscale, print)
        assert cloud.asked == asked
    assert cloud.now >= 60.0
