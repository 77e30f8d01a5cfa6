"""Packed batches with loss on answers, against transformers alone on one conversation at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from shoal_core.errors import UserError
from shoal_data.chat.prepare import ChatOptions, prepare
from shoal_workloads.sft import Sft
from shoal_workloads.sft.causal_lm import PACKED
from tests.support.conversations import CHATML, MARKED, conversations, write_jsonl, write_tokenizer
from tests.support.finetuning import KINDS, load, one_by_one, summed_loss, write_model

ROWS = conversations(24, seed=1)


def packed(folder: Path, model: Path, **settings: Any) -> Sft:
    write_jsonl(folder / "in.jsonl", ROWS)
    prepare([str(folder / "in.jsonl")], str(model), str(folder / "data"), ChatOptions(256))
    section = {"global_batch": 4, "model": str(model), "data": str(folder / "data"), **settings}
    return Sft(Sft.Config(**section))


def test_all_kinds_that_are_taken_are_tried() -> None:
    assert set(KINDS) == set(PACKED)


@pytest.mark.parametrize(
    "kind", ["llama", "qwen2", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("mistral", "qwen3"))]
)
def test_losses_and_gradients_are_those_of_each_conversation_alone(kind: str, tmp_path: Path) -> None:
    """To 1e-5, in batches of samples of several conversations; and not so if conversations see each other."""
    folder = write_model(tmp_path / "model", kind)
    reference, alone, counted = load(folder), [], 0
    for ids, labels in one_by_one(folder, ROWS):
        total, count = summed_loss(reference, ids, labels)
        total.backward()
        alone.append(total.item())
        counted += count

    workload = packed(tmp_path, folder, recompute=kind == "llama")
    model = workload.build_model(workload.config).train()
    model.load_state_dict(reference.state_dict())
    data = workload.dataset(workload.config)
    assert len(data) < len(ROWS) / 2
    summed = seen = 0.0
    for first in range(0, len(data), 3):
        batch = workload.collate([data[at] for at in range(first, min(first + 3, len(data)))])
        total, count = workload.loss(model, batch)
        total.backward()
        summed, seen = summed + total.item(), seen + count
    assert seen == counted
    assert summed == pytest.approx(sum(alone), rel=1e-5)
    expected = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        apart = torch.linalg.vector_norm(parameter.grad - expected[name].grad)
        assert apart <= 1e-5 * torch.linalg.vector_norm(expected[name].grad), name

    each = []
    for at in range(len(data)):
        batch = workload.collate([data[at]])
        for number in range(int(data[at].document_ids.max()) + 1):
            of = torch.from_numpy(data[at].document_ids == number)[None]
            only = {**batch, "labels": torch.where(of, batch["labels"], -100)}
            with torch.no_grad():
                each.append(float(workload.loss(model, only)[0]))
    assert sorted(each) == pytest.approx(sorted(alone), rel=1e-5)

    sample = max((data[at] for at in range(len(data))), key=lambda one: one.document_ids[-1])
    last = torch.from_numpy(sample.document_ids == sample.document_ids[-1])[None]
    kept = workload.collate([sample])
    kept["labels"] = torch.where(last, kept["labels"], -100)
    joined = {**kept, "position_ids": torch.arange(last.shape[1])[None]}
    with torch.no_grad():
        apart, together = (float(workload.loss(model, one)[0]) for one in (kept, joined))
    assert abs(apart - together) > 1e-3 * apart


def test_what_does_not_fit_is_refused_before_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path / "model")
    good = packed(tmp_path, folder)
    data, config = good.config.data, folder / "config.json"

    def refused(problem: str, **settings: str) -> None:
        fields = {"global_batch": 1, "model": str(folder), "data": data, "heldout": data, **settings}
        with pytest.raises(UserError, match=problem) as told:
            Sft(Sft.Config.model_validate(fields)).preflight(1)
        assert told.value.remedy

    assert good.preflight(1)["samples"] > 1
    monkeypatch.chdir(tmp_path)
    for name, value in (("model", "model"), ("data", "out"), ("heldout", "./out")):  # workers have other folders
        refused(rf"workload\.{name}: '{value}' is a path from ", **{name: value})
    for name in ("data", "heldout"):
        refused(r"no chat\.json", **{name: str(tmp_path)})
    refused(r"has no config\.json", model=str(tmp_path))
    text = config.read_text()
    for before, after, problem in (
        (
            '"max_position_embeddings": 256',
            '"max_position_embeddings": 128',
            r"256 positions .seq_len., the model .* 128",
        ),
        ('"model_type": "llama"', '"model_type": "gpt2"', "a model of type 'gpt2'; fine-tuned are llama, "),
        ('"model_type": "llama"', '"model_type": "deepseek_v3"', "a model of type 'deepseek_v3'"),
    ):
        assert before in text
        config.write_text(text.replace(before, after))
        refused(problem)
    config.write_text(text)
    refused("320 token ids, the model .* 300", model=str(write_model(tmp_path / "few", vocab_size=300)))
    other = write_tokenizer(tmp_path / "other", CHATML)
    prepare([str(tmp_path / "in.jsonl")], str(other), str(tmp_path / "others"), ChatOptions(256))
    config.write_text(text)
    refused("prepared with another tokenizer or chat template", heldout=str(tmp_path / "others"))
    small = write_tokenizer(tmp_path / "small", MARKED, vocab_size=280)
    prepare([str(tmp_path / "in.jsonl")], str(small), str(tmp_path / "smalls"), ChatOptions(256))
    refused(
        "prepared with another tokenizer than that in", data=str(tmp_path / "smalls"), heldout=str(tmp_path / "smalls")
    )
