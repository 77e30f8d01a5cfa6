"""Models of `transformers` from checkpoints it saved, each worker its rows: held against `from_pretrained`."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from shoal_core.ckpt.boxes import Box, whole
from shoal_core.errors import UserError
from shoal_workloads.hf import fill as fill_module
from shoal_workloads.hf.fill import Target, fill, ties_of

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
CONFIGS = {
    "llama": transformers.LlamaConfig(**SIZES, tie_word_embeddings=False),
    "llama tied": transformers.LlamaConfig(**SIZES, tie_word_embeddings=True),
    "qwen2": transformers.Qwen2Config(**SIZES, tie_word_embeddings=False),
    "qwen3 tied": transformers.Qwen3Config(**SIZES, tie_word_embeddings=True),
}


def saved(config: Any, folder: Path, **how: Any) -> Path:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(config))  # saving writes its type into it
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.to(torch.bfloat16).save_pretrained(folder, **how)
    return folder


def parts(model: nn.Module, rank: int, ranks: int) -> list[Target]:
    """The rows of a rank, as FSDP cuts them: the last may be few or none."""
    found = []
    for name, p in model.named_parameters():
        each = -(-len(p) // ranks)
        local = p.detach()[rank * each : (rank + 1) * each]
        first = min(rank * each, len(p))
        found.append(Target(name, tuple(p.shape), Box((first, *(0,) * (p.dim() - 1)), tuple(local.shape)), local))
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_each_worker_reads_its_rows_and_all_are_the_model(name: str, tmp_path: Path) -> None:
    folder = saved(CONFIGS[name], tmp_path / "hf", max_shard_size="20KB")
    files = list(folder.glob("*.safetensors"))
    assert len(files) > 1
    held = {key: tensor for path in files for key, tensor in load_file(path).items()}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ours = transformers.AutoModelForCausalLM.from_config(CONFIGS[name])
    ties = ties_of(ours)
    assert ("tied" in name) == bool(ties) == ("lm_head.weight" not in held)
    read = [fill(folder, parts(ours, rank, 3), ties) for rank in range(3)]
    assert sum(read) == sum(tensor.nbytes for tensor in held.values())
    assert max(read) < 1.3 * sum(read) / 3
    for key, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], tensor), key
    tokens = torch.arange(20).view(2, 10)
    with torch.no_grad():
        assert torch.equal(ours(tokens).logits, theirs(tokens).logits)


def test_other_types_pieces_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A parameter of another type, read in several goes and across its columns; the further name of one that is tied; a
    buffer's name, which is not read."""
    values = torch.randn(20, 6).to(torch.float16)
    save_file({"head": values, "rotary.inv_freq": torch.ones(3)}, tmp_path / "model.safetensors")
    monkeypatch.setattr(fill_module, "AT_ONCE", 40)
    local = torch.zeros(20, 3, dtype=torch.bfloat16)
    target = Target("embedding", (20, 6), Box((0, 2), (20, 3)), local)
    assert fill(tmp_path, [target], {"embedding": ["head"]}, ["rotary.inv_freq"]) == 20 * 3 * 2
    assert torch.equal(local, values[:, 2:5].to(torch.bfloat16))
    with pytest.raises(UserError, match=r"the files have: rotary.inv_freq"):
        fill(tmp_path, [target], {"embedding": ["head"]})


def test_what_differs_is_told_by_name_before_anything_is_read(tmp_path: Path) -> None:
    folder = saved(CONFIGS["llama"], tmp_path / "hf")
    held = load_file(folder / "model.safetensors")
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"])
    before = {name: p.clone() for name, p in model.named_parameters()}

    def broken(change: dict[str, torch.Tensor | None]) -> str:
        found = {name: tensor for name, tensor in {**held, **change}.items() if tensor is not None}
        save_file(found, folder / "model.safetensors")
        with pytest.raises(UserError) as error:
            fill(folder, parts(model, 0, 1), ties_of(model))
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
        assert error.value.remedy
        return str(error.value)

    norm = "model.norm.weight"
    assert f"the model has, and the files do not: {norm}" in broken({norm: None})
    said = broken({norm: None, "model.norm.scale": torch.ones(32)})
    assert f"do not: {norm}; the files have: model.norm.scale" in said
    assert "and 17 more" in broken({name: None for name in held if name != norm})
    assert f"model.safetensors: {norm} has shape [31], the model's has [32]" in broken({norm: torch.ones(31)})
    assert f"{norm} is of type I32" in broken({norm: torch.ones(32, dtype=torch.int32)})
    shutil.rmtree(folder)
    with pytest.raises(UserError, match=r"holds no \*.safetensors"):
        fill(folder, [Target("w", (1,), whole((1,)), torch.zeros(1))])
