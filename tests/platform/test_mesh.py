"""Who is who in a cell: one arithmetic for the planner, the engines and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_core.errors import UserError
from shoal_core.mesh import Mesh

SMALL = st.integers(1, 4)


@given(SMALL, SMALL, SMALL)
def test_every_rank_is_in_one_stage_one_chain_and_one_expert_group(pp: int, fsdp: int, ep: int) -> None:
    mesh = Mesh(pp, fsdp, ep)
    ranks = list(range(mesh.workers))
    for rank in ranks:
        stage, shard = mesh.coords(rank)
        assert mesh.chain(rank)[stage] == rank
        assert mesh.stage(rank)[shard] == rank
        assert mesh.group(rank)[rank % ep] == rank
        assert set(mesh.group(rank)) <= set(mesh.stage(rank))
    assert [rank for group in mesh.groups() for rank in group] == ranks
    assert mesh.holders(range(pp)) == ranks
    assert [len(mesh.chain(rank)) for rank in ranks] == [pp] * len(ranks)


def test_groups_of_some_stages_are_rows_whose_columns_hold_the_same_experts() -> None:
    mesh = Mesh(pp=3, fsdp=2, ep=2)
    assert [list(group) for group in mesh.groups([2, 0])] == [[8, 9], [10, 11], [0, 1], [2, 3]]
    assert mesh.holders([2, 0]) == [8, 9, 10, 11, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("sizes", "workers", "said", "remedy"),
    [
        ({"pp": 4}, 6, "pp: 4 pipeline ranks do not divide the 6 workers", "pp 3 or 6, or cells of 4 or 8 workers"),
        (
            {"pp": 2, "ep": 3},
            8,
            "ep: 3 does not divide the 4 workers a stage",
            "ep 2 or 4, or cells of 6 or 12 workers",
        ),
        ({"ep": 3}, 8, "ep: 3 does not divide the 8 workers of a cell", "ep 2 or 4, or cells of 6 or 9 workers"),
        ({"pp": 0}, 8, "pp: 0 pipeline ranks", "pp 1"),
        ({"ep": 0}, 8, "ep: 0 does not divide", "ep 1"),
        ({"fsdp": 3, "ep": 2}, 8, "fsdp: pp 1 x fsdp 3 x ep 2 are not the 8 workers", "fsdp 4, or cells of 6"),
    ],
)
def test_axes_that_do_not_make_up_a_cell_are_refused(
    sizes: dict[str, int], workers: int, said: str, remedy: str
) -> None:
    with pytest.raises(UserError) as error:
        Mesh.of(sizes, workers)
    assert said in error.value.problem
    assert remedy in error.value.remedy
