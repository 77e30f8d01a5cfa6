"""What a class must have to be a workload, and what it may leave out."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel

from shoal_core.errors import UserError
from shoal_core.loading import build_shard, load_workload, make_workload
from shoal_core.mesh import Mesh, cell_mesh
from shoal_core.workload import ReplicaShard, Workload
from shoal_workloads.synthetic import Synthetic


class Plain:
    """A workload of somebody who has never heard of the base class."""

    class Config(BaseModel):
        batch: int = 4

    micro_batch = 1

    def __init__(self, config: Config) -> None:
        self.config = config

    def preflight(self, workers_per_cell: int) -> dict[str, Any]:
        return {}

    def samples(self, step: int) -> tuple[int, int]:
        return step * self.config.batch, (step + 1) * self.config.batch

    def build(self, seed: int) -> Any:
        return SimpleNamespace(begin=None, accumulate=self.samples, sums=self.samples)


class Partly(Workload):
    Config = Plain.Config

    def samples(self, step: int) -> tuple[int, int]:
        return 0, 1


class Nothing:
    Config = Plain.Config

    def warm_up(self, workers: int) -> None:
        raise AssertionError


class Shard(ReplicaShard):
    """All but what may be left out."""

    def begin(self, step: int) -> None: ...
    def accumulate(self, micro_batches: Sequence[Sequence[int]]) -> None: ...
    def loaded(self, step: int) -> None: ...

    sums = stats = norm_sq = commit = evaluate = eval_metrics = tensors = state_dict = lambda *_: None  # type: ignore[assignment]


def test_a_workload_need_not_inherit_and_then_has_what_it_left_out() -> None:
    workload = make_workload({"path": f"{__name__}:Plain", "batch": 8})
    assert isinstance(workload, Workload)
    assert workload.samples(2) == (16, 24)
    assert (workload.identity(), workload.remarks(0, 5), workload.rolls_back) == (None, [], False)
    assert cell_mesh(workload, 6) == Mesh(ep=6)
    workload.warm_up(2)
    with pytest.raises(UserError, match="3 steps consumed 12 samples, by the job's batches it would be 24"):
        workload.go_on(3, 12)


@pytest.mark.parametrize(
    ("name", "lacks"),
    [("Partly", "build, micro_batch, preflight"), ("Nothing", "build, micro_batch, preflight, samples")],
)
def test_what_a_class_lacks_is_named(name: str, lacks: str) -> None:
    with pytest.raises(UserError, match=f"it lacks {lacks}\n"):
        load_workload(f"{__name__}:{name}")


def test_a_shard_that_lacks_something_is_refused_when_it_is_built() -> None:
    with pytest.raises(
        UserError, match=r"Plain\.build returns lacks arranged, .*, begin, commit, .*, notes, .*tensors"
    ):
        build_shard(load_workload(f"{__name__}:Plain")(Plain.Config()), 0)


def test_a_shard_may_leave_out_what_the_base_class_says() -> None:
    shard = Shard()
    shard.generation_began()
    assert shard.notes() == []


def test_ours_are_what_they_say() -> None:
    assert load_workload("shoal_workloads.synthetic:Synthetic") is Synthetic
    assert issubclass(load_workload("shoal_workloads.pretrain:Pretrain"), Workload)
