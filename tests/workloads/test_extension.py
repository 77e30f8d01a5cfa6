"""Context extension: the report's two phases, and a run that goes on at a longer context."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from shoal_workloads.checkpoint import Checkpoint
from shoal_workloads.config import PretrainConfig
from shoal_workloads.extension import extended
from shoal_workloads.start import extend_checkpoint, write_start
from tests.support import synthetic

V3 = {
    "model": {"preset": "deepseek-v3"},
    "data": {"corpus": "c", "seq_len": 4096},
    "batch": {"global_batch": 15360, "ramp": {"start": 3072, "tokens": 469e9}},
}


def test_the_reports_phases() -> None:
    first = PretrainConfig.model_validate(extended(PretrainConfig.model_validate(V3), "32k"))
    second = PretrainConfig.model_validate(extended(first, "128k"))
    assert (first.data.seq_len, first.batch.global_batch) == (32768, 1920)
    assert (second.data.seq_len, second.batch.global_batch) == (131072, 480)
    for phase in (first, second):
        assert phase.model.yarn is not None
        assert (phase.model.yarn.factor, phase.model.yarn.alpha, phase.model.yarn.beta) == (40, 1, 32)
        assert phase.model.yarn.original_length == 4096
        tokens = [phase.batch.samples(step, phase.data.seq_len)[1] * phase.data.seq_len for step in (0, 999)]
        assert [phase.schedule.lr_at(step, t) for step, t in zip((0, 999), tokens, strict=True)] == pytest.approx(
            [7.3e-6, 7.3e-6]
        )
        assert phase.schedule.gamma_at(tokens[1]) == 0
        assert phase.schedule.mtp_weight_at(tokens[1]) == pytest.approx(0.1)


def test_a_run_goes_on_at_a_longer_context(tmp_path: Path) -> None:
    replica = synthetic.build(synthetic.tiny(schedule={"lr": 1e-2, "gamma": 0.01}))
    for step in range(10):
        synthetic.run_step(replica, step)
    write_start(replica, replica.config.model_dump(mode="json"), tmp_path / "trained")
    found = extend_checkpoint(
        tmp_path / "trained",
        "32k",
        {"data": {"corpus": "longer", "seq_len": 7}, "batch": {"global_batch": 3}, "eval": {"samples": 2}},
        tmp_path / "start",
    )
    assert found["steps"] == 1000
    before, after = Checkpoint(tmp_path / "trained").weights(), Checkpoint(tmp_path / "start").weights()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    section = json.loads((tmp_path / "start" / "COMMITTED.json").read_text())["workload"]
    assert section == found["workload"]
    config = PretrainConfig.model_validate({key: value for key, value in section.items() if key != "path"})
    assert (config.data.seq_len, config.data.corpus) == (8 * synthetic.SEQ, "longer")
    assert (config.batch.global_batch, config.eval.samples) == (1, 2)
    longer = synthetic.build(config)
    with torch.no_grad():
        for shard in longer.shards:
            shard.local.copy_(after[shard.name])
    figures = [synthetic.run_step(longer, step) for step in range(3)]
    assert all(f["tokens"] == 8 * synthetic.SEQ for f in figures)
    assert figures[-1]["lm_loss"] < torch.tensor(float(synthetic.VOCAB)).log()
