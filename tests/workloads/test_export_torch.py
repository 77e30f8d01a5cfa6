"""A `TorchWorkload`'s checkpoint becomes what `from_pretrained`, or safetensors alone, opens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from typer.testing import CliRunner

from shoal.cli.main import app
from shoal_core.ckpt import alone
from shoal_core.ckpt.folder import Folder
from shoal_core.errors import UserError
from shoal_core.loading import make_workload
from shoal_workloads.hf import writing
from shoal_workloads.hf.export import export
from tests.support.torchmodels import Net

BATCH = {"global_batch": 4, "micro_batch": 4, "lr": 0.1, "weight_decay": 0.0}
SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **SIZES, "tie_word_embeddings": False},
    "qwen3 tied": {"model_type": "qwen3", **SIZES, "head_dim": 8, "tie_word_embeddings": True},
}


def trained(section: dict[str, Any], run: Path, steps: int = 1) -> tuple[Any, Path]:
    """A shard, alone, after some steps, and the checkpoint in `run` that was made of it."""
    workload = make_workload(section)
    shard = workload.build(0)
    for step in range(steps):
        first, last = workload.samples(step)
        shard.accumulate([range(first, last)])
        total = shard.sums()
        shard.commit(total, shard.stats(), shard.norm_sq(total))
    place = run / "checkpoints" / f"step-{steps:08d}"
    alone.write(Folder.at(place), shard.state_dict(), {"steps": steps, "samples": 4 * steps, "workload": section})
    return shard, place


def causal(**settings: Any) -> dict[str, Any]:
    return {"path": "tests.support.causal_lm:Causal", **BATCH, **settings}


@pytest.mark.parametrize("name", MODELS)
def test_from_pretrained_has_equal_logits(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard, _ = trained(causal(model=MODELS[name]), tmp_path / "run")
    monkeypatch.setattr(writing, "FILE_BYTES", 4000)
    monkeypatch.setattr(writing, "AT_ONCE", 3000)
    words = ["export", str(tmp_path / "run"), str(tmp_path / "hf"), "--dtype", "fp32", "--json"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    said = json.loads(result.stdout)
    assert said["files"] == len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    assert said["checkpoint"].endswith("step-00000001")
    theirs, loading = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert theirs.config.architectures == [type(shard.model).__name__]
    assert theirs.dtype == torch.float32
    tokens = torch.arange(16).view(2, 8)
    with torch.no_grad():
        assert torch.equal(theirs(tokens).logits, shard.model.eval()(tokens).logits)
    with pytest.raises(UserError, match="exists"):
        export(tmp_path / "run", tmp_path / "hf")


def test_a_checkpoint_that_a_run_begins_from_comes_back_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(**MODELS["qwen3 tied"])
    before = transformers.AutoModelForCausalLM.from_config(config).bfloat16()
    before.save_pretrained(tmp_path / "began")
    section = causal(model=MODELS["qwen3 tied"], begins_from=str(tmp_path / "began"))
    trained(section, tmp_path / "run", steps=0)
    export(tmp_path / "run", tmp_path / "hf", dtype="bf16")
    one, other = (load_file(tmp_path / folder / "model.safetensors") for folder in ("began", "hf"))
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_averages_types_and_the_tokenizer_come_along(tmp_path: Path) -> None:
    began = tmp_path / "began"
    began.mkdir()
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "README.md"):
        (began / file).write_text(f"{{}} {file}")
    section = causal(model=MODELS["llama"], ema_decay=0.5)
    shard, place = trained(section, tmp_path / "run", steps=2)
    marked = {"steps": 2, "samples": 8, "workload": {**section, "begins_from": str(began)}}
    alone.write(Folder.at(place), shard.state_dict(), marked, replace=True)
    (began / "generation_config.json").write_text('{"temperature": 0.25}')
    said = export(place, tmp_path / "hf", ema=True)
    came = ["chat_template.jinja", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(said["beside"]) == came
    assert "0.25" in (tmp_path / "hf" / "generation_config.json").read_text()
    names = {path.name for path in (tmp_path / "hf").iterdir()}
    weights = {"model.safetensors", "config.json", "generation_config.json"}
    assert names == weights | {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    averages = {name.removeprefix("ema."): tensor for name, tensor in shard.state_dict().items() if "ema." in name}
    held = load_file(tmp_path / "hf" / "model.safetensors")
    assert held.keys() == averages.keys()
    assert all(torch.equal(tensor, averages[name].bfloat16()) for name, tensor in held.items())
    assert not torch.equal(averages["lm_head.weight"], shard.state_dict()["model.lm_head.weight"])
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["dtype"] == "bfloat16"
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="holds no tokenizer"):
        export(place, tmp_path / "other", tokenizer=str(tmp_path / "none"))
    assert not (tmp_path / "other").exists()


def test_another_model_is_safetensors_by_its_names(tmp_path: Path) -> None:
    shard, place = trained({"path": "tests.support.torchmodels:Language", **BATCH}, tmp_path / "run")
    export(place, tmp_path / "out", dtype="fp32")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]
    held = load_file(tmp_path / "out" / "model.safetensors")
    assert "head.weight" not in held  # it is the embedding
    assert torch.equal(held["shift"], shard.model.shift)
    config = make_workload({"path": "tests.support.torchmodels:Language", **BATCH}).config  # type: ignore[attr-defined]
    model = Net(config.width, config.layers, 0.0, held["temperature"].dim() == 0)
    missing, unexpected = model.load_state_dict(held, strict=False)
    assert (missing, unexpected) == (["head.weight"], [])
    words = torch.arange(10).view(1, 10)
    with torch.no_grad():
        assert torch.equal(model.eval()(words), shard.model.eval()(words))


def test_what_cannot_be_exported_is_told(tmp_path: Path) -> None:
    shard, place = trained(causal(model=MODELS["llama"]), tmp_path / "run")

    def said(section: dict[str, Any], **how: Any) -> str:
        alone.write(Folder.at(place), shard.state_dict(), {"steps": 1, "workload": section}, replace=True)
        with pytest.raises(UserError) as error:
            export(place, tmp_path / "never", **how)
        assert not list(tmp_path.glob("*never*"))
        assert error.value.remedy
        return str(error.value)

    assert "PYTHONPATH" in said({"path": "nowhere_to_be_found:Mine", **BATCH})
    smaller = {**MODELS["llama"], "vocab_size": 31}
    assert "model.model.embed_tokens.weight has shape [32, 16], the model's [31, 16]" in said(causal(model=smaller))
    assert "holds no averages" in said(causal(model=MODELS["llama"]), ema=True)
    assert "--with-mtp" in said(causal(model=MODELS["llama"]), mtp=True)
    assert "workload's settings" in said({**causal(model=MODELS["llama"]), "global_batch": -1})
    mixture = {"model_type": "qwen3_moe", **SIZES, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2}
    mixture["moe_intermediate_size"] = 8
    shard, place = trained(causal(model=mixture), tmp_path / "mixture")
    assert "under other names than it has in memory" in said(causal(model=mixture))
