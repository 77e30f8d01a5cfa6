"""A checkpoint becomes a Hugging Face folder and comes back; evaluation and generation read it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from typer.testing import CliRunner

from shoal.cli import model as commands
from shoal_core.ckpt import alone
from shoal_core.ckpt.folder import Folder
from shoal_core.ckpt.marker import MARKER, seal
from shoal_core.ckpt.whole import Checkpoint as Stored
from shoal_core.errors import UserError
from shoal_core.workload import ORIGIN
from shoal_data.reading.reader import Corpus
from shoal_workloads.checkpoint import Checkpoint
from shoal_workloads.config import PretrainConfig
from shoal_workloads.evaluate import bits_per_byte, build_model
from shoal_workloads.generate import generate
from shoal_workloads.hf.export import _write_tokenizer, export
from shoal_workloads.hf.load import import_checkpoint
from shoal_workloads.pretrain import Pretrain
from tests.support.checkpoints import write_checkpoint
from tests.support.corpora import EOS, write_corpus


@pytest.fixture(scope="module")
def section(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    corpus = str(write_corpus(tmp_path_factory.mktemp("corpus") / "c"))
    return {
        "model": {"preset": "laptop-1m", "vocab_size": 512, "n_layers": 3, "d_model": 32, "mtp_depth": 2},
        "data": {"corpus": corpus, "heldout": corpus, "seq_len": 32},
        "batch": {"global_batch": 8, "micro_batch": 8},
        "schedule": {"budget": 30 * 256, "lr": 1e-2, "warmup_steps": 2, "gamma": 0.01},
        "ema_decay": 0.5,
    }


@pytest.fixture(scope="module")
def checkpoint(section: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(section, tmp_path_factory.mktemp("run"), steps=20)


def tokens_of(section: dict[str, Any], text: str) -> torch.Tensor:
    tokenizer = Tokenizer.from_file(f"{section['data']['corpus']}/tokenizer.json")
    return torch.tensor([tokenizer.encode(text).ids])


@pytest.mark.parametrize("ema", [False, True])
def test_transformers_loads_the_export(checkpoint: Path, section: dict[str, Any], tmp_path: Path, ema: bool) -> None:
    figures = export(checkpoint, tmp_path / "hf", ema=ema, dtype="fp32")
    theirs, loading = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert sum(p.numel() for p in theirs.parameters()) <= figures["parameters"]
    text = "def merge(*iterables, key=None):\n    return"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    assert torch.equal(ids, tokens_of(section, text))
    assert tokenizer.decode(ids[0]) == text
    with torch.no_grad():
        ours = build_model(Checkpoint(checkpoint), ema=ema).logits(ids)
        assert torch.allclose(theirs(ids).logits, ours, atol=2e-5)
    biases = theirs.model.layers[1].mlp.gate.e_score_correction_bias
    assert biases.abs().sum() > 0


def test_there_and_back(checkpoint: Path, section: dict[str, Any], tmp_path: Path) -> None:
    export(checkpoint, tmp_path / "hf", mtp=True, dtype="fp32")
    import_checkpoint(tmp_path / "hf", section, tmp_path / "back")
    before, after = Checkpoint(checkpoint), Checkpoint(tmp_path / "back")
    old, new = before.weights(), after.weights()
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)
    assert any(old[name].abs().sum() > 0 for name in old if name.startswith("router_bias"))
    assert after.steps == 0
    averages = after.weights(ema=True)
    assert all(torch.equal(averages[name], new[name]) for name in new)


def test_mtp_modules_that_a_checkpoint_lacks_are_those_of_a_new_run(
    checkpoint: Path, section: dict[str, Any], tmp_path: Path
) -> None:
    export(checkpoint, tmp_path / "hf", dtype="fp32")
    import_checkpoint(tmp_path / "hf", section, tmp_path / "back")
    new = Pretrain(PretrainConfig.model_validate(section)).build(0).state_dict()
    old = Checkpoint(checkpoint).weights()
    for found in (Checkpoint(tmp_path / "back").weights(), Checkpoint(tmp_path / "back").weights(ema=True)):
        assert found.keys() == old.keys()
        for name, tensor in found.items():
            expected = new[f"model.{name}"] if name.startswith("mtp.") else old[name]
            if name in ("router_bias.2", "router_bias.3"):  # of the two modules
                expected = torch.zeros_like(tensor)
            assert torch.equal(tensor, expected), name


def test_what_import_refuses(checkpoint: Path, section: dict[str, Any], tmp_path: Path) -> None:
    export(checkpoint, tmp_path / "hf", dtype="fp32")
    weights = load_file(tmp_path / "hf" / "model.safetensors")

    def broken(change: dict[str, torch.Tensor | None], config: dict[str, Any] | None = None) -> str:
        folder = tmp_path / "broken"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "hf", folder)
        found = {name: tensor for name, tensor in {**weights, **change}.items() if tensor is not None}
        save_file(found, folder / "model.safetensors")
        written = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**written, **(config or {})}))
        with pytest.raises(UserError) as error:
            import_checkpoint(folder, section, tmp_path / "never")
        assert not (tmp_path / "never").exists()
        return str(error.value)

    bias = "model.layers.1.mlp.gate.e_score_correction_bias"
    assert f"{bias} is missing" in broken({bias: None})
    assert "extra tensor model.layers.7.x" in broken({"model.layers.7.x": torch.zeros(1)})
    assert "model.norm.weight has shape [31], expected [32]" in broken({"model.norm.weight": torch.zeros(31)})
    assert "['LlamaForCausalLM']" in broken({}, {"architectures": ["LlamaForCausalLM"]})
    assert "norm_topk_prob is False, expected True" in broken({}, {"norm_topk_prob": False})
    assert "top_k" in broken({}, {"num_experts_per_tok": 99})
    integers = weights["model.norm.weight"].to(torch.int16)
    assert "model.norm.weight is of type I16" in broken({"model.norm.weight": integers})
    assert "not finite" in broken({"model.norm.weight": weights["model.norm.weight"] * math.nan})
    for huge in ("hidden_size", "vocab_size"):  # refused before any of it is allocated
        assert "has shape" in broken({}, {huge: 1 << 40})
    assert "and more than 1,000 more" in broken({}, {"num_hidden_layers": 1000})
    assert "less than or equal to 1000" in broken({}, {"num_hidden_layers": 1 << 20})
    assert "is missing, expected shape" in broken({}, {"num_nextn_predict_layers": 2})
    assert "has shape" in broken({}, {"n_routed_experts": 4096})
    for odd in ({"architectures": 5}, {"rope_parameters": [1]}, {"hidden_size": None}, {"initializer_range": math.inf}):
        assert "config.json" in broken({}, odd)
    said = broken({}, {"hidden_size": -(10**400)})  # the value is not repeated, and pydantic's pages are not advertised
    assert "(hidden_size: Input should be greater than 0)" in said
    assert "https" not in said
    with pytest.raises(UserError, match="exists"):
        export(checkpoint, tmp_path / "hf")
    with pytest.raises(UserError, match="a checkpoint after training"):
        import_checkpoint(tmp_path / "hf", section, tmp_path / "step-00000007")
    shutil.copy(tmp_path / "hf" / "model.safetensors", tmp_path / "hf" / "twice.safetensors")
    with pytest.raises(UserError, match=r"twice.safetensors: holds \S+, as another file does"):
        import_checkpoint(tmp_path / "hf", section, tmp_path / "never")
    (tmp_path / "hf" / "twice.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(UserError, match=r"twice.safetensors: cannot be read as safetensors"):
        import_checkpoint(tmp_path / "hf", section, tmp_path / "never")
    with pytest.raises(UserError, match="no finished checkpoint"):
        export(tmp_path, tmp_path / "new")


def test_damage_is_read_by_nobody(checkpoint: Path, tmp_path: Path) -> None:
    """A bit of a weight, a marker's model of another size, and a state that had diverged."""
    damaged = tmp_path / checkpoint.name
    shutil.copytree(checkpoint, damaged)
    (part,) = damaged.glob("*.safetensors")
    content = bytearray(part.read_bytes())
    block = Stored.open(Folder.at(damaged)).index.tensors["model.embedding.weight"].blocks[0]
    content[block.at + block.bytes // 2] ^= 0x40
    part.write_bytes(content)
    readers: list[Callable[[Path], object]] = [
        lambda path: Checkpoint(path).load(Checkpoint(path).shapes),
        lambda path: export(path, tmp_path / "hf"),
    ]
    for read in readers:
        with pytest.raises(UserError, match=r"-00000.safetensors: differs from what was committed"):
            read(damaged)
    shutil.rmtree(damaged)
    shutil.copytree(checkpoint, damaged)
    marker = json.loads((damaged / MARKER).read_text())
    marker["workload"]["model"]["d_model"] = 1 << 16
    (damaged / MARKER).write_text(json.dumps({**marker, "seal": seal(marker)}))
    with pytest.raises(UserError, match=r"tensor model.embedding.weight has shape \[512, 32\], its marker's model"):
        Checkpoint(damaged)
    assert not (tmp_path / "hf").exists()
    assert not list(tmp_path.glob(".hf*"))

    real = alone.read_boxes

    def diverged(stored: Stored, boxes: Any) -> Any:
        return {name: [part * math.inf for part in parts] for name, parts in real(stored, boxes).items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alone, "read_boxes", diverged)
        with pytest.raises(UserError, match="not finite"):
            export(checkpoint, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_another_tokenizer_than_the_one_trained_with_is_refused(
    checkpoint: Path, section: dict[str, Any], tmp_path: Path
) -> None:
    other, corpus = write_corpus(tmp_path / "other", 390), section["data"]["corpus"]
    digest = Pretrain(PretrainConfig.model_validate(section)).identity()["data"]["tokenizer"]
    named = tmp_path / checkpoint.name
    shutil.copytree(checkpoint, named)
    marker = json.loads((named / MARKER).read_text())
    marker["workload"][ORIGIN] = {"start": None, "steps": 0, "samples": 0, "data": {"tokenizer": digest}}
    (named / MARKER).write_text(json.dumps({**marker, "seal": seal(marker)}))
    assert bits_per_byte(named, corpus, samples=1)["samples"] == 1
    with pytest.raises(UserError, match="is not the one that"):
        bits_per_byte(named, other, samples=1)


def test_bits_per_byte_is_that_of_training(checkpoint: Path, section: dict[str, Any]) -> None:
    """Against a plain cross-entropy over the text, and against the evaluation a replica does."""
    found = bits_per_byte(checkpoint, section["data"]["corpus"], samples=6)
    replica = Pretrain(PretrainConfig.model_validate({**section, "eval": {"samples": 6}})).build(0)
    weights = Checkpoint(checkpoint).load(replica.state_dict().keys())
    for name, tensor in replica.state_dict().items():
        tensor.copy_(weights[name])
    replica.loaded(20)
    assert replica.eval_metrics(replica.evaluate(0, 1))["bpb"] == pytest.approx(found["bpb"], rel=1e-5)

    model, nats, size = build_model(Checkpoint(checkpoint)), 0.0, 0
    data = replica._heldout
    assert data is not None
    tokens, lengths = data.tokens(range(6)), data.lengths(range(6))
    with torch.no_grad():
        logits = model.logits(tokens[:, :-1])
    nats = float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum"))
    size = sum(lengths)
    assert found["bpb"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert found["bpb"] < 7


def test_speculative_output_is_the_greedy_one(checkpoint: Path, section: dict[str, Any]) -> None:
    model = build_model(Checkpoint(checkpoint))
    prompt = tokens_of(section, "    def __init__(self, width=70")[0].tolist()
    plain = generate(model, prompt, 40)
    drafted = generate(model, prompt, 40, speculative=True)
    assert drafted.tokens == plain.tokens
    assert (plain.passes, plain.drafted) == (40, 0)
    assert drafted.accepted > 0
    assert drafted.passes < plain.passes
    assert drafted.passes + drafted.accepted >= 40
    sampled = [generate(model, prompt, 10, temperature=1.0, seed=seed).tokens for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]


def test_commands(checkpoint: Path, section: dict[str, Any], tmp_path: Path) -> None:
    import typer

    app = typer.Typer()
    app.command()(commands.export)
    app.command("import")(commands.import_)
    app.command()(commands.generate)
    app.command()(commands.params)
    app.add_typer(commands.eval_app, name="eval")

    def call(*arguments: str) -> str:
        result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    assert json.loads(call("params", "deepseek-v3"))["total"] == 671_026_404_352
    with pytest.raises(UserError, match="top_k"):
        call("params", "deepseek-v3", "top_k=200")
    call("export", str(checkpoint), str(tmp_path / "hf"), "--ema")
    (tmp_path / "job.yaml").write_text(json.dumps({"workload": section}))
    call("import", str(tmp_path / "hf"), str(tmp_path / "job.yaml"), str(tmp_path / "step-00000000"))
    found = call("eval", "bpb", str(tmp_path / "step-00000000"), "--data", section["data"]["corpus"], "--samples", "4")
    line = call("eval", "bpb", str(checkpoint), "--data", section["data"]["corpus"], "--samples", "1", "--json")
    assert json.loads(line.strip())["samples"] == 1
    assert "\n" not in line.strip()
    assert 0 < json.loads(found)["bpb"] < 8
    assert "accepted" in call("generate", str(checkpoint), "def f(", "--tokens", "8", "--speculative")


def test_preflight_names_what_is_wrong(section: dict[str, Any]) -> None:
    def refuse(workers: int, **changes: Any) -> str:
        merged = {**section, **{k: {**section[k], **v} if k in section else v for k, v in changes.items()}}
        with pytest.raises(UserError) as error:
            Pretrain(PretrainConfig.model_validate(merged)).preflight(workers)
        return str(error.value)

    assert "data.corpus" in refuse(1, model={"vocab_size": 100})
    assert "parallel.ep: 2 does not divide the 3 workers" in refuse(3, parallel={"ep": 2})
    assert "parallel.ep: 3 does not divide 16 experts" in refuse(3, parallel={"ep": 3})
    relative = {"corpus": os.path.relpath(section["data"]["corpus"])}
    assert "workload.data.corpus: " in refuse(1, data=relative)
    assert f"share: {section['data']['corpus']}" in refuse(1, data=relative)
    assert np.isfinite(Pretrain(PretrainConfig.model_validate(section)).preflight(1)["parameters"])


def test_the_export_ends_documents_as_the_corpus_does(
    section: dict[str, Any], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = shutil.copytree(section["data"]["corpus"], tmp_path / "corpus")
    tokenizer = json.loads((corpus / "tokenizer.json").read_bytes())
    tokenizer["added_tokens"].insert(0, {"id": 1, "content": "<|sender|>", "special": True})  # "end" is in its name
    (corpus / "tokenizer.json").write_text(json.dumps(tokenizer))
    manifest = json.loads((corpus / "manifest.json").read_bytes())
    digest = hashlib.sha256((corpus / "tokenizer.json").read_bytes()).hexdigest()
    manifest["files"]["tokenizer"]["sha256"] = digest
    (corpus / "manifest.json").write_text(json.dumps(manifest))
    source = Checkpoint(checkpoint)
    monkeypatch.setattr(Checkpoint, "fits", lambda *_: None)  # it was trained on the corpus without this token
    opened = Corpus.open(corpus)
    monkeypatch.setattr(Corpus, "open", staticmethod(lambda _: opened))
    assert _write_tokenizer(source, tmp_path) == 0
    settings = json.loads((tmp_path / "tokenizer_config.json").read_bytes())
    assert settings["eos_token"] == settings["pad_token"] == EOS
