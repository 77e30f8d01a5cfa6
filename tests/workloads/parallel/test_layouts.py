"""Every layout does exactly what one process does: loss, every gradient, every updated parameter and moment, the router
biases, the balance loss and MaxVio, on the same global batch. On the imitation of NCCL too (`test_on_fakenccl.py` has
what of that is quick)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shoal.testing import World, world
from shoal_core.errors import UserError
from shoal_workloads.config import PretrainConfig
from shoal_workloads.pretrain import Pretrain
from tests.support import layouts_world, synthetic
from tests.support.backends import BOTH_LONG
from tests.support.layouts_world import Run, whole

STEPS, BATCH = 5, 16
TOLERANCE = 1e-5  # of the largest element of a tensor, or of a figure


@pytest.fixture(scope="module")
def eight() -> Iterator[World]:
    """Eight processes, of which a layout takes as many as it wants."""
    with world(8) as found:
        yield found


def config(parallel: dict[str, Any] | None = None, **sections: Any) -> PretrainConfig:
    """Four layers, for the four stages of V-shaped schedules at pp 2 and of DualPipe at pp 4; Adam's eps is large
    enough not to turn the rounding of the smallest gradients into full steps."""
    model = {"n_layers": 4, **sections.pop("model", {})}
    batch = {"global_batch": BATCH, "micro_batch": 1, **sections.pop("batch", {})}
    return synthetic.tiny(model=model, batch=batch, optim={"eps": 1e-3}, parallel=parallel or {}, **sections)


PLAIN: dict[str, Any] = {}
NO_MTP: dict[str, Any] = {"model": {"mtp_depth": 0}}
AVERAGED: dict[str, Any] = {"ema_decay": 0.9}
WIDE: dict[str, Any] = {
    "model": {"d_model": 128, "d_expert": 128, "d_ffn": 128, "d_kv": 128, "d_q": 128, "n_heads": 4, "d_v": 32}
}
SECTIONS = {"": PLAIN, "no mtp": NO_MTP, "ema": AVERAGED, "fp8": {**WIDE, "precision": "fp8"}}


@cache
def alone(sections: str) -> Run:
    """The same run in one process."""
    run = layouts_world.train(config(**SECTIONS[sections]), STEPS, 1, 1, "")
    assert run is not None
    return run


def close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert np.abs(found[name] - value).max() <= tolerance * np.abs(value).max() + 1e-12, name


def learnt(metrics: dict[str, float]) -> dict[str, float]:
    """Without what tells of the layout."""
    return {name: value for name, value in metrics.items() if not name.startswith("exchange_")}


def compare(runs: list[Run], workers: int, expected: Run, tolerance: float = TOLERANCE) -> None:
    """All cells agree with the single process, and with each other to the bit."""
    cells = [runs[first : first + workers] for first in range(0, len(runs), workers)]
    for cell in cells:
        close(whole([run.gradient for run in cell]), whole([expected.gradient]), tolerance)
        close(whole([run.state for run in cell]), whole([expected.state]), tolerance)
        for run in cell:
            for found, wanted in zip(run.metrics, expected.metrics, strict=True):
                assert learnt(found) == pytest.approx(wanted, rel=tolerance)
            assert run.evaluation == pytest.approx(expected.evaluation, rel=tolerance)
    for run in runs:
        assert np.array_equal(run.loads, expected.loads)
        assert np.array_equal(run.biases, expected.biases)
    for cell in cells[1:]:
        for mine, first in zip(cell, cells[0], strict=True):
            assert all(np.array_equal(a[3], b[3]) for a, b in zip(mine.state, first.state, strict=True))


def pp(ranks: int, schedule: str, **more: Any) -> dict[str, Any]:
    return {"pp": ranks, "schedule": schedule, **more}


@BOTH_LONG
@pytest.mark.parametrize(
    ("workers", "cells", "parallel", "sections"),
    [
        (2, 1, {}, ""),
        (2, 1, {"ep": 2}, ""),
        (4, 1, {"ep": 4}, ""),
        (4, 1, {"ep": 4, "dispatch": "hierarchical", "ep_node": 2}, ""),
        (2, 1, pp(2, "1f1b"), ""),
        pytest.param(2, 1, pp(2, "zb1p"), "", marks=pytest.mark.long),
        pytest.param(2, 1, pp(2, "interleaved"), "", marks=pytest.mark.long),
        (2, 1, pp(2, "zbv"), ""),
        (2, 1, pp(2, "dualpipev"), ""),
        (2, 1, pp(2, "dualpipe"), ""),
        (2, 1, pp(2, "1f1b"), "no mtp"),
        pytest.param(4, 1, pp(2, "dualpipe"), "no mtp", marks=pytest.mark.long),
        (4, 1, pp(4, "dualpipe"), ""),
        (4, 1, pp(2, "dualpipe", ep=2), ""),
        (4, 1, pp(2, "zbv", ep=2, recompute="ffn", waiting=1), "ema"),
        (8, 1, pp(2, "dualpipe", ep=4, dispatch="hierarchical", ep_node=2), ""),
        pytest.param(8, 1, pp(2, "dualpipe", ep=2), "", marks=pytest.mark.long),
        (8, 1, pp(4, "dualpipe", ep=2, recompute="dispatch", waiting=1), ""),
        (4, 2, pp(2, "dualpipe", ep=2), ""),
        pytest.param(4, 2, pp(2, "1f1b", ep=2), "", marks=pytest.mark.long),
    ],
)
def test_a_layout_equals_one_process(
    eight: World, tmp_path: Path, backend: str, workers: int, cells: int, parallel: dict[str, Any], sections: str
) -> None:
    batch = {"micro_batch": 2 if workers * cells <= 4 else 1}
    job = config(parallel, batch=batch, **SECTIONS[sections])
    answers = eight.run(layouts_world.train, job, STEPS, workers, cells, str(tmp_path), backend=backend)
    compare([run for run in answers if run is not None], workers, alone(sections))


@BOTH_LONG
@pytest.mark.parametrize("parallel", [{"ep": 2}, pp(2, "dualpipe"), pp(2, "zbv")])
def test_exact_sums_do_not_know_the_order_of_micro_batches(
    pair: World, tmp_path: Path, backend: str, parallel: dict[str, Any]
) -> None:
    """Each is computed as if it were alone and rounded before it is added to another, in pipelines too."""
    runs = []
    for order in ([0, 1, 2], [2, 0, 1]):
        folder = tmp_path / str(order[0])
        folder.mkdir()
        runs.append(pair.run(layouts_world.exact, config(parallel), 2, str(folder), order, backend=backend))
    for (total, figures), (again, others) in zip(*runs, strict=True):
        assert torch.equal(total, again)
        assert figures == others
        assert total.any()


@BOTH_LONG
@pytest.mark.parametrize("given", [pytest.param([4, 0], marks=pytest.mark.long), [1, 3]])
def test_cells_with_unequal_shares(eight: World, tmp_path: Path, backend: str, given: list[int]) -> None:
    """Cells take any number of micro-batches: DualPipe wants an even number and four at least, gets two for one share,
    and is not told of any where another cell has done them all."""
    answers = eight.run(
        layouts_world.train, config(pp(2, "dualpipe", ep=2)), STEPS, 4, 2, str(tmp_path), given, backend=backend
    )
    compare([run for run in answers if run is not None], 4, alone(""))


@BOTH_LONG
@pytest.mark.parametrize(
    ("workers", "cells", "parallel", "given"),
    [
        pytest.param(2, 1, {"ep": 2}, None, marks=pytest.mark.long),
        (4, 2, {"ep": 2}, [1, 3]),
        (4, 1, {"ep": 4, "dispatch": "hierarchical", "ep_node": 2}, None),
        pytest.param(4, 1, pp(2, "zbv", ep=2), None, marks=pytest.mark.long),
        (4, 2, pp(2, "dualpipe", ep=2), [1, 3]),
    ],
)
def test_experts_that_move_change_no_number(
    eight: World,
    tmp_path: Path,
    backend: str,
    workers: int,
    cells: int,
    parallel: dict[str, Any],
    given: list[int] | None,
) -> None:
    """Placed anew by the load of two steps after a generation began, twice in five steps, the second time in the last:
    weights, moments, averages and that step's gradients on their way at once."""
    job = config(parallel | {"rebalance": 2}, **AVERAGED)
    answers = eight.run(layouts_world.train, job, STEPS, workers, cells, str(tmp_path), given, (0, 3), backend=backend)
    runs = [run for run in answers if run is not None]
    compare(runs, workers, alone("ema"))
    for first in range(0, workers * cells, workers):
        placed = [note for note in runs[first].notes if note["kind"] == "experts_placed"]
        assert [note["measured"] for note in placed] == [2, 2]
        for note in placed:
            assert all(after <= before for before, after in zip(note["before"], note["after"], strict=True))
            assert sum(note["after"]) < 0.7 * sum(note["before"])


@BOTH_LONG
@pytest.mark.parametrize(
    ("parallel", "healed"),
    [
        ({"ep": 2}, 2),
        (pp(2, "dualpipe", ep=2), 3),
        pytest.param({"ep": 2}, 3, marks=pytest.mark.long),
        pytest.param(pp(2, "dualpipe", ep=2), 2, marks=pytest.mark.long),
    ],
)
def test_a_cell_that_heals_has_the_placement_of_the_others(
    eight: World, tmp_path: Path, backend: str, parallel: dict[str, Any], healed: int
) -> None:
    """Before the step with which experts move, whose sums a survivor makes twice; and after it."""
    job = config(parallel | {"rebalance": 2}, **AVERAGED)
    workers = parallel["ep"] * parallel.get("pp", 1)
    answers = eight.run(
        layouts_world.train, job, STEPS, workers, 2, str(tmp_path), None, (0, healed), healed, backend=backend
    )
    compare([run for run in answers if run is not None], workers, alone("ema"))


@BOTH_LONG
def test_fp8_with_ema_and_recompute(eight: World, tmp_path: Path, backend: str) -> None:
    """Pipeline and expert parallelism on products of FP8 and activations in bf16, beside the same in one process: the
    first forward to rounding of its sums, and the same routing, but for the rare choice that lies within that rounding
    (none on some processors). Then gradients on their way to experts elsewhere travel in FP8, as the report has it,
    which a single process does not do."""
    sections = {**SECTIONS["fp8"], **AVERAGED}
    parallel = pp(2, "dualpipe", ep=2, recompute="dispatch")
    answers = eight.run(layouts_world.train, config(parallel, **sections), 2, 4, 1, str(tmp_path), backend=backend)
    runs = [run for run in answers if run is not None]
    expected = layouts_world.train(config(**sections), 2, 1, 1, "")
    assert expected is not None
    found, wanted = whole([run.gradient for run in runs]), whole([expected.gradient])
    for name, value in wanted.items():
        assert np.linalg.norm(found[name] - value) < 0.15 * np.linalg.norm(value), name
    for run in runs:
        assert np.abs(run.loads - expected.loads).sum() / 2 <= expected.loads.sum() / 1000
        assert run.metrics[0]["loss"] == pytest.approx(expected.metrics[0]["loss"], rel=1e-4)
        for mine, theirs in zip(run.metrics, expected.metrics, strict=True):
            assert mine["loss"] == pytest.approx(theirs["loss"], rel=0.02)


LAYOUTS: list[tuple[int, dict[str, Any]]] = [
    (4, pp(2, "dualpipe", ep=2, rebalance=1)),
    (2, pp(2, "1f1b")),
    (4, {"ep": 2, "rebalance": 1}),
    (1, {}),
]


@BOTH_LONG
@pytest.mark.parametrize(
    ("saver", "loaders"),
    [(0, [0, 1, 2, 3]), pytest.param(1, [0], marks=pytest.mark.long), pytest.param(2, [1], marks=pytest.mark.long)],
)
def test_a_checkpoint_goes_from_layout_to_layout(
    eight: World, tmp_path: Path, saver: int, loaders: list[int], backend: str
) -> None:
    """Saved by pipeline and expert parallelism after experts moved, loaded by others, from the checkpoint and from the
    memory of those who saved it: the state to the bit, and the same next step."""
    workers, parallel = LAYOUTS[saver]
    root = tmp_path / "checkpoints"
    job = config(parallel, **AVERAGED)
    answers = eight.run(layouts_world.save, job, 2, workers, str(tmp_path), str(root), backend=backend)
    saved = whole([found for found in answers if found is not None])
    path, metrics = root / "step-00000002", []
    for loader in loaders:
        workers, layout = LAYOUTS[loader]
        place = tmp_path / f"load{loader}"
        place.mkdir()
        given = (config(layout, **AVERAGED), 2, workers, str(place), str(path))
        loaded = (
            [layouts_world.load(*given)] if workers == 1 else eight.run(layouts_world.load, *given, backend=backend)
        )
        found = [answer for answer in loaded if answer is not None]
        state = whole([pieces for pieces, _ in found])
        assert all(np.array_equal(state[name], value) for name, value in saved.items())
        metrics += [figures for _, figures in found]
        place = tmp_path / f"fill{loader}"
        place.mkdir()
        again = (config(layout, **AVERAGED), workers, str(place), str(tmp_path))
        refilled = (
            [layouts_world.refill(*again)] if workers == 1 else eight.run(layouts_world.refill, *again, backend=backend)
        )
        found = [answer for answer in refilled if answer is not None]
        state = whole([pieces for pieces, *_ in found])
        assert all(np.array_equal(state[name], value) for name, value in saved.items())
        assert [given.total() for *_, given in found] == [size for _, size, _ in found], "its part and no more"
        assert len(set().union(*(given for *_, given in found))) == LAYOUTS[saver][0], "all give some of it"
    for figures in metrics[1:]:
        assert learnt(figures) == pytest.approx(learnt(metrics[0]), rel=TOLERANCE)


@pytest.mark.parametrize("victim", [0, 3])
def test_a_rank_that_is_lost_in_a_step_fails_the_others(eight: World, tmp_path: Path, victim: int) -> None:
    """Nobody hangs: those that wait for it, or for somebody who waited for it, get an error of communication. Under
    NCCL's manners nothing raises there: what ends their wait is the platform's cut (`test_pipeline_run.py`)."""
    answers = eight.run(layouts_world.die, config(pp(4, "dualpipe")), 4, str(tmp_path), victim)
    found = [answer for answer in answers if answer is not None]
    assert found[victim][0] == "left"
    others = [word for rank, (word, _) in enumerate(found) if rank != victim]
    assert others == ["RuntimeError"] * 3 or set(others) <= {"RuntimeError", "DistBackendError"}


@pytest.mark.parametrize(
    ("workers", "parallel", "sections", "said", "remedy"),
    [
        (6, pp(4, "dualpipe"), {}, "pp: 4 pipeline ranks do not divide the 6 workers", "pp 3 or 6, or cells of 4 or 8"),
        (8, pp(2, "1f1b", ep=3), {}, "ep: 3 does not divide the 4 workers a stage", "ep 2 or 4"),
        (6, {"ep": 3}, {}, "ep: 3 does not divide 8 experts", "ep 2 or 4, or model.n_experts 6 or 9"),
        (4, {"rebalance": 10}, {}, "rebalance: with ep 1", "rebalance 0"),
        (4, {"ep": 4, "ep_node": 3}, {}, "ep_node: 3 workers a node do not divide the 4", "ep_node 2 or 4"),
        (3, pp(3, "dualpipe"), {}, "dualpipe wants an even number of ranks, not 3", "pp 2 or 4"),
        (2, pp(2, "1f1b", virtual=3), {}, "1f1b has 1 stages a rank, not 3", "interleaved"),
        (8, pp(8, "zbv"), {}, "cuts the model into 16 stages: pp: 4 layers", "a smaller pp"),
        (
            4,
            pp(4, "dualpipe"),
            {"batch": {"global_batch": 4}},
            "gives each chain of 4 ranks 4 micro-batches",
            "8 samples",
        ),
    ],
)
def test_layouts_that_do_not_fit_are_refused(
    workers: int, parallel: dict[str, Any], sections: dict[str, Any], said: str, remedy: str
) -> None:
    """Before anything is placed, with the numbers and the nearest settings that fit."""
    base = config(parallel)
    changed = base.model_copy(update={"batch": base.batch.model_copy(update=sections.get("batch", {}))})
    with pytest.raises(UserError) as error:
        Pretrain(changed).preflight(workers)
    assert said in str(error.value)
    assert remedy in error.value.remedy
