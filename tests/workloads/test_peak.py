"""What a pipeline rank's micro-batches hold is what the closed form says, step by step of its order: between the steps
by the CPU's allocator, and within them too on the meta device, by a GPU's branches."""

from __future__ import annotations

from typing import Any

import pytest

from shoal_workloads.parallel.schedule import LAYOUTS
from tests.support import peaks
from tests.workloads.test_activations import fused

__all__ = ["fused"]

WITHIN = 0.02
LEVELS: list[Any] = [False, True, "ffn"]
HEADS = {"n_heads": 16, "d_head": 128, "d_rope": 64, "d_v": 128, "d_kv": 256, "d_q": 512}
WIDE = {**HEADS, "d_model": 1024, "d_ffn": 2048, "n_experts": 16, "top_k": 4, "d_expert": 256}
"""Wide enough for activations to outweigh what is there once."""


def between(schedule: str, pp: int, place: int, level: Any, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = peaks.job(schedule, pp, level, precision)
    found, expected = peaks.measured(config, place, monkeypatch), peaks.predicted(config, place)
    most = max(after for _, after in found)
    assert len(found) == len(expected)
    for (_, after), (_, said) in zip(found, expected, strict=True):
        assert abs(said - after) <= WITHIN * most
    assert max(after for _, after in expected) == pytest.approx(most, rel=WITHIN)


@pytest.mark.parametrize(("schedule", "level"), [("1f1b", True), ("zb1p", False), ("dualpipe", "ffn")])
def test_what_a_rank_holds_between_steps(schedule: str, level: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    between(schedule, 2, 1, level, "fp32", monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp8"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("pp", [2, 4, 8])
@pytest.mark.parametrize("schedule", list(LAYOUTS))
def test_what_every_schedule_holds_between_steps(
    schedule: str, pp: int, level: Any, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in sorted({0, pp // 2, pp - 1}):
        with monkeypatch.context() as patch:
            between(schedule, pp, place, level, precision, patch)


def within(schedule: str, pp: int, place: int, level: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = peaks.job(schedule, pp, level, "bf16", **WIDE, mtp_depth=0)
    config = config.model_copy(update={"device": "meta", "data": config.data.model_copy(update={"seq_len": 4096})})
    found, expected = peaks.measured(config, place, monkeypatch), peaks.predicted(config, place)
    assert max(most for most, _ in expected) == pytest.approx(max(most for most, _ in found), rel=WITHIN)


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize(("schedule", "level"), [("1f1b", False), ("zbv", True), ("dualpipe", "ffn")])
def test_the_most_that_a_gpu_rank_holds(schedule: str, level: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    within(schedule, 4, 1, level, monkeypatch)


@pytest.mark.long
@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("pp", [2, 4, 8])
@pytest.mark.parametrize("schedule", list(LAYOUTS))
def test_the_most_that_a_gpu_rank_holds_in_every_schedule(
    schedule: str, pp: int, level: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in range(pp // 2):
        with monkeypatch.context() as patch:
            within(schedule, pp, place, level, patch)
