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

from shoal_core.ckpt.among import last_whole
from shoal_core.ckpt.folder import Folder
from shoal_core.ckpt.marker import MARKER
from shoal_core.ckpt.whole import Checkpoint as Stored
from shoal_core.errors import UserError
from shoal_core.store import Store, join, open_store, send
from shoal_workloads.checkpoint import Checkpoint
from shoal_workloads.hf.config import to_hf_config
from shoal_workloads.hf.export_torch import is_of_torch, write_model
from shoal_workloads.hf.names import parts_of
from shoal_workloads.hf.weights import box_of, swapped
from shoal_workloads.hf.writing import Wanted, write_tensors
from shoal_workloads.start import new_place

__all__ = ["export"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def export(
    checkpoint: str | Path,
    out: str | Path,
    *,
    ema: bool = False,
    mtp: bool = False,
    dtype: str = "bf16",
    tokenizer: str | None = None,
) -> dict[str, Any]:
    """Write the checkpoint in Hugging Face's format to the new folder or address `out`, whole or not at all. Of the
    weights no more is in memory than one file of them, of 4 GiB, and the tensor that is read.

    Args:
        checkpoint: one, or a run, whose newest is taken.
        ema: the averages instead of the parameters.
        mtp: with the MTP modules, as further layers (a draft head for engines that know them).
        dtype: of the weights, bf16 or fp32; router biases stay float32.
        tokenizer: of a `TorchWorkload`, whose files come along; none: those beside the weights that its run began from.

    Returns:
        `checkpoint`, `tensors`, `parameters`, `bytes`, `files`.

    Raises:
        UserError: no whole checkpoint, no averages in it, `out` exists, or the tokenizer is gone or too large.
    """
    target = new_place(out)
    stored = opened(checkpoint)
    try:
        with being_written(target) as half:
            if is_of_torch(stored):
                if mtp:
                    raise UserError("--with-mtp: only DeepSeek-V3's architecture has MTP modules", "leave it out")
                figures = write_model(stored, half, ema=ema, dtype=DTYPES[dtype], tokenizer=tokenizer)
            else:
                figures = _write(Checkpoint(stored), half, ema=ema, mtp=mtp, dtype=dtype)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error})", "make room, or name another place") from error
    return {"checkpoint": stored.folder.address, **figures}


def opened(address: str | Path) -> Stored:
    """The checkpoint at an address, or the newest whole one of the run there.

    Raises:
        UserError: there is none, or it is not as it was committed.
    """
    folder = Folder.at(address)
    if not folder.has(MARKER) and (last := last_whole(open_store(join(address, "checkpoints")))) is not None:
        folder = last.folder
    return Stored.open(folder)


def _write(source: Checkpoint, folder: Path, *, ema: bool, mtp: bool, dtype: str) -> dict[str, Any]:
    """Write a checkpoint of `shoal_workloads.pretrain`."""
    model = source.config.model
    if mtp and not model.mtp_depth:
        raise UserError(f"{source.address}: the model has no MTP module (mtp_depth 0)", "leave --with-mtp out")
    end = _write_tokenizer(source, folder)
    config = to_hf_config(
        model,
        max_positions=source.config.data.seq_len,
        dtype={"fp32": "float32", "bf16": "bfloat16"}[dtype],
        mtp=mtp,
        eos=end,
    )
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return write_tensors(source.stored, folder, _tensors(source, ema=ema, mtp=mtp, dtype=DTYPES[dtype]))


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


def _tensors(source: Checkpoint, *, ema: bool, mtp: bool, dtype: torch.dtype) -> list[Wanted]:
    """What is written of the model, under Hugging Face's names."""
    kind = source.kind_of_weights(ema=ema)
    return [
        Wanted(
            part.theirs,
            part.shape,
            torch.float32 if bias else dtype,
            part.ours if bias else f"{kind}.{part.ours}",
            box_of(part),
            swapped if part.swap else lambda tensor: tensor,
        )
        for part in parts_of(source.config.model, mtp=mtp)
        for bias in [part.ours.startswith("router_bias.")]
    ]


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
