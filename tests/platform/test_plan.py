"""Placement: cells inside nodes, copies apart, spares on what is left."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.plan import Seat, Site, first_plan, spare_slots
from shoal_core.errors import UserError


def nodes_of(seats: dict[Seat, str], cell: int) -> set[str]:
    return {node for seat, node in seats.items() if seat.cell == cell}


def test_cells_sit_inside_nodes_and_apart() -> None:
    seats = first_plan({"n1": 2, "n2": 2, "n3": 2, "n4": 2}, cells=2, workers=2)
    assert nodes_of(seats, 0) == {"n1"}
    assert nodes_of(seats, 1) == {"n2"}
    assert spare_slots({"n1": 2, "n2": 2, "n3": 2, "n4": 2}, seats.values(), None) == ["n3", "n4", "n3", "n4"]


def test_large_holes_stay_whole() -> None:
    assert nodes_of(first_plan({"big": 4, "fits": 2}, cells=1, workers=2), 0) == {"fits"}


def test_a_cell_too_large_for_a_node_spans_the_fewest() -> None:
    assert nodes_of(first_plan({"a": 1, "b": 3, "c": 1, "d": 2}, cells=1, workers=5), 0) == {"b", "d"}


def test_cells_share_a_node_only_when_they_must() -> None:
    seats = first_plan({"n1": 4}, cells=2, workers=2)
    assert len(seats) == 4


def test_fewer_cells_start_when_not_all_fit() -> None:
    assert {seat.cell for seat in first_plan({"n1": 2, "n2": 1}, cells=3, workers=2)} == {0}


def test_too_few_slots_for_one_cell_are_refused() -> None:
    with pytest.raises(UserError, match="needs 4 slots, the cluster has 3 free") as error:
        first_plan({"n1": 2, "n2": 1}, cells=1, workers=4)
    assert "shoal cluster add-node" in error.value.remedy


@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 8), max_size=8), st.integers(1, 4), st.integers(1, 6)
)
def test_no_slot_is_taken_twice(slots: dict[str, int], cells: int, workers: int) -> None:
    if sum(slots.values()) < workers:
        return
    seats = first_plan(slots, cells, workers)
    filled = len({seat.cell for seat in seats})
    assert filled == min(cells, sum(slots.values()) // workers)
    assert len(seats) == filled * workers
    spares = spare_slots(slots, seats.values(), None)
    taken = [*seats.values(), *spares]
    assert {name: taken.count(name) for name in slots} == slots


def test_spares_are_counted() -> None:
    assert spare_slots({"a": 3, "b": 1}, ["a"], 2) == ["a", "b"]


def test_new_spares_go_where_those_that_are_there_leave_a_gap() -> None:
    slots, zone = {"a": 3, "b": 3, "c": 3}, {"a": Site("", "x"), "b": Site("", "y"), "c": Site("", "y")}
    seats = ["a", "b", "c"]
    assert spare_slots(slots, seats, 2, site=zone.__getitem__) == ["a", "b"]
    assert spare_slots(slots, seats, 2, ["a"], zone.__getitem__) == ["b"]
    assert spare_slots(slots, seats, 4, ["b", "a"], zone.__getitem__) == ["a", "c"]
    assert spare_slots(slots, seats, 2, ["c"], zone.__getitem__) == ["a"]
    assert spare_slots(slots, seats, 1, ["c"], zone.__getitem__) == []
    assert spare_slots(slots, seats, None, ["a", "a", "b", "b", "c", "c"], zone.__getitem__) == []
