"""What a job says of its state without building it, and where its batches begin after a change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_core.ckpt.folder import Folder
from shoal_core.ckpt.whole import Checkpoint
from shoal_core.errors import UserError
from shoal_workloads.config import PretrainConfig
from shoal_workloads.pretrain import Pretrain
from shoal_workloads.recipe.batch import BatchConfig
from shoal_workloads.recipe.schedule import ScheduleConfig
from shoal_workloads.shapes import state_of
from tests.support import synthetic
from tests.support.checkpoints import write_checkpoint
from tests.support.corpora import write_corpus


@pytest.fixture(scope="module")
def section(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    corpus = str(write_corpus(tmp_path_factory.mktemp("corpus") / "c"))
    return {
        "model": {"preset": "laptop-1m", "vocab_size": 512, "n_layers": 3, "d_model": 32, "mtp_depth": 2},
        "data": {"corpus": corpus, "seq_len": 32},
        "batch": {"global_batch": 2, "micro_batch": 2},
    }


@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.9, "optim": {"moments": "bf16"}}])
def test_the_state_is_named_as_a_checkpoint_has_it(
    section: dict[str, Any], changes: dict[str, Any], tmp_path: Path
) -> None:
    written = write_checkpoint({**section, **changes}, tmp_path, 1)
    index = Checkpoint.open(Folder.at(written)).index
    assert state_of(PretrainConfig.model_validate({**section, **changes})) == index.described


def test_data_are_known_by_their_content(section: dict[str, Any]) -> None:
    def identity(**data: Any) -> Any:
        changed = {**section, "data": {**section["data"], **data}}
        return Pretrain(PretrainConfig.model_validate(changed)).identity()["data"]

    one = identity()
    assert len(one["corpus"]) == len(one["tokenizer"]) == 64
    assert one["heldout"] is None
    assert identity(seq_len=16) == one | {"seq_len": 16}
    assert identity(heldout=section["data"]["corpus"])["heldout"] == one["corpus"]


def test_text_shorter_than_a_sample_is_refused(section: dict[str, Any]) -> None:
    long = {**section, "data": {**section["data"], "seq_len": 1_000_000}}
    with pytest.raises(UserError, match=r"data.seq_len: 1000000 is longer than the text of"):
        Pretrain(PretrainConfig.model_validate(long)).preflight(1)


ramps = st.one_of(
    st.none(),
    st.builds(
        lambda start, tokens, stages: {"start": start, "tokens": tokens, "stages": stages},
        st.integers(1, 8), st.integers(1, 5000), st.integers(1, 5),
    ),
)  # fmt: skip
batches = st.builds(
    lambda size, ramp: BatchConfig.model_validate({"global_batch": 8 + size, "ramp": ramp}), st.integers(0, 30), ramps
)


@given(before=batches, after=batches, changed=st.integers(0, 60), seq_len=st.sampled_from([1, 7, 64]))
def test_a_change_of_batches_leaves_no_hole(
    before: BatchConfig, after: BatchConfig, changed: int, seq_len: int
) -> None:
    """Positions go on; with a ramp, the batch is that of the samples consumed, not of the steps."""
    consumed = before.samples(changed, seq_len)[0]
    origin = (changed, consumed)
    position = consumed
    for step in range(changed, changed + 40):
        first, last = after.samples(step, seq_len, origin)
        assert first == position
        assert last - first <= after.global_batch
        position = last
    assert [before.samples(step, seq_len, origin) for step in range(changed, changed + 20)] == [
        before.samples(step, seq_len) for step in range(changed, changed + 20)
    ]
    if changed:
        with pytest.raises(ValueError, match="not known"):
            after.samples(changed - 1, seq_len, origin)


def test_a_replica_counts_tokens_from_the_samples_consumed() -> None:
    replica = synthetic.build(synthetic.tiny())
    moved = Pretrain(synthetic.tiny())
    moved.go_on(5, 100)
    other = moved.build(0)
    other.loaded(7)
    replica.loaded(7)
    assert other._progress.tokens - replica._progress.tokens == (100 - 5 * 8) * synthetic.SEQ


def test_what_the_schedule_comes_to_is_said() -> None:
    assert ScheduleConfig(budget=5000, warmup_steps=2).remarks(10, 5000) == []
    (late,) = ScheduleConfig(budget=5000, lr=1.0, warmup_steps=2).remarks(20, 10_000)
    assert "planned for 5,000 tokens" in late
    assert "stays at its last, 0.0332" in late
    unset = ScheduleConfig().remarks(20, 10_000)
    assert "schedule.budget=10000" in unset[0]
    assert "ends in its warm-up" in unset[1]
    assert ScheduleConfig(budget=14.8e12).remarks(5000, 10_000) == []
