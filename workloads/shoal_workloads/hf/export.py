"""Checkpoint -> a folder, here or in a store, that `transformers` loads with no code of ours."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from shoal_core.errors import UserError
from shoal_core.store import Store, send
from shoal_workloads.checkpoint import Checkpoint
from shoal_workloads.hf.config import to_hf_config
from shoal_workloads.hf.names import parts_of
from shoal_workloads.hf.weights import cut
from shoal_workloads.start import new_place

__all__ = ["export"]

SHARD_BYTES = 4 << 30
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def export(
    checkpoint: str | Path, out: str | Path, *, ema: bool = False, mtp: bool = False, dtype: str = "bf16"
) -> dict[str, Any]:
    """Write the checkpoint in Hugging Face's format to the new folder or address `out`, whole or not at all.

    Args:
        ema: the averages instead of the parameters.
        mtp: with the MTP modules, as further layers (a draft head for engines that know them).
        dtype: of the weights, bf16 or fp32; router biases stay float32.

    Returns:
        `tensors`, `parameters`, `bytes`, `files`.

    Raises:
        UserError: no whole checkpoint, no averages in it, `out` exists, or the tokenizer is gone or too large.
    """
    target = new_place(out)
    source = Checkpoint(checkpoint)
    model = source.config.model
    if mtp and not model.mtp_depth:
        raise UserError(f"{source.address}: the model has no MTP module (mtp_depth 0)", "leave --with-mtp out")
    try:
        with being_written(target) as half:
            end = _write_tokenizer(source, half)
            config = to_hf_config(
                model,
                max_positions=source.config.data.seq_len,
                dtype={"fp32": "float32", "bf16": "bfloat16"}[dtype],
                mtp=mtp,
                eos=end,
            )
            (half / "config.json").write_text(json.dumps(config, indent=2) + "\n")
            figures = _write_weights(source, half, ema=ema, mtp=mtp, dtype=DTYPES[dtype])
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error})", "make room, or name another place") from error
    return figures


@contextlib.contextmanager
def being_written(target: Path | Store) -> Iterator[Path]:
    """A folder to write to, which becomes `target` at the end; if that is a store, its files go there, `config.json`
    last. Of what fails nothing is left.

    Raises:
        OSError: a folder cannot be made or renamed. StoreError: the store does not take the files.
    """
    if not isinstance(target, Path):
        with tempfile.TemporaryDirectory(prefix="shoal-export-") as folder:
            yield Path(folder)
            send(Path(folder), target, last="config.json")
        return
    half = target.with_name(f".{target.name}.partial")
    shutil.rmtree(half, ignore_errors=True)
    try:
        half.mkdir(parents=True)
        yield half
        os.replace(half, target)
    finally:
        shutil.rmtree(half, ignore_errors=True)


def _write_weights(source: Checkpoint, folder: Path, *, ema: bool, mtp: bool, dtype: torch.dtype) -> dict[str, Any]:
    from safetensors.torch import save_file

    weights = source.weights(ema=ema)
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = total = parameters = 0
    for part in parts_of(source.config.model, mtp=mtp):
        tensor = cut(part, weights[part.ours])
        if not bool(tensor.isfinite().all()):
            raise UserError(
                f"{source.address}: {part.ours} holds values that are not finite", "export an older checkpoint"
            )
        tensor = tensor.clone() if part.ours.startswith("router_bias.") else tensor.to(dtype, copy=True)
        if size and size + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][part.theirs] = tensor
        size, total, parameters = size + tensor.nbytes, total + tensor.nbytes, parameters + tensor.numel()
    where = {}
    for i, shard in enumerate(shards, start=1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        where.update(dict.fromkeys(shard, name))
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return {"tensors": len(where), "parameters": parameters, "bytes": total, "files": len(shards)}


def _write_tokenizer(source: Checkpoint, folder: Path) -> int | None:
    """Copy the corpus's tokenizer beside what `AutoTokenizer` needs; returns the id that ends a document, if any."""
    from shoal_data.reading.reader import Corpus

    corpus = Corpus.open(source.config.data.corpus)
    source.fits(corpus)
    path = corpus.tokenizer_path
    found = json.loads(path.read_text(encoding="utf-8"))
    names = {int(token["id"]): str(token["content"]) for token in found.get("added_tokens") or []}
    largest = max([*found["model"]["vocab"].values(), *names])
    rows = source.config.model.vocab_size
    if largest >= rows:
        raise UserError(f"{path}: token id {largest}, the embedding has {rows} rows", "give the run's own corpus")
    shutil.copyfile(path, folder / "tokenizer.json")
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": source.config.data.seq_len,
    }
    special = corpus.manifest.special
    if "bos" in special:
        settings["bos_token"] = names[special["bos"]]
    end = special.get("eos")
    if end is not None:
        settings["eos_token"] = settings["pad_token"] = names[end]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return end
