"""The choice of another shape, held against every shape and every placement on small clusters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import permutations
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal import batching
from shoal.plan import Mesh, Seat, Site
from shoal.plan.reshape import (
    Bounds,
    Choice,
    Costs,
    Limits,
    Load,
    Present,
    Stay,
    Survivor,
    bounds_of,
    check_limits,
    choose,
    remark,
    speed,
)
from shoal.plan.reshape.overlap import overlaps
from shoal.plan.reshape.place import place
from shoal.plan.words import crowding
from shoal.saving.interval import PRIOR
from shoal_core.errors import UserError
from shoal_core.workload import Workload

GB = 1e9
COSTS = Costs(state_bytes=4 * GB)
NOWHERE = Site()


def cluster(ranks: list[int | None], slots: int = 1, age: float = inf) -> dict[str, Survivor]:
    """Workers that hold these shards, `slots` a node."""
    return {f"w{i}": Survivor(f"n{i // slots}", rank, age) for i, rank in enumerate(ranks)}


def flat(*sizes: int) -> tuple[Mesh, ...]:
    return tuple(Mesh(fsdp=size) for size in sizes)


# ---- what it says


def test_seven_of_eight_workers_are_put_to_work() -> None:
    living = cluster([0, 1, 2, 3, None, None, None])  # one of two cells of 4 lost a worker a while ago
    bounds = Bounds(flat(4, 3), Limits(cells=(2, 64)))
    found = choose(living, Present(Mesh(fsdp=4), 1), bounds, COSTS, Load(24, 1))
    assert isinstance(found, Choice)
    assert (found.mesh, len(found.crews), found.idle) == (Mesh(fsdp=3), 2, (3, 1))
    assert found.gain == pytest.approx(0.5)
    assert found.why == "6 of 7 workers: 2 cells of 3 beat 1 of 4: +50%, 2.3 s, 4.7 GB"
    assert found.bytes == pytest.approx(4.67 * GB, rel=0.01)


def test_where_all_train_nothing_changes() -> None:
    living = cluster([0, 1, 0, 1])
    found = choose(living, Present(Mesh(fsdp=2), 2), Bounds(flat(2, 1, 4)), COSTS, Load(8, 1))
    assert found == Stay("4 of 4 workers train, and no other shape that is allowed does more")


def test_a_shape_that_takes_too_long_to_get_to_is_named_and_left() -> None:
    living = cluster([0, 1, 2, 3, None, None, None])
    costs = Costs(state_bytes=4 * GB, bandwidth=GB / 10_000)
    found = choose(living, Present(Mesh(fsdp=4), 1), Bounds(flat(4, 3), Limits(cells=(2, 64))), costs, Load(24, 1))
    assert isinstance(found, Stay)
    assert "2 cells of 3 beat 1 of 4: +50%, 13334.3 s, 4.7 GB: not worth it within 3600 s" in found.why


def test_exact_mode_names_the_shape_that_it_refuses() -> None:
    living = cluster([0, 1, 2, 3, None, None, None])
    bounds = Bounds(flat(4), Limits(cells=(2, 64)), {Mesh(fsdp=3): "reduce: exact promises its bits"})
    found = choose(living, Present(Mesh(fsdp=4), 1), bounds, COSTS, Load(24, 1))
    assert isinstance(found, Stay)
    assert found.why.endswith("(2 cells of 3 would, but reduce: exact promises its bits)")


def test_without_a_shard_there_is_nothing_to_reshape_from() -> None:
    found = choose(cluster([0, 2, 3]), Present(Mesh(fsdp=4), 1), Bounds(flat(4, 3)), COSTS, Load(24, 1))
    assert isinstance(found, Stay)
    assert "shard 1" in found.why


def test_where_no_cell_lives_the_state_is_had_from_elsewhere_and_the_present_shape_will_do_too() -> None:
    for workers in (3, 4):
        found = choose(cluster([None] * workers), Present(Mesh(fsdp=4), 0), Bounds(flat(4, 3)), COSTS, Load(24, 1))
        assert isinstance(found, Choice)
        assert (found.mesh, found.idle) == (Mesh(fsdp=workers), (workers, 0))


def test_a_batch_that_cannot_be_cut_for_a_shape_leaves_it_out() -> None:
    living = cluster([0, 1, 2, 3, None, None, None])
    found = choose(living, Present(Mesh(fsdp=4), 1), Bounds(flat(4, 3, 2)), COSTS, Load(16, 1))
    assert isinstance(found, Choice)
    assert found.mesh == Mesh(fsdp=2)  # 16 samples are no multiple of 3


def test_uneven_micro_batches_and_bubbles_count() -> None:
    free = Costs(1.0, exchange=0.0, gather=0.0)
    assert speed(Mesh(fsdp=2), 3, Load(8, 1), free) == pytest.approx(4.0)  # 4 micro-batches: one cell has two
    assert speed(Mesh(fsdp=2), 3, Load(48, 1), free) == pytest.approx(6.0)
    assert speed(Mesh(pp=4), 1, Load(16, 1), free) == pytest.approx(16 / 4.75)  # 1F1B idles 3 of 19
    assert speed(Mesh(fsdp=4), 1, Load(6, 1), free) == 0.0


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(ep=[4, 2]), "elastic.ep: allows 4, 2, and the run begins with ep 8"),
        (Limits(pp=[2]), "elastic.pp: allows 2, and the run begins with pp 1"),
        (Limits(cells=(3, 9)), "elastic.cells: allows 3 to 9, and the run begins with cells 2"),
        (Limits(min_workers=17), "elastic.min_workers: 17 workers, and the run has 2 cells of 8"),
    ],
)
def test_bounds_that_leave_out_what_the_run_begins_with_are_refused(limits: Limits, message: str) -> None:
    check_limits(Limits(ep=[8, 4], pp=[1], cells=(2, 2), min_workers=16), Mesh(ep=8), 2)
    with pytest.raises(UserError, match=re.escape(message)):
        check_limits(limits, Mesh(ep=8), 2)


class Widths(Workload):
    """A model that only 1, 2, 3 and 6 workers of a stage can share, in two stages at most."""

    micro_batch = 2  # type: ignore[assignment]

    def shaped(self, sizes: Mapping[str, int]) -> Workload:
        if 6 % (sizes["fsdp"] * sizes["ep"]) or sizes["pp"] > 2:
            raise UserError("no such cells", "others")
        return self


Widths.__abstractmethods__ = frozenset()


def test_a_run_may_take_the_shapes_that_job_model_and_batches_allow() -> None:
    workload, home = Widths(None), Mesh(fsdp=2)  # type: ignore[abstract]

    def sizes(limits: Limits, batches: list[int], *, exact: bool = False) -> list[tuple[int, int, int]]:
        found = bounds_of(workload, home, limits, batches, exact=exact)
        return sorted((mesh.pp, mesh.fsdp, mesh.ep) for mesh in found.meshes)

    flat_ones = Limits(ep=[1], pp=[1])
    assert sizes(flat_ones, [24, 48]) == [(1, 1, 1), (1, 2, 1), (1, 3, 1), (1, 6, 1)]
    assert sizes(flat_ones, [24, 32]) == [(1, 1, 1), (1, 2, 1)]  # of 32 samples, 3 workers cannot take 2 each
    assert sizes(Limits(ep=[1, 3], pp=[1, 2], fsdp=False), [24]) == [(1, 2, 1), (1, 2, 3), (2, 2, 1), (2, 2, 3)]
    assert len(sizes(Limits(), [24])) > 8
    assert sizes(Limits(), [24], exact=True) == [(1, 2, 1)]
    bounds = bounds_of(workload, home, flat_ones, [24], exact=True)
    assert len(bounds.refused) == 3
    assert "no other shape: reduce: exact" in remark(bounds, home)
    assert remark(bounds_of(workload, home, flat_ones, [24], exact=False), home).startswith(
        "elastic: cells may also be of 1, 3, 6 workers"
    )


# ---- who comes and goes


def test_who_comes_must_stay_before_the_run_grows() -> None:
    bounds = Bounds(flat(3, 4), Limits(hold_s=30.0))
    costs, load, present = COSTS, Load(24, 1), Present(Mesh(fsdp=3), 2, lost=False)
    held = cluster([0, 1, 2, 0, 1, 2])

    def coming(*ages: float) -> Choice | Stay:
        fresh = {f"x{i}": Survivor(f"x{i}", None, age) for i, age in enumerate(ages)}
        return choose(held | fresh, present, bounds, costs, load)

    early = coming(12.0, 20.0)
    assert isinstance(early, Stay)
    assert (early.again, early.why[:14]) == (18.0, "2 workers have")
    grown = coming(31.0, 40.0)
    assert isinstance(grown, Choice)
    assert (grown.mesh, len(grown.crews)) == (Mesh(fsdp=4), 2)
    assert isinstance(coming(40.0, 50.0, 3.0), Stay)  # a third is on its way
    assert isinstance(coming(119.0, 119.0, 3.0), Stay)
    assert isinstance(coming(120.0, 119.0, 3.0), Choice)  # but not for ever


def test_a_loss_waits_for_nobody_and_does_not_count_on_who_has_just_come() -> None:
    living = cluster([0, 1, 2, 3, None, None]) | {"x": Survivor("x", None, 1.0)}
    bounds = Bounds(flat(4, 3, 7), Limits(cells=(1, 64)))
    found = choose(living, Present(Mesh(fsdp=4), 1, lost=True), bounds, COSTS, Load(84, 1))
    assert isinstance(found, Choice)
    assert (found.mesh, len(found.crews)) == (Mesh(fsdp=3), 2)
    assert all("x" not in crew for crew in found.crews)


# ---- against everything there is


def works(mesh: Mesh, cells: int, load: Load, costs: Costs) -> float:
    """A step's samples a unit of time, by dealing it."""
    one = mesh.workers * load.micro_batch
    if load.samples % one:
        return 0.0
    dealt = batching.share(batching.count(0, load.samples, mesh.workers, load.micro_batch), range(cells))
    each = 1 + costs.exchange * (mesh.ep - 1) / mesh.ep + (costs.gather if mesh.pp == 1 < mesh.workers else 0)
    return load.samples / (max(map(len, dealt.values())) * each + costs.bubble * (mesh.pp - 1) / mesh.pp)


def undone(exposed: int, costs: Costs) -> float:
    """Seconds of work that deaths are expected to undo, moment by moment."""
    rate, moments = exposed / costs.alone, 4000
    each = costs.horizon / moments
    if costs.every < inf:
        one = max(costs.every / 2, costs.behind if costs.behind > costs.every else 0.0)
        return min(costs.horizon, sum(rate * each * one for _ in range(moments)))
    stays, none = 0.0, 1.0
    for _ in range(moments):  # from the end: nobody dies from each moment on
        stays += none * each
        none *= 1 - rate * each
    return costs.horizon - stays + costs.behind * (1 - none)


def least_exposed(living: dict[str, Survivor], mesh: Mesh, cells: int) -> int:
    """Shards that stand on one node in the best of all placements."""
    if cells == 1:
        return mesh.workers
    nodes = [one.node for one in living.values()]
    found = set(permutations(nodes, cells * mesh.workers))
    return min(sum(len(set(chosen[rank :: mesh.workers])) == 1 for rank in range(mesh.workers)) for chosen in found)


def fewest(living: dict[str, Survivor], old: Mesh, mesh: Mesh, cells: int, experts: float) -> tuple[int, float]:
    """(most copies of a shard on a node, replicas' worth of state moved) of the best of all placements."""
    has: dict[tuple[int | None, int], float] = {(a, b): size for size, a, b in overlaps(old, mesh, experts)}
    seats = [Seat(cell, rank) for cell in range(cells) for rank in range(mesh.workers)]
    best = (99, inf)
    for chosen in permutations(living, len(seats)):
        nodes = {seat: living[worker].node for seat, worker in zip(seats, chosen, strict=True)}
        pairs = zip(seats, chosen, strict=True)
        moved = sum(1 / mesh.workers - has.get((living[w].rank, seat.rank), 0.0) for seat, w in pairs)
        best = min(best, (crowding(nodes, lambda node: NOWHERE)["node"], moved))
    return best


SHAPES = [Mesh(pp, fsdp, ep) for pp in (1, 2) for fsdp in (1, 2, 3) for ep in (1, 2) if pp * fsdp * ep <= 6]


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_the_choice_is_the_best_of_all_shapes(data: st.DataObject) -> None:
    old = data.draw(st.sampled_from([mesh for mesh in SHAPES if mesh.workers <= 4]))
    extra = data.draw(st.lists(st.sampled_from([None, *range(old.workers)]), max_size=6 - old.workers))
    living = cluster([*range(old.workers), *extra], data.draw(st.sampled_from([1, 2])))
    load = Load(data.draw(st.sampled_from([12, 24, 36, 40])), 1)
    meshes = tuple(data.draw(st.lists(st.sampled_from(SHAPES), min_size=1, unique=True)))
    least = data.draw(st.integers(1, 2))
    bounds = Bounds(meshes, Limits(cells=(least, 64), min_workers=data.draw(st.integers(1, 5))))
    costs = Costs(
        4 * GB,
        bandwidth=data.draw(st.sampled_from([GB, GB / 100])),
        alone=data.draw(st.sampled_from([PRIOR, 1e5, 1e4])),
        every=data.draw(st.sampled_from([inf, 600.0])),
        behind=data.draw(st.sampled_from([0.0, 100.0, 3600.0])),
    )
    present = Present(old, data.draw(st.integers(0, len(living) // old.workers)), lost=data.draw(st.booleans()))
    holders = [(one.rank, one.node) for one in living.values() if one.rank is not None]
    alone = sum(len({node for rank, node in holders if rank == each}) == 1 for each in range(old.workers))
    now = works(old, present.cells, load, costs) if present.cells else 0.0
    stays = now * (costs.horizon - undone(alone, costs))
    free = replace(costs, exchange=0.0, gather=0.0, bubble=0.0)
    idle = works(old, present.cells, load, free) if present.cells else 0.0
    values = {}
    for mesh in meshes:
        for cells in range(least, len(living) // mesh.workers + 1):
            done = works(mesh, cells, load, costs)
            exposed = least_exposed(living, mesh, cells) if done else 0
            keeps = works(mesh, cells, load, free)
            busier = keeps > idle * (1 + costs.worth)
            value = done * (costs.horizon - costs.leave - undone(exposed, costs))  # were nothing moved
            may = mesh != old and cells * mesh.workers >= bounds.limits.min_workers
            most = keeps * (costs.horizon - undone(exposed, costs)) > idle * (costs.horizon - undone(alone, costs))
            if may and most and value > stays and (busier or (present.lost and exposed < alone)):
                values[mesh, cells] = value
    found = choose(living, present, bounds, costs, load)
    best = max(values.values(), default=0.0)
    if isinstance(found, Stay):
        assert best == 0.0 or "not worth it" in found.why
        return
    crews = [worker for crew in found.crews for worker in crew]
    assert found.mesh in meshes
    assert len(set(crews)) == len(crews) <= len(living)
    assert set(crews) <= set(living)
    assert len(crews) >= bounds.limits.min_workers
    assert least <= len(found.crews) <= 64
    assert load.samples % found.mesh.workers == 0
    done = works(found.mesh, len(found.crews), load, costs)
    seats = [[living[crew[rank]].node for crew in found.crews] for rank in range(found.mesh.workers)]
    gone = undone(sum(len(set(nodes)) == 1 for nodes in seats), costs)
    assert done * (costs.horizon - found.seconds - gone) > stays
    assert done * (costs.horizon - gone) >= 0.98 * best


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_nobody_could_move_fewer_bytes_and_keep_copies_as_far_apart(data: st.DataObject) -> None:
    small = [mesh for mesh in SHAPES if mesh.workers <= 3]
    old, mesh = data.draw(st.permutations(small))[:2]
    extra = data.draw(st.lists(st.sampled_from([None, *range(old.workers)]), min_size=2, max_size=5 - old.workers))
    living = cluster([*range(old.workers), *extra], data.draw(st.sampled_from([1, 2, 3])))
    cells = len(living) // mesh.workers
    found = place(living, mesh, cells, overlaps(old, mesh, 0.5), lambda node: NOWHERE)
    nodes = {Seat(c, r): living[w].node for c, crew in enumerate(found.crews) for r, w in enumerate(crew)}
    crowded, moved = fewest(living, old, mesh, cells, 0.5)
    assert crowding(nodes, lambda node: NOWHERE)["node"] == crowded
    assert moved - 1e-9 <= found.moved <= moved + 0.25  # of 296 random ones all but one have the fewest


def test_what_a_worker_keeps_is_what_both_shards_have() -> None:
    shared = {(a, b): size for size, a, b in overlaps(Mesh(fsdp=4), Mesh(fsdp=3), 0.0)}
    assert shared == pytest.approx(
        {(0, 0): 1 / 4, (1, 0): 1 / 12, (1, 1): 1 / 6, (2, 1): 1 / 6, (2, 2): 1 / 12, (3, 2): 1 / 4}
    )
    for old, new in ((Mesh(2, 3, 2), Mesh(1, 2, 4)), (Mesh(ep=4), Mesh(ep=2)), (Mesh(pp=4), Mesh(fsdp=8))):
        assert sum(size for size, _, _ in overlaps(old, new, 0.7)) == pytest.approx(1.0)
