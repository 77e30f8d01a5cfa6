"""The worked examples (docs/examples), whose workers are killed, against one process of plain PyTorch."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoal.testing import Lab, assert_exactly_once, lab, preload
from shoal_core.loading import load_workload
from shoal_data.reading.order import SampleOrder
from tests.support import plain

preload("docs.examples.digits", "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor")

NODES = dict.fromkeys(("a", "b", "c"), 2)
SHAPE: dict[str, Any] = {"cells": 2, "workers_per_cell": 2, "audit": {"samples": True}}
BATCH = {"global_batch": 8, "lr": 1e-3, "warmup_steps": 5}
SMALL = {"context": 32, **BATCH, "lr": 3e-4}
"""At 1e-3 plain PyTorch itself is 2e-5 from plain PyTorch that adds a batch up in another order (Qwen, step 281)."""
KILLS = 20


def next_byte(model: nn.Module, bytes_: Tensor) -> Tensor:
    return F.cross_entropy(model(bytes_[:, :-1]).transpose(1, 2), bytes_[:, 1:])


def by_transformers(model: nn.Module, bytes_: Tensor) -> Tensor:
    """The library's own loss, which moves the labels itself."""
    loss: Tensor = model(input_ids=bytes_, labels=bytes_, use_cache=False).loss
    return loss


def which_digit(model: nn.Module, batch: list[Tensor]) -> Tensor:
    found: Tensor = nn.CrossEntropyLoss()(model(batch[0]), batch[1])
    return found


EXAMPLES: Mapping[str, tuple[str, dict[str, Any], Any]] = {
    "gpt": ("docs.examples.gpt:GPT", {"width": 32, "heads": 2, "layers": 2, **SMALL}, next_byte),
    "llama": ("docs.examples.causal_lm:CausalLM", {"shape": "llama", **SMALL}, by_transformers),
    "qwen": ("docs.examples.causal_lm:CausalLM", {"shape": "qwen", **SMALL}, by_transformers),
    "digits": ("docs.examples.digits:Digits", {"channels": 4, **BATCH, "lr": 3e-3}, which_digit),
}
"""Class, settings, and the mean loss of a batch, written as for one process."""


def by_itself(name: str, steps: int) -> list[float]:
    """The losses of the example in one process that knows nothing of Shoal but the order of the samples."""
    path, settings, loss = EXAMPLES[name]
    example = load_workload(path)
    made: Any = example(example.Config(**settings))
    torch.manual_seed(0)
    model, dataset, size = made.build_model(made.config), made.dataset(made.config), settings["global_batch"]
    order = SampleOrder([len(dataset)], None, 0)(torch.arange(steps * size).numpy())[1].reshape(steps, size).tolist()
    return plain.losses(model, loss, dataset, order, lr=settings["lr"], warmup_steps=settings["warmup_steps"])


def check(one: Lab, name: str, deaths: int) -> None:
    """No step is lost, every sample was seen once, and the losses are those of one process."""
    lines = one.steps()
    lost = sum(event["steps_lost"] for event in one.events("recovery"))
    assert (lost, len(one.events("death"))) == (0, deaths), one.story()
    assert_exactly_once(one.path, len(lines))
    expected = by_itself(name, len(lines))
    apart = max(abs(line["loss"] / loss - 1) for line, loss in zip(lines, expected, strict=True))
    print(f"{name}: {len(lines)} steps, {deaths} deaths, {lost} steps lost, losses within {apart:.1e} of one process")
    assert [line["loss"] for line in lines] == pytest.approx(expected, rel=1e-5)


def test_a_worker_of_an_example_is_killed(tmp_path: Path) -> None:
    """Between forward and the sums of a step."""
    path, settings, _ = EXAMPLES["digits"]
    fault = {"at": "accumulated", "step": 7, "cell": 1, "rank": 0, "how": "kill"}
    shape = SHAPE | {"workers_per_cell": 1}
    with lab(
        tmp_path, dict.fromkeys("abc", 1), steps=20, workload={"path": path, **settings}, inject=[fault], **shape
    ) as one:
        assert one.finished()["status"] == "done", one.story()
        check(one, "digits", deaths=1)


@pytest.mark.long
@pytest.mark.parametrize("name", EXAMPLES)
def test_twenty_random_kills_leave_no_trace(tmp_path: Path, name: str) -> None:
    """At any moment of a step at full strength; the rest of the cell is what is left of it."""
    dice = random.Random(name)
    path, settings, _ = EXAMPLES[name]
    slow = {"path": f"tests.support.slowly:{path.partition(':')[2]}", **settings}
    with lab(tmp_path, NODES, steps=10**6, workload=slow, **SHAPE) as one:
        for number in range(KILLS):
            one.full(dice.randint(1, 3), spares=1)
            time.sleep(dice.uniform(0.0, 0.1))
            one.kill(dice.choice(one.members(dice.randrange(2))))
            one.until(lambda wanted=number + 1: len(one.events("recovery")) >= wanted)
        one.full(3)
        one.stop(save=True)
        assert one.finished()["status"] == "stopped", one.story()
        check(one, name, deaths=KILLS)
        losses = [line["loss"] for line in one.steps()]
        assert mean(losses[-10:]) < mean(losses[:10])
