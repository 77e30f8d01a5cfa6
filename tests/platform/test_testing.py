"""What `shoal.testing` promises: its example runs as it stands there, and its comparisons can fail."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest
import torch

from shoal import testing
from shoal.record.jsonl import line_of
from shoal.testing import Outcome, assert_exactly_once


def test_the_example_runs(tmp_path: Path) -> None:
    (example,) = doctest.DocTestFinder().find(testing, globs={"tmp_path": tmp_path})[:1]
    assert len(example.examples) > 8
    said: list[str] = []
    failed, _ = doctest.DocTestRunner().run(example, out=said.append)
    assert failed == 0, "".join(said)


def test_outcomes_differ_by_a_bit_a_step_or_a_name() -> None:
    one = Outcome([2.0, 1.0], {"a": torch.tensor([1.0, 2.0])})
    assert one.differences(Outcome([2.0, 1.0], {"a": torch.tensor([1.0, 2.0])})) == []
    assert one.differences(Outcome([2.0], {"a": torch.tensor([1.0, 2.0])})) == ["loss of step 1"]
    assert one.differences(Outcome([2.0, 1.0], {"a": torch.tensor([1.0, 2.0 + 2**-22])})) == ["a"]
    assert one.differences(Outcome([2.0, 1.0], {"a": torch.tensor([1, 2])})) == ["a"]
    assert one.differences(Outcome([3.0, 1.0], {"b": torch.tensor([1.0])})) == ["loss of step 0", "a", "b"]


@pytest.mark.parametrize("ids", [[0, 1, 2, 2], [0, 1, 2], [0, 1, 2, 4]], ids=["repeated", "skipped", "outside"])
def test_a_sample_twice_never_or_of_no_step_is_told(tmp_path: Path, ids: list[int]) -> None:
    figures = {"time": 1.0, "tokens": 2, "seconds": 1.0, "cells": 1, "generation": 0}
    figures |= dict.fromkeys(("loss", "lm_loss", "mtp_loss", "grad_norm", "lr"), 1.0)
    steps = [{"step": step, "samples": [2 * step, 2 * step + 2], **figures} for step in range(2)]
    (tmp_path / "steps.jsonl").write_bytes(b"".join(map(line_of, steps)))
    shares = tmp_path / "samples.jsonl"
    shares.write_bytes(line_of({"step": 0, "cell": 0, "worker": "w", "ids": [0, 1, 2, 3]}))
    assert_exactly_once(tmp_path, steps=2)
    shares.write_bytes(line_of({"step": 0, "cell": 0, "worker": "w", "ids": ids}))
    with pytest.raises(AssertionError, match="SampleAudit"):
        assert_exactly_once(tmp_path, steps=2)
    with pytest.raises(AssertionError):
        assert_exactly_once(tmp_path, steps=3)
