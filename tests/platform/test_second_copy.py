"""What a choice of a shape knows beside who lives: what a death would cost, what the run has seen itself, and what fits
into nodes' memory."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

import pytest

from shoal.config import Job
from shoal.decisions.shape import outlives, shape_of
from shoal.plan import NOWHERE, Mesh, cell_mesh
from shoal.plan.reshape import (
    Bounds,
    Choice,
    Costs,
    Limits,
    Load,
    Present,
    Room,
    Seen,
    Stay,
    Survivor,
    Took,
    choose,
    learnt,
    speed,
)
from shoal.plan.reshape.costs import step_of
from shoal_core.loading import make_workload
from shoal_core.units import size

GB = 1e9
TWO = Bounds((Mesh(fsdp=2), Mesh()), Limits(cells=(1, 2)))
LOAD = Load(12, 1)
OFTEN = Costs(2e6, alone=3 * 3600.0, step=0.1, behind=3.4)
"""Three workers lose one an hour; 34 steps are saved nowhere."""


def cluster(ranks: list[int | None], slots: int = 1) -> dict[str, Survivor]:
    return {f"w{i}": Survivor(f"n{i // slots}", rank) for i, rank in enumerate(ranks)}


def chosen(costs: Costs, living: dict[str, Survivor], present: Present, bounds: Bounds = TWO, **more: Any) -> Any:
    return choose(living, present, bounds, costs, LOAD, **more)


def test_a_second_copy_is_worth_a_change_that_puts_nobody_more_to_work() -> None:
    living, present = cluster([0, 1, None]), Present(Mesh(fsdp=2), 1)
    found = chosen(OFTEN, living, present)
    assert isinstance(found, Choice)
    assert (found.mesh, len(found.crews), found.idle) == (Mesh(), 2, (1, 1))
    assert found.why == (
        "2 of 3 workers: 2 cells of 1 beat 1 of 2: +2%, 1.0 s, 2.0 MB; each shard has a second copy on another node: "
        "without it a death (one in 1.5 h) costs 34 steps and all that follow"
    )
    saved = replace(OFTEN, every=10.0)
    assert isinstance(chosen(saved, living, present), Stay)  # a death costs 5 s: less than the change in all
    assert isinstance(chosen(replace(OFTEN, alone=1e9), living, present), Stay)  # hardly anybody dies
    assert isinstance(chosen(OFTEN, living, replace(present, lost=False)), Stay)  # it was to have one copy


def test_more_work_with_one_copy_is_weighed_against_what_a_death_undoes() -> None:
    living = cluster([0, 1, 0, 1, None])
    bounds = Bounds((Mesh(fsdp=2), Mesh(fsdp=5)), Limits())
    load = Load(60, 1)
    present = Present(Mesh(fsdp=2), 2)
    seldom = choose(living, present, bounds, replace(OFTEN, alone=1e7), load)
    assert isinstance(seldom, Choice)
    assert seldom.mesh == Mesh(fsdp=5)
    assert "copy" not in seldom.why  # what a death costs counts for nothing there
    stays = choose(living, present, bounds, replace(OFTEN, alone=3600.0), load)
    assert isinstance(stays, Stay)
    often = choose(living, present, bounds, replace(OFTEN, alone=5 * 3600.0, every=600.0), load)
    assert isinstance(often, Choice)
    assert often.why.endswith("; shards have no second copy on another node: a death (one in 1.0 h) costs 3000 steps")


def test_on_one_node_a_second_copy_is_worth_less() -> None:
    found = chosen(OFTEN, cluster([0, 1, None], slots=3), Present(Mesh(fsdp=2), 1))
    assert isinstance(found, Choice)
    assert "; all shards but 1 have a second copy on another node: " in found.why
    three = cluster([0, 0, None], slots=3)
    assert isinstance(chosen(OFTEN, three, Present(Mesh(), 2), Bounds((Mesh(), Mesh(fsdp=2)))), Stay)


def test_what_the_run_has_seen_takes_the_place_of_what_is_assumed() -> None:
    whole, half = Mesh(fsdp=4), Mesh(fsdp=2)
    seen = Seen(failures=2, seconds=3600.0, step=0.5, behind=20)
    for _ in range(5):
        seen = seen.paced(whole, (0.1, 0.2)).paced(half, (0.3, 0.1))
    seen = seen.changed(Took(9.0, 3.0, heal=True)).held(100, 4)
    assumed = Costs(7.0)
    known = learnt(assumed, seen, whole, 6)
    assert (known.state_bytes, known.leave, known.bandwidth, known.behind) == (400.0, 9.0, assumed.bandwidth, 10.0)
    assert known.alone == pytest.approx(6 * (86_400 + 3600) / 2, rel=0.01)
    assert known.rounds == {whole: 0.2, half: 0.3}
    load = Load(24, 1)
    assert speed(half, 2, load, known) == pytest.approx(speed(half, 2, load, assumed) * 0.2 / 0.3)
    assert speed(whole, 1, load, known) == speed(whole, 1, load, assumed)
    assert step_of(speed(whole, 1, load, known), load, known) == pytest.approx(6 * 0.2)
    assert step_of(speed(half, 2, load, known), load, known) == pytest.approx(6 * 0.3)
    assert step_of(4.0, load, assumed) == 0.0
    moved = learnt(assumed, seen.changed(Took(2.0, 0.5, 100.0)), whole, 6)  # its own change tells more than a heal
    assert (moved.leave, moved.bandwidth) == (2.0, 200.0)
    early = learnt(assumed, Seen().paced(half, (0.3,)), whole, 6)
    assert (early.rounds, early.state_bytes, early.step) == ({}, 7.0, assumed.step)


def test_a_line_of_the_journal_tells_what_a_change_took() -> None:
    phases = {"pause": 0.2, "form": 0.8, "fill": 0.3, "first_step": 0.5}
    reshaped = {"kind": "reshaped", "seconds": 1.5, "phases": phases, "bytes": 300, "most": 120}
    reshaped["expected"] = {"seconds": 2.0, "steps": 0.7, "bytes": 200}
    assert Took.told(reshaped) == Took(0.5, 0.3, 120.0)
    reshaped["expected"] = {"seconds": 3.0, "steps": 1.4, "bytes": 200}
    assert Took.told(reshaped) == Took(0.5, 0.3, 120.0)  # as long as forming the cells at least
    heal = {"detect": 9.0, "decide": 0.1, "place": 0.1, "join": 1.0, "state": 2.0, "first_step": 0.3}
    assert Took.told({"kind": "recovery", "rung": "heal", "phases": heal}) == Took(1.5, 2.0, heal=True)
    shrunk = heal | {"join": None, "state": None, "first_step": None}
    assert Took.told({"kind": "recovery", "rung": "shrink", "phases": shrunk}) is None
    assert Took.told({"kind": "death"}) is None


def test_a_shape_that_does_not_fit_into_memory_is_refused_by_name() -> None:
    living = cluster([0, 1, 2, 3, None, None, None], slots=2)
    bounds = Bounds((Mesh(fsdp=4), Mesh(fsdp=3), Mesh()), Limits(cells=(2, 64)))
    costs, load, present = Costs(12 * GB), Load(168, 1), Present(Mesh(fsdp=4), 1)
    room = Room({"n0": 20 * GB, "n1": 18.2 * GB, "n2": 20 * GB, "n3": 0.0}.__getitem__)
    found = choose(living, present, bounds, costs, load, room=room)
    assert isinstance(found, Choice)
    assert found.mesh == Mesh(fsdp=3)  # 4 / 3 of 4 GB, 3 GB of the former shard, 0.5 GB of buffer
    assert found.why.endswith(
        " (7 cells of 1 would, but a worker would hold 19.5 GB while it is filled, and n1 has 9.1 GB for each)"
    )
    on_gpus = choose(living, present, bounds, costs, load, room=replace(room, on_device=True))
    assert isinstance(on_gpus, Choice)
    assert on_gpus.mesh == Mesh()  # in the nodes' own memory is but the shard that is kept
    unsaid = choose(living, present, bounds, replace(costs, state_bytes=0.0), load, room=room)
    assert isinstance(unsaid, Choice)
    assert unsaid.mesh == Mesh()
    assert unsaid.why.endswith(" s")  # nor does it tell of bytes


def job_of(**settings: Any) -> Job:
    workload = {"path": "shoal_workloads.synthetic:Synthetic", "global_batch": 168, "parameters": 840}
    shape = {"steps": 10, "cells": 2, "workers_per_cell": 4, "elastic": {"cells": [2, 2]}}
    return Job.model_validate({"run_id": "a", **shape, "workload": workload, **settings})


def test_a_run_chooses_by_its_job_and_by_what_it_has_seen() -> None:
    job = job_of(checkpoint={"every": 0})
    workload = make_workload(job.workload)
    shape = shape_of(job, workload, cell_mesh(workload, 4), lambda node: NOWHERE, memory=lambda node: 1e12)
    assert shape.choose is not None
    living = cluster([0, 1, 2, 3, None, None, None])
    unknown = shape.choose(living, Present(shape.mesh, 1), 5)
    assert isinstance(unknown, Choice)
    assert (unknown.mesh, len(unknown.crews), unknown.bytes, unknown.steps) == (Mesh(fsdp=3), 2, None, 0.0)
    seen = Seen(failures=3, seconds=3600.0, step=1.0, behind=8).held(1_000_000, 4)
    for _ in range(5):
        seen = seen.paced(shape.mesh, (0.1,))
    known = shape.choose(living, Present(shape.mesh, 1, seen=seen), 5)
    assert isinstance(known, Choice)
    assert known.bytes is not None
    assert 4_000_000 < known.bytes < 8_000_000  # of two replicas of 4 MB
    assert known.steps == pytest.approx(4.2 / 2 + 2.8, rel=0.03)
    assert "costs 8 steps and all that follow" in known.why


def test_states_that_outlive_a_cell_are_as_far_apart_as_the_job_has_it() -> None:
    assert outlives(job_of(checkpoint={"every": 0}), 2.0) == inf
    assert outlives(job_of(checkpoint={"every": 50}), 2.0) == 100.0
    assert outlives(job_of(checkpoint={"every": "auto"}), 2.0) == 3600.0
    assert outlives(job_of(checkpoint={"every": 50}, snapshots={"every": 4}), 2.0) == 8.0
    assert outlives(job_of(checkpoint={"every": 50}, snapshots={"every": 4, "elsewhere": False}), 2.0) == 100.0


def test_sizes_are_told_in_units_that_suit_them() -> None:
    assert [size(n) for n in (0, 900, 60e3, 4.7e9, 2e12)] == ["0 bytes", "900 bytes", "60.0 kB", "4.7 GB", "2.0 TB"]
