"""What benchmarks that train share: text split into a training and a held-out part, and a run that can be resumed.

A run is one process, one replica, no platform: steps, an evaluation now and then, and a file that it goes on from.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from shoal_data.reading.reader import Corpus, bits_per_byte
from shoal_workloads.config import PretrainConfig
from shoal_workloads.pretrain import Pretrain
from shoal_workloads.replica import PretrainShard

__all__ = ["evaluate", "heldout_text", "model_section", "prepare", "train"]

HELD_OUT = 50  # one file name in so many


def prepare(corpus: Path, folder: Path, vocab_size: int = 4096) -> None:
    """Make `folder`/train and `folder`/heldout, tokenized, and heldout.bin, the held-out text itself, of the Parquet
    files in `corpus`. All translations of a page lie on the same side: what decides is the file's name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if (folder / "heldout" / "manifest.json").is_file():
        return
    raw = folder / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    held = []
    for file in sorted(corpus.glob("*.parquet")):
        table = pq.read_table(file)
        out = [zlib.crc32(os.path.basename(path).encode()) % HELD_OUT == 0 for path in table["path"].to_pylist()]
        mask = pa.array(out)
        held.append(table.filter(mask).select(["path", "text"]))
        pq.write_table(table.filter(pa.compute.invert(mask)), raw / f"train-{file.name}")
    pq.write_table(pa.concat_tables(held), raw / "heldout.parquet")
    shoal = str(Path(sys.executable).with_name("shoal"))
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}

    def call(*arguments: str) -> None:
        subprocess.run([shoal, "data", *arguments], check=True, env=environment)

    text = ["--input", f"{raw}/train-*.parquet"]
    call("tokenizer-train", *text, "--out", str(folder / "tokenizer"), "--vocab-size", str(vocab_size))
    tokenizer = ["--tokenizer", str(folder / "tokenizer" / "tokenizer.json")]
    call("tokenize", *text, *tokenizer, "--shuffle", "--out", str(folder / "train"))
    call("tokenize", "--input", f"{raw}/heldout.parquet", *tokenizer, "--out", str(folder / "heldout"))


def heldout_text(folder: Path, seq_len: int) -> bytes:
    """The bytes that the held-out samples of `seq_len` predict, in order: what every contender is measured on."""
    from tokenizers import Tokenizer

    corpus = Corpus.open(folder / "heldout")
    reader = corpus.reader(seq_len, 0)
    tokenizer = Tokenizer.from_file(str(corpus.tokenizer_path))
    raw = _raw_tokens(tokenizer)
    size, out = 0, []
    for first in range(0, reader.samples, 64):
        tokens, lengths = reader.read(range(first, min(first + 64, reader.samples)))
        out += [raw[token] for token in tokens[:, 1:].flatten().tolist()]
        size += int(lengths.sum())
    text = b"".join(out)
    assert len(text) == size, f"{len(text)} bytes decoded, {size} counted"
    return text


def _raw_tokens(tokenizer: Any) -> list[bytes]:
    """The bytes of every token of a byte-level tokenizer; none for special ones."""
    from shoal_data.tokenizer.byte_level import byte_of_character

    byte_of = byte_of_character()
    special = set(tokenizer.get_added_tokens_decoder())
    names = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
    return [b"" if i in special else bytes(byte_of[c] for c in name) for i, name in enumerate(names)]


def model_section(data: Path, seq_len: int, **sections: Any) -> dict[str, Any]:
    """A `workload` section for `laptop-10m` on the text in `data`, with further sections."""
    corpus = {"corpus": str(data / "train"), "heldout": str(data / "heldout"), "seq_len": seq_len, "verify": "size"}
    return {"model": {"preset": "laptop-10m"}, "data": corpus, **sections}


def train(
    section: dict[str, Any],
    folder: Path,
    done: Callable[[int, float], bool],
    *,
    evaluate_every: int,
    seed: int = 0,
    begin: Callable[[PretrainShard], None] | None = None,
) -> tuple[PretrainShard, list[dict[str, float]]]:
    """Train until `done(steps, CPU seconds of the training steps)`, from where `folder` left off. `seed` is that of the
    initial values; `begin` sees the replica before its first step.

    Returns the replica and the metrics of every step, with `cpu` and `wall`, seconds since the start of training
    without evaluations, and every `evaluate_every` steps those of the held-out samples that the section names."""
    workload = Pretrain(PretrainConfig.model_validate(section))
    replica = workload.build(seed)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "state.pt"
    metrics: list[dict[str, float]] = []
    if file.is_file():
        found = torch.load(file, weights_only=True)
        with torch.no_grad():
            for ours, saved in zip(replica.tensors(), found["tensors"], strict=True):
                ours.copy_(saved)
        metrics = found["metrics"]
        replica.loaded(len(metrics))
    elif begin is not None:
        begin(replica)
    cpu, wall = (metrics[-1]["cpu"], metrics[-1]["wall"]) if metrics else (0.0, 0.0)
    while not done(len(metrics), cpu):
        step = len(metrics)
        started, worked = time.perf_counter(), time.process_time()
        first, last = workload.samples(step)
        replica.accumulate([range(i, i + workload.micro_batch) for i in range(first, last, workload.micro_batch)])
        total = replica.sums()
        figures = replica.commit(total, replica.stats(), replica.norm_sq(total))
        cpu, wall = cpu + time.process_time() - worked, wall + time.perf_counter() - started
        if (step + 1) % evaluate_every == 0:
            figures |= replica.eval_metrics(replica.evaluate(0, 1))
            print(f"{folder.name} {step + 1}: {figures['lm_loss']:.4f}, held out {figures['bpb']:.4f}", flush=True)
        metrics.append({**figures, "cpu": cpu, "wall": wall})
        if done(step + 1, cpu) or (step + 1) % 20 == 0:
            torch.save({"tensors": replica.tensors(), "metrics": metrics}, file.with_suffix(".new"))
            os.replace(file.with_suffix(".new"), file)
    return replica, metrics


@torch.no_grad()
def evaluate(replica: PretrainShard, data: Path, samples: int | None = None) -> dict[str, float]:
    """`loss` (nats a token) and `bpb` of the first `samples` held-out samples; of all, the same bytes as
    `heldout_text`."""
    seq_len = replica.config.data.seq_len
    reader = Corpus.open(data / "heldout").reader(seq_len, 0)
    samples = reader.samples if samples is None else min(samples, reader.samples)
    nats = size = 0.0
    for first in range(0, samples, 8):
        tokens, lengths = reader.read(range(first, min(first + 8, samples)))
        nats += float(replica.model(torch.from_numpy(tokens), mtp=False).lm)
        size += float(lengths.sum())
    return {"loss": nats / (samples * seq_len), "bpb": bits_per_byte(nats, size)}
