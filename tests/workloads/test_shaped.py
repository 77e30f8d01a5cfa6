"""Workloads in cells of another shape: the same batches and numbers, and no cell that could not be."""

from __future__ import annotations

from typing import Any

import pytest

from shoal_core.errors import UserError
from shoal_core.mesh import Mesh, cell_mesh
from shoal_workloads.pretrain import Pretrain
from shoal_workloads.synthetic import Synthetic, SyntheticConfig
from tests.support import synthetic


def sizes(pp: int = 1, fsdp: int = 1, ep: int = 1) -> dict[str, int]:
    return {"pp": pp, "fsdp": fsdp, "ep": ep, "ep_node": 1}


def test_experts_are_shared_by_fewer_and_what_that_leaves_no_use_for_is_left_out() -> None:
    batch = {"global_batch": 24, "micro_batch": 1}
    one = Pretrain(synthetic.tiny(batch=batch, parallel={"ep": 4, "rebalance": 5, "reduce_once": True}))
    one.go_on(3, 100)
    other = one.shaped(sizes(fsdp=2, ep=2))
    assert (cell_mesh(one, 4), cell_mesh(other, 4)) == (Mesh(ep=4), Mesh(fsdp=2, ep=2))
    assert [other.samples(step) for step in (3, 4)] == [one.samples(step) for step in (3, 4)]
    assert (other.config.parallel.rebalance, other.config.parallel.reduce_once) == (5, True)
    alone = one.shaped(sizes()).config.parallel
    assert (alone.ep, alone.rebalance, alone.reduce_once) == (1, 0, "auto")


def test_a_cell_that_could_not_be_is_refused() -> None:
    one = Pretrain(synthetic.tiny(batch={"global_batch": 24, "micro_batch": 1}))
    with pytest.raises(UserError, match="d_expert"):
        one.shaped(sizes(fsdp=5))
    few = Synthetic(SyntheticConfig(parameters=1024))
    assert few.shaped(sizes(fsdp=4)) is few
    for wrong in (sizes(fsdp=3), sizes(pp=2)):
        with pytest.raises(UserError, match="1024 parameters"):
            few.shaped(wrong)


def test_where_exact_mode_cannot_promise_its_bits_it_says_why() -> None:
    def why(own: dict[str, int], other: dict[str, int], **sections: Any) -> str | None:
        return Pretrain(synthetic.tiny(**sections)).other_bits(own, other)

    for other in (sizes(fsdp=3), sizes(ep=4), sizes(fsdp=2, ep=2), sizes()):
        assert why(sizes(fsdp=4), other) is None
        assert why(other, sizes(fsdp=4)) is None
    assert "a pipeline adds" in str(why(sizes(fsdp=4), sizes(pp=2, fsdp=2)))
    assert "a pipeline adds" in str(why(sizes(pp=2, fsdp=2), sizes(fsdp=4)))
    assert "node by node" in str(why(sizes(ep=4), sizes(ep=2), parallel={"dispatch": "hierarchical"}))
    assert why(sizes(fsdp=4), sizes(fsdp=2), precision="bf16") is None
    assert "a worker that is alone" in str(why(sizes(fsdp=4), sizes(), precision="bf16"))
    assert "holds others" not in str(why(sizes(ep=2), sizes(fsdp=2, ep=2), device="cuda"))
    assert "a GPU multiplies" in str(why(sizes(ep=4), sizes(ep=2), device="cuda"))
    wide = {"d_model": 128, "d_expert": 128, "d_ffn": 128, "d_kv": 128, "d_q": 128, "n_heads": 4, "d_v": 32}
    assert "FP8" in str(why(sizes(fsdp=4), sizes(fsdp=2), precision="fp8", model=wide))
    few = Synthetic(SyntheticConfig())
    assert few.other_bits(sizes(fsdp=4), sizes(fsdp=2)) is None  # type: ignore[func-returns-value]
