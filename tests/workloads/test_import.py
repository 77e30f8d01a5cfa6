"""`shoal import` of FP8 checkpoints in the public form: the values, what is read by whom, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import distributed as dist
from torch.distributed.tensor import DTensor

from benchmarks.import_hf import multiplied_out, write_fp8
from shoal.checkpoint import load
from shoal.resume import find, state_differs
from shoal_core.ckpt.folder import Folder
from shoal_core.ckpt.moving import copy
from shoal_core.ckpt.whole import Checkpoint as Stored
from shoal_core.errors import UserError
from shoal_workloads.checkpoint import Checkpoint
from shoal_workloads.config import PretrainConfig
from shoal_workloads.evaluate import build_model
from shoal_workloads.hf import load as load_module
from shoal_workloads.hf.files import INDEX, Files
from shoal_workloads.hf.load import import_checkpoint
from shoal_workloads.model.config import ModelConfig
from shoal_workloads.optimizer import Optimizer
from shoal_workloads.parallel.layout import layout_of, shard_model
from shoal_workloads.shapes import state_of

SECTION: dict[str, Any] = {
    "model": {},
    "data": {"corpus": "none", "seq_len": 32},
    "batch": {"global_batch": 2, "micro_batch": 1},
}
WEIGHT = "model.layers.1.mlp.experts.3.down_proj.weight"


@pytest.fixture(scope="module")
def shape() -> ModelConfig:
    """Widths that blocks of 128 divide, and some that they do not."""
    return ModelConfig(
        vocab_size=128,
        d_model=160,
        n_layers=3,
        n_dense=1,
        n_heads=2,
        d_head=64,
        d_rope=16,
        d_v=64,
        d_kv=128,
        d_q=144,
        n_experts=4,
        n_shared=1,
        top_k=2,
        d_expert=136,
        d_ffn=256,
        n_groups=1,
        topk_groups=1,
        route_scale=2.5,
        mtp_depth=1,
    )


@pytest.fixture(scope="module")
def source(shape: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fp8") / "hf"
    write_fp8(folder, shape, 400_000)
    return folder


@pytest.fixture(scope="module")
def imported(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "checkpoints" / "step-00000000"
    import_checkpoint(source, SECTION, out)
    return out


def test_logits_are_those_of_transformers_on_weights_that_are_multiplied_out(
    source: Path, imported: Path, shape: ModelConfig, tmp_path: Path
) -> None:
    where = json.loads((source / INDEX).read_text())["weight_map"]
    assert len(set(where.values())) > 2
    apart = [name for name in where if f"{name}_scale_inv" in where and where[name] != where[f"{name}_scale_inv"]]
    assert len(apart) > 10  # scales that lie in another file than their weights
    names = {name for name in where if not name.endswith("_scale_inv")}
    weights = multiplied_out(source, names)
    save_file({name: tensor for name, tensor in weights.items()}, tmp_path / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps({**config, "torch_dtype": "float32"}))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    ours = build_model(Checkpoint(imported))
    tokens = torch.randint(shape.vocab_size, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(tokens).logits
        assert (ours.logits(tokens) - expected).abs().max() <= 1e-5 * expected.abs().max()

    mtp, found = f"model.layers.{shape.n_layers}", Checkpoint(imported).weights()
    for theirs_name, name in {"enorm": "embedding_norm", "hnorm": "hidden_norm", "shared_head.norm": "norm"}.items():
        assert torch.equal(found[f"mtp.0.{name}.weight"], weights[f"{mtp}.{theirs_name}.weight"])
    of_embedding, of_hidden = weights[f"{mtp}.eh_proj.weight"].chunk(2, dim=1)
    assert torch.equal(found["mtp.0.merge.weight"], torch.cat([of_hidden, of_embedding], dim=1))
    assert torch.equal(found["mtp.0.block.attention.wkv_b.weight"], weights[f"{mtp}.self_attn.kv_b_proj.weight"])
    bias = weights[f"{mtp}.mlp.gate.e_score_correction_bias"]
    assert torch.equal(found["router_bias.2"], bias)
    for e in range(shape.n_experts):
        gate, up, down = (weights[f"{mtp}.mlp.experts.{e}.{kind}_proj.weight"] for kind in ("gate", "up", "down"))
        assert torch.equal(found["mtp.0.block.ffn.experts.gate_up"][e], torch.cat([gate, up]))
        assert torch.equal(found["mtp.0.block.ffn.experts.down"][e], down)


def test_of_moments_nothing_is_stored_and_they_are_zero(imported: Path, tmp_path: Path) -> None:
    stored = Stored.open(Folder.at(imported))
    stored.verify()
    found = Checkpoint(imported)
    moments = [name for name in found.shapes if name.startswith("adam_")]
    assert moments
    assert all(not tensor.any() for tensor in found.load(moments).values())
    numel = sum(torch.Size(shape).numel() for name, shape in found.shapes.items() if name.startswith("model."))
    assert sum(path.stat().st_size for path in imported.glob("*.safetensors")) < 4.2 * numel
    resumed = find(imported.parents[1])  # by a run whose storage this is
    assert resumed.folder is not None
    assert resumed.folder.address == str(imported)
    assert state_differs(resumed.tensors, state_of(found.config)) == ""
    copy(stored, Folder.at(tmp_path / imported.name))
    before, after = found.weights(), Checkpoint(tmp_path / imported.name).weights()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def started(section: dict[str, Any], address: str) -> tuple[int, dict[str, float], bool]:
    """As a cell begins from the checkpoint: bytes this rank read, sums of its shards, and whether moments are zero."""
    config = PretrainConfig.model_validate(section)
    model, shards = shard_model(config.model, layout_of("cpu", config.parallel), device="cpu")
    biases = [moe.router.bias for moe in model.moe_layers()]
    optimizer = Optimizer(config, [shard.local for shard in shards], biases)
    state: dict[str, Any] = {f"router_bias.{i}": bias for i, bias in enumerate(biases)}
    for kind, tensors in optimizer.kinds().items():
        for shard, local in zip(shards, tensors, strict=True):
            local.fill_(7.0)
            state[f"{kind}.{shard.name}"] = shard.whole(local)
    read = load(Folder.at(address), state, dist.group.WORLD).bytes
    here = {name: value.to_local() if isinstance(value, DTensor) else value for name, value in state.items()}
    sums = {name: float(value.double().sum()) for name, value in here.items() if name.startswith("model.")}
    return read, sums, not any(value.any() for name, value in here.items() if name.startswith("adam_"))


def test_each_rank_of_a_run_that_starts_from_it_reads_its_part(imported: Path, pair: Any) -> None:
    section = {**SECTION, "model": Checkpoint(imported).config.model.model_dump()}
    answers = pair.run(started, section, str(imported))
    found = Stored.open(Folder.at(imported))
    held = sum(block.bytes for name, block in found.index.blocks() if name != "guard")
    read = [one for one, _, _ in answers]
    assert held <= sum(read) <= 1.05 * held  # a block that both hold a part of is read twice
    assert max(read) <= 1.05 * sum(read) / 2
    weights = Checkpoint(imported).weights()
    for name in answers[0][1]:
        both = sum(sums[name] for _, sums, _ in answers)
        assert both == pytest.approx(float(weights[name.removeprefix("model.")].double().sum()), rel=1e-6, abs=1e-6)
    assert all(zero for _, _, zero in answers)


def test_each_byte_of_the_checkpoint_is_read_once_and_soon_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    real = Files.read

    def counted(self: Files, name: str, box: Any = None) -> torch.Tensor:
        found = real(self, name, box)
        if not name.endswith("_scale_inv"):
            read.append(found.nbytes)
        return found

    monkeypatch.setattr(Files, "read", counted)
    made, real_values = list[int](), load_module.part_values

    def values(*words: Any) -> torch.Tensor:
        found = real_values(*words)
        made.append(found.nbytes)
        return found

    monkeypatch.setattr(load_module, "part_values", values)
    told: list[tuple[int, int]] = []
    ahead: list[int] = []

    def progress(done: int, size: int) -> None:
        told.append((done, size))
        ahead.append(sum(made) - done)

    figures = import_checkpoint(source, SECTION, tmp_path / "out", progress)
    assert max(ahead) <= load_module.AHEAD * max(made)  # what is in memory, but for what is being hashed
    files = Files.open(source)
    copies = [name for name in files.tensors if "layers.3.embed" in name or "shared_head.head" in name]
    taken = [stored.bytes for name, stored in files.tensors.items() if "_scale_inv" not in name and name not in copies]
    assert sum(read) == sum(taken)
    done = [one for one, _ in told]
    assert done == sorted(set(done))
    assert {total for _, total in told} == {done[-1]}
    assert figures["bytes"] == sum(path.stat().st_size for path in source.glob("*.safetensors"))
    assert figures["written"] >= told[-1][1]


def test_what_is_refused_before_anything_is_written(source: Path, tmp_path: Path) -> None:
    where = json.loads((source / INDEX).read_text())["weight_map"]

    def broken(change: dict[str, torch.Tensor | None], config: dict[str, Any] | None = None, **index: Any) -> str:
        """What is said of the checkpoint with tensors changed or left out."""
        folder = tmp_path / "broken"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        for name, tensor in change.items():
            content = load_file(folder / where[name])
            del content[name]
            save_file(content if tensor is None else {**content, name: tensor}, folder / where[name])
        kept = {name: file for name, file in where.items() if change.get(name, ...) is not None}
        (folder / INDEX).write_text(json.dumps({"weight_map": {**kept, **index.get("index", {})}}))
        said = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**said, **(config or {})}))
        if "cut" in index:
            with (folder / index["cut"]).open("r+b") as file:
                file.truncate((folder / index["cut"]).stat().st_size - 1)
        if "gone" in index:
            (folder / index["gone"]).unlink()
        with pytest.raises(UserError) as error:
            import_checkpoint(folder, SECTION, tmp_path / "step-00000000")
        assert not list(tmp_path.glob("*step-00000000*"))
        assert error.value.remedy
        return str(error.value)

    scale, first = f"{WEIGHT}_scale_inv", min(where.values())
    said = broken({scale: None})
    assert f"{where[WEIGHT]}: {WEIGHT} is FP8, and its scale {scale} is in none of the files" in said
    assert f"{where[scale]}: {scale} is [1, 1] F32, expected [2, 2] F32" in broken({scale: torch.ones(1, 1)})
    assert f"{scale} is a scale, and its weight is BF16" in broken({WEIGHT: torch.ones(160, 136, dtype=torch.bfloat16)})
    assert f"{WEIGHT} is missing" in broken({WEIGHT: None})
    assert f"{where[WEIGHT]}: {WEIGHT} has shape [2, 2]" in broken({WEIGHT: torch.ones(2, 2)})
    assert f"{WEIGHT} is of type I8" in broken({WEIGHT: torch.ones(160, 136, dtype=torch.int8)})
    assert f"{first}: is cut off" in broken({}, cut=first)
    assert f"{first}: is missing, and {INDEX} names it" in broken({}, gone=first)
    assert "holds no tensor model.more" in broken({}, index={"model.more": first})
    assert "quantization_config" in broken({}, {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    assert "expected [3, 3]" in broken(
        {}, {"quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [64, 64]}}
    )
    assert "has no weight_map of names to files" in broken({}, index={"model.more": 5})
    yarn = {"type": "yarn", "factor": 4}
    scaled = yarn | {"beta_fast": "32", "original_max_position_embeddings": 64}
    for field, value, words in (
        ("architectures", 5, "architectures is 5, expected ['DeepseekV3ForCausalLM']"),
        ("rope_parameters", [1], "rope_parameters is no object but list"),
        ("rope_scaling", yarn, "no field 'original_max_position_embeddings' in rope_scaling"),
        ("rope_scaling", scaled, "(beta_fast: Input should be a valid number)"),
        ("num_hidden_layers", "3", "(num_hidden_layers: Input should be a valid integer)"),
        ("rms_norm_eps", "1e-6", "(rms_norm_eps: Input should be a valid number)"),
        ("n_shared_experts", True, "(n_shared_experts: Input should be a valid integer)"),
        ("q_lora_rank", -4, "(q_lora_rank: Input should be greater than 0)"),
        # it is not repeated
        ("hidden_size", 10**400, f"(hidden_size: Input should be less than or equal to {1 << 40})"),
    ):
        said = broken({}, {"rope_parameters": None, field: value})
        assert "config.json" in said
        assert words in said
    wrong = load_file(source / where[scale])[scale] * torch.nan
    assert f"{WEIGHT} holds values that are not finite" in broken({scale: wrong})
    (tmp_path / "odd").mkdir()
    shutil.copy(source / "config.json", tmp_path / "odd")
    for content in (b"", b"\xff" * 100, (20).to_bytes(8, "little") + b'{"a":{"dtype":"F32"}}', b"\2\0\0\0\0\0\0\0[]"):
        (tmp_path / "odd" / "model.safetensors").write_bytes(content)
        with pytest.raises(UserError, match=r"model.safetensors: cannot be read as safetensors"):
            import_checkpoint(tmp_path / "odd", SECTION, tmp_path / "step-00000000")
    makers: list[Callable[[Path], object]] = [lambda path: path.symlink_to("nowhere"), os.mkfifo, os.mkdir]
    for number, make in enumerate(makers):  # for a pipe nobody waits
        (tmp_path / str(number)).mkdir()
        make(tmp_path / str(number) / "model.safetensors")
        with pytest.raises(UserError, match=r"model.safetensors: is no file, nor a link to one"):
            Files.open(tmp_path / str(number))
    for second, what in ((4, "a and b overlap"), (12, "a and b have bytes between them")):
        places = {"a": [0, 8], "b": [second, second + 8]}
        held = {name: {"dtype": "F32", "shape": [2], "data_offsets": place} for name, place in places.items()}
        head = json.dumps(held).encode()
        (tmp_path / "odd" / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + b"x" * 20)
        with pytest.raises(UserError, match=f"model.safetensors: cannot be read as safetensors .{what}"):
            Files.open(tmp_path / "odd")


def test_links_to_files_elsewhere_are_followed(source: Path, tmp_path: Path) -> None:
    """As in the cache of Hugging Face's hub."""
    (tmp_path / "snapshot").mkdir()
    for path in source.iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    assert Files.open(tmp_path / "snapshot").tensors == Files.open(source).tensors


def test_what_an_import_left_that_ended_early_is_in_nobodys_way(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "step-00000000"

    def stopped(done: int, size: int) -> None:
        if done > size / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_checkpoint(source, SECTION, out, stopped)
    assert not out.exists()
    out.mkdir()
    left = [".g0-0a-00000.safetensors.0123456789ab.tmp", "g0-0a-00000.safetensors", "g0-0a.index.json"]
    for name in left:  # as after a kill at different times
        (out / name).write_bytes(b"half")
    import_checkpoint(source, SECTION, out)
    Stored.open(Folder.at(out)).verify()
    assert not {path.name for path in out.iterdir()} & set(left)
    with pytest.raises(UserError, match="exists"):
        import_checkpoint(source, SECTION, out)
    kept = {"step-00000005": left, "run": [*left, "run.json"], "step-00000000.old": [*left, "ASIDE-0a.json"]}
    for name, files in kept.items():  # another's save that may be under way, a run, what was set aside
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_bytes(b"theirs")
        with pytest.raises(UserError, match="exists"):
            import_checkpoint(source, SECTION, tmp_path / name)
        assert {path.name for path in (tmp_path / name).iterdir()} == set(files)


@pytest.mark.long
def test_an_import_that_is_killed_leaves_no_checkpoint_and_its_place_is_free(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "checkpoints" / "step-00000000"
    program = (
        "import sys, time; from shoal_workloads.hf.load import import_checkpoint\n"
        "def slow(done, size):\n"
        "    print(done, flush=True); time.sleep(60 if done > size / 2 else 0)\n"
        f"import_checkpoint({str(source)!r}, {SECTION!r}, {str(out)!r}, slow)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        while len(list(out.glob(".*"))) == 0 and child.poll() is None:
            assert child.stdout.readline()
            time.sleep(0.01)
        os.kill(child.pid, signal.SIGKILL)
    assert list(out.iterdir())
    with pytest.raises(UserError, match="no finished checkpoint"):
        Checkpoint(out)
    import_checkpoint(source, SECTION, out)
    Stored.open(Folder.at(out)).verify()
    assert not list(out.glob(".*"))
    with pytest.raises(UserError, match="exists"):
        import_checkpoint(source, SECTION, out)
