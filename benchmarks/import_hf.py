"""`shoal import` of a synthetic FP8 checkpoint of DeepSeek-V3's architecture: peak memory, time, whether it is right.

    python benchmarks/import_hf.py [--gigabytes 8] [--file-gigabytes 1] [--folder DIR] [--json FILE]

The checkpoint is written file by file, in the public form: every matrix of attention and feed-forward networks in
float8_e4m3fn, its float32 scales of 128 x 128 blocks in another file, the rest in bf16, an MTP module as layer L. A
process of its own imports it; its peak memory is the kernel's `VmHWM`, which counts what is mapped of the libraries'
files as well (told beside it is what it was before the import began); the checkpoint is read without a map, so that
none of the page cache is in it. Before that another process reads the same files and writes as many bytes as the
import does, with fsync. Neither finds the checkpoint in the page cache. Then two models of embedding, first layer,
last layer, final norm and head are compared on tokens: `transformers`' with weights that are multiplied out here
block by block, and ours with what was imported; and the MTP module's tensors by value. It takes five times
--gigabytes of disk, and removes all.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from shoal_core.ckpt import alone
from shoal_core.ckpt.folder import Folder
from shoal_core.ckpt.whole import Checkpoint
from shoal_workloads.hf.config import to_hf_config
from shoal_workloads.hf.names import Part, parts_of
from shoal_workloads.hf.weights import box_of
from shoal_workloads.model.config import ModelConfig
from shoal_workloads.model.deepseek import DeepSeekV3
from shoal_workloads.params import count_parameters

BLOCK = 128
PLAIN = ("embed_tokens", "lm_head", "norm", "mlp.gate.", "eh_proj", "shared_head")
"""In the names of what the public checkpoint keeps in bf16."""
SCALE = 2e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=8.0)
    parser.add_argument("--file-gigabytes", type=float, default=1.0)
    parser.add_argument("--folder", type=Path, default=None, help="where to write; a temporary folder by default")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="shoal-import-", dir=args.folder) as name:
        found = measure(Path(name), shape_of(args.gigabytes * 1e9), int(args.file_gigabytes * 1e9))
    print(json.dumps(found, indent=2))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


def shape_of(size: float) -> ModelConfig:
    """A model in V3's proportions with so many layers that its checkpoint has about `size` bytes."""
    small = size < 5e8
    kinds: dict[str, Any] = {
        "vocab_size": 4096 if small else 32768,
        "d_model": 512 if small else 2048,
        "n_dense": 1,
        "n_heads": 4 if small else 16,
        "d_head": 128,
        "d_rope": 64,
        "d_v": 128,
        "d_kv": 512,
        "d_q": 768 if small else 1536,
        "n_experts": 16 if small else 64,
        "n_shared": 1,
        "top_k": 8,
        "d_expert": 256 if small else 1024,
        "d_ffn": 2048 if small else 8192,
        "n_groups": 8,
        "topk_groups": 4,
        "route_scale": 2.5,
        "mtp_depth": 1,
        "init_std": 0.02,
        "rope_theta": 1e4,
    }
    two = count_parameters(ModelConfig(**kinds, n_layers=2))
    three = count_parameters(ModelConfig(**kinds, n_layers=3))
    layers = 2 + max(0, round((size - two.total - two.mtp) / (three.total - two.total)))
    return ModelConfig(**kinds, n_layers=layers)


def write_fp8(folder: Path, c: ModelConfig, file_bytes: int, seed: int = 0) -> int:
    """Write a checkpoint of the model `c` with random weights, in files of about `file_bytes`; returns their bytes. The
    scales of one file's weights stand in the next."""
    folder.mkdir()
    random = np.random.default_rng(seed)
    files: list[list[str]] = []
    waiting: dict[str, torch.Tensor] = {}
    content: dict[str, torch.Tensor] = {}

    def flush() -> None:
        files.append(sorted(content))
        save_file(content, folder / f"part-{len(files):05d}.safetensors", metadata={"format": "pt"})
        content.clear()
        content.update(waiting)
        waiting.clear()

    first: dict[str, torch.Tensor] = {}
    for part in parts_of(c, mtp=True):
        if part.copy:
            content[part.theirs] = first[part.ours]
        elif any(plain in part.theirs for plain in PLAIN):
            content[part.theirs] = plain_values(part, random)
            if part.ours in ("embedding.weight", "head.weight"):
                first[part.ours] = content[part.theirs]
        else:
            bits = np.frombuffer(random.bytes(math.prod(part.shape)), dtype=np.uint8) & 0xFE  # 0x7f and 0xff are NaN
            content[part.theirs] = torch.from_numpy(bits).view(torch.float8_e4m3fn).view(part.shape)
            scales = [-(-size // BLOCK) for size in part.shape]
            waiting[f"{part.theirs}_scale_inv"] = torch.from_numpy(
                random.uniform(0.5 * SCALE, 1.5 * SCALE, scales).astype(np.float32)
            )
        if sum(tensor.nbytes for tensor in content.values()) >= file_bytes:
            flush()
    while content or waiting:
        flush()
    total = len(files)
    where = {}
    for at, names in enumerate(files, start=1):
        name = f"model-{at:05d}-of-{total:06d}.safetensors"
        (folder / f"part-{at:05d}.safetensors").rename(folder / name)
        where.update(dict.fromkeys(names, name))
    size = sum(path.stat().st_size for path in folder.iterdir())
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = to_hf_config(c, max_positions=4096, dtype="bfloat16", mtp=True, eos=None)
    config["quantization_config"] = {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [BLOCK, BLOCK],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return size


def plain_values(part: Part, random: np.random.Generator) -> torch.Tensor:
    """Of what is not quantised: norms about one, router biases in float32 and positive, the rest small."""
    drawn = torch.from_numpy(random.standard_normal(part.shape, dtype=np.float32))
    if part.theirs.endswith("e_score_correction_bias"):
        return drawn.abs()
    return (1 + 0.1 * drawn if len(part.shape) == 1 else 0.02 * drawn).to(torch.bfloat16)


def multiplied_out(folder: Path, wanted: set[str]) -> dict[str, torch.Tensor]:
    """Those weights of a checkpoint in float32, block by block as DeepSeek's `weight_dequant` has it."""
    where = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    names = {name for name in where if name.removesuffix("_scale_inv") in wanted}
    found: dict[str, torch.Tensor] = {}
    for file in sorted({where[name] for name in names}):
        content = load_file(folder / file)
        found.update({name: tensor.clone() for name, tensor in content.items() if name in names})
    for name in [name for name in found if name.endswith("_scale_inv")]:
        scales = found.pop(name)
        weight = found[name.removesuffix("_scale_inv")].float()
        for i in range(scales.shape[0]):
            for j in range(scales.shape[1]):
                weight[i * BLOCK : (i + 1) * BLOCK, j * BLOCK : (j + 1) * BLOCK] *= scales[i, j]
        found[name.removesuffix("_scale_inv")] = weight
    return {name: tensor.float() for name, tensor in found.items()}


def measure(folder: Path, c: ModelConfig, file_bytes: int) -> dict[str, Any]:
    source, target = folder / "hf", folder / "run" / "checkpoints" / "step-00000000"
    print(f"writing a checkpoint of {c.n_layers} layers", file=sys.stderr, flush=True)
    size = write_fp8(source, c, file_bytes)
    largest = max(path.stat().st_size for path in source.glob("*.safetensors"))
    count = count_parameters(c)
    out = 4 * (count.total + count.mtp)
    load = os.getloadavg()[0]
    forget(source)
    plain = child("plain", str(source), str(folder / "plain"), str(out))
    forget(source)
    ours = child("import", str(source), str(target))
    written = sum(path.stat().st_size for path in target.iterdir())
    file = max(path.stat().st_size for path in target.glob("*.safetensors"))
    peak = ours["peak"] - ours["before"]
    return {
        "load": load,
        "layers": c.n_layers,
        "checkpoint_bytes": size,
        "files": len(list(source.glob("*.safetensors"))),
        "largest_file": largest,
        "written_bytes": written,
        "largest_written": file,
        "vmhwm": ours["peak"],
        "vmhwm_before_import": ours["before"],
        "peak_of_two_files_and_the_largest_written": round(ours["peak"] / (2 * largest + file), 3),
        "peak_without_libraries_of_two_files": round(peak / (2 * largest), 3),
        "seconds": round(ours["seconds"], 1),
        "plain_seconds": round(plain["seconds"], 1),
        "time_of_plain_read_and_write": round(ours["seconds"] / plain["seconds"], 2),
        **compared(source, target, c),
    }


def forget(folder: Path) -> None:
    """Drop what the page cache has of the files."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def child(*words: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, __file__, "--child", *words], check=True, stdout=subprocess.PIPE)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def in_child(kind: str, source: str, target: str, *rest: str) -> dict[str, float]:
    if kind == "plain":
        return plain_copy(Path(source), Path(target), int(rest[0]))
    from shoal_workloads.hf.load import import_checkpoint

    workload = {"model": {}, "data": {"corpus": "none"}, "batch": {"global_batch": 1, "micro_batch": 1}}
    before, start = peak(), time.monotonic()
    import_checkpoint(source, workload, target)
    return {"seconds": time.monotonic() - start, "peak": peak(), "before": before}


def plain_copy(source: Path, target: Path, size: int) -> dict[str, float]:
    """Read all files and write so many bytes, of what was read, again and again; in pieces of 16 MiB, with fsync."""
    start = time.monotonic()
    written, piece = 0, b""
    with target.open("wb", buffering=0) as out:
        for path in sorted(source.iterdir()):
            with path.open("rb", buffering=0) as file:
                while read := file.read(1 << 24):
                    piece = read if len(read) == 1 << 24 else piece
                    for _ in range(4):
                        if written < size:
                            written += out.write(read[: size - written])
        while piece and written < size:
            written += out.write(piece[: size - written])
        os.fsync(out.fileno())
    seconds = time.monotonic() - start
    target.unlink()
    return {"seconds": seconds, "bytes": float(written)}


def peak() -> int:
    """Bytes: the most that lay in memory of this process so far."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


def compared(source: Path, target: Path, c: ModelConfig) -> dict[str, Any]:
    """Logits of embedding, first layer, last layer, norm and head; and the MTP module's tensors."""
    import transformers

    two = c.model_copy(update={"n_layers": 2, "mtp_depth": 0})
    names = {part.theirs: layer_of(part.theirs, c) for part in parts_of(two, mtp=False)}
    weights = multiplied_out(source, set(names.values()))
    written = to_hf_config(two, max_positions=4096, dtype="float32", mtp=False, eos=None)
    with torch.device("meta"):
        theirs = transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**written)).eval()
    state = stacked(two, {name: weights[actual] for name, actual in names.items()})
    del weights
    theirs.load_state_dict(state, assign=True, strict=False)
    theirs.model.rotary_emb = type(theirs.model.rotary_emb)(theirs.config)
    assert not any(tensor.is_meta for tensor in (*theirs.parameters(), *theirs.buffers()))
    tokens = torch.randint(c.vocab_size, (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(tokens).logits
    del theirs, state
    stored = Checkpoint.open(Folder.at(target))
    with torch.device("meta"):
        ours = DeepSeekV3(two)
    layers = {f"layers.{1}.": f"layers.{c.n_layers - 1}."}
    found = {}
    for name, _ in ours.named_parameters():
        actual = next(
            (last + name.removeprefix(first) for first, last in layers.items() if name.startswith(first)), name
        )
        found[name] = alone.read(stored, [f"model.{actual}"])[f"model.{actual}"]
    ours.load_state_dict(found, assign=True, strict=False)
    router = c.n_moe - 1
    ours.moe_layers()[0].router.bias = alone.read(stored, [f"router_bias.{router}"])[f"router_bias.{router}"]
    with torch.no_grad():
        logits = ours.logits(tokens)
    del ours, found
    worst = float((logits - expected).abs().max() / expected.abs().max())
    return {"logits_differ": worst, "compared_layers": [0, c.n_layers - 1], **mtp_compared(source, stored, c)}


def mtp_compared(source: Path, stored: Checkpoint, c: ModelConfig) -> dict[str, Any]:
    """How many of the MTP module's tensors there are, and how many are equal to the bit."""
    equal = total = 0
    mine = [part for part in parts_of(c, mtp=True) if part.ours.startswith("mtp.") and not part.copy]
    for group in (mine[at : at + 48] for at in range(0, len(mine), 48)):
        weights = multiplied_out(source, {part.theirs for part in group})
        for part in group:
            (found,) = alone.read_boxes(stored, {f"model.{part.ours}": [box_of(part)]})[f"model.{part.ours}"]
            expected = weights[part.theirs]
            expected = torch.cat(expected.chunk(2, dim=1)[::-1], dim=1) if part.swap else expected
            equal, total = equal + torch.equal(found.view(part.shape), expected), total + 1
    return {"mtp_tensors": total, "mtp_equal": equal}


def layer_of(name: str, c: ModelConfig) -> str:
    """In a model of two layers the second is the last of `c`."""
    return name.replace("model.layers.1.", f"model.layers.{c.n_layers - 1}.")


def stacked(c: ModelConfig, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Experts as `transformers` keeps them in memory."""
    out = {name: tensor for name, tensor in state.items() if ".mlp.experts." not in name}
    for prefix in {name.split(".experts.")[0] + ".experts" for name in state if ".mlp.experts." in name}:
        out[f"{prefix}.gate_up_proj"] = torch.stack(list(gate_up(c, prefix, state)))
        downs = [state.pop(f"{prefix}.{e}.down_proj.weight") for e in range(c.n_experts)]
        out[f"{prefix}.down_proj"] = torch.stack(downs)
    return out


def gate_up(c: ModelConfig, prefix: str, state: dict[str, torch.Tensor]) -> Iterator[torch.Tensor]:
    for e in range(c.n_experts):
        yield torch.cat([state.pop(f"{prefix}.{e}.{kind}_proj.weight") for kind in ("gate", "up")])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(in_child(*sys.argv[2:])))
    else:
        main()
