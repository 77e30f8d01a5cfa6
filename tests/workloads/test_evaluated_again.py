"""What an evaluation gathered of the parameters is not computed with once they were written to: a roll back, or a step
of which this cell had no micro-batch, and no backward to let go of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from shoal.testing import World
from shoal_core.loading import make_workload
from tests.platform.test_exact_pretrain import workload as pretrain
from tests.support.corpora import write_corpus


def evaluated(section: dict[str, Any], again: bool) -> tuple[list[float], list[float]]:
    """Figures of a shard that may have been evaluated before, and those after its state was written to."""
    shard = make_workload(section).build(3)
    before = shard.evaluate(dist.get_rank(), 2) if again else []
    with torch.no_grad():
        for tensor in shard.tensors():
            tensor.mul_(0.5)
    shard.loaded(0)
    return before, shard.evaluate(dist.get_rank(), 2)


@pytest.mark.parametrize("kind", ["torch", "pretrain"])
def test_an_evaluation_sees_what_was_written_since_the_last(kind: str, tmp_path: Path, pair: World) -> None:
    section: dict[str, Any] = {"path": "tests.support.torchmodels:Language", "global_batch": 12}
    if kind == "pretrain":
        corpus = write_corpus(tmp_path / "corpus")
        section = pretrain(corpus, {"ep": 2})
        section["data"] |= {"heldout": str(corpus)}
        section["eval"] = {"samples": 4}
    for (_, once), (before, twice) in zip(
        pair.run(evaluated, section, False), pair.run(evaluated, section, True), strict=True
    ):
        assert twice == once != before
