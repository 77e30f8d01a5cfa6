"""The contenders of the data benchmark that read a finished corpus: see `data_contenders.py`."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shoal_data.reading.manifest import MANIFEST, Manifest, Shards
from shoal_data.reading.reader import Corpus, Reader

__all__ = ["loader", "mosaic", "read", "seek"]


def seek(shards: int, tokens: int, seq_len: int, out: str) -> dict[str, Any]:
    each = tokens // shards
    folder = Path(out) / "synthetic"
    (folder).mkdir(parents=True, exist_ok=True)
    np.save(folder / "token_bytes.npy", np.ones(129_280, np.uint16))
    digest = hashlib.sha256((folder / "token_bytes.npy").read_bytes()).hexdigest()
    columns: dict[str, list[Any]] = {
        "file": [f"shards/{number:06d}.arrow" for number in range(shards)],
        "source": [0] * shards,
        "size": [each * 4 + 4096] * shards,
        "sha256": ["0" * 64] * shards,
        "offset": [4096] * shards,
        "tokens": [each] * shards,
        "documents": [each // 1000] * shards,
        "text_bytes": [each * 4] * shards,
    }
    files = {
        "token_bytes": {"file": "token_bytes.npy", "sha256": digest},
        "blocks": {"file": "blocks.crc32", "sha256": "0" * 64},  # of shards that are not there: nobody reads it
    }
    manifest = Manifest("uint32", 129_280, ["all"], Shards.from_columns(columns), files)
    (folder / MANIFEST).write_text(json.dumps(manifest.to_json()))
    index = sum(array.nbytes for array in vars(manifest.shards).values())
    begin = time.perf_counter()
    corpus = Corpus.open(folder)
    opened = time.perf_counter() - begin
    reader = Reader(corpus, seq_len, 7)
    index += sum(array.nbytes for stream in corpus.streams() for array in stream)
    times = {}
    jumps = np.random.default_rng(0).integers(0, 1_000_000, 200).tolist()  # a regular reader would be looked ahead for
    for step in (0, 1_000_000, 3_000_000_000):
        taken = []
        for jump in jumps:
            begin = time.perf_counter()
            reader.locate([step + jump])
            taken.append(time.perf_counter() - begin)
        times[str(step)] = {
            "median_ms": round(1e3 * float(np.median(taken)), 4),
            "worst_ms": round(1e3 * max(taken), 4),
        }
    return {"locate": times, "index_mb": index / 1e6, "open_seconds": round(opened, 2), "samples": reader.samples}


def read(corpus: str, seq_len: int, batch: int = 64) -> dict[str, Any]:
    """One shuffled reader, beside memcpy of the same samples in the same order.

    For memcpy the shards lie end to end in one array, and a single call copies a batch's rows into a new buffer. All
    take turns and find the samples in memory and not in the processor's cache; each figure is its median.
    """
    reader = Corpus.open(corpus).reader(seq_len, 3)
    total = min(reader.samples, 4096) // batch * batch
    ids = [np.arange(first, first + batch) for first in range(0, total, batch)]
    far = [one + 1_000_000 * batch for one in ids]
    place = reader.locate(np.arange(total))
    lengths = reader.corpus.manifest.shards.tokens
    end_to_end = np.concatenate([reader.corpus.store.tokens(at, 0, int(size)) for at, size in enumerate(lengths)])
    starts = (np.concatenate(([0], np.cumsum(lengths)))[place.shard] + place.first).reshape(-1, batch)
    rows = np.lib.stride_tricks.sliding_window_view(end_to_end, seq_len + 1)
    for one, start in zip(ids, starts, strict=True):
        assert np.array_equal(rows[start], reader.tokens(one))  # and the page cache is warm for everybody

    runs: dict[str, list[tuple[float, float]]] = {}
    for _ in range(15):
        runs.setdefault("samples_per_second", []).append(_speed(reader.tokens, ids, total))
        runs.setdefault("memcpy_of_them", []).append(_speed(rows.__getitem__, starts, total))
        runs.setdefault("at_step_1000000", []).append(_speed(reader.tokens, far, total))
    shares = np.array(runs["samples_per_second"]) / np.array(runs["memcpy_of_them"])
    figures: dict[str, Any] = {name: round(float(np.median(found, axis=0)[0])) for name, found in runs.items()}
    wall, cpu = np.median(shares, axis=0).round(3).tolist()
    return {
        **figures,
        "samples_per_cpu_second": round(float(np.median(runs["samples_per_second"], axis=0)[1])),
        "share_of_memcpy": wall,
        "share_of_memcpy_in_cpu_time": cpu,
    }


def loader(corpus: str, seq_len: int, batch: int = 8) -> dict[str, Any]:
    """Micro-batches as training takes them, beside the bare token values and beside what evaluation takes.

    Returns:
        Samples a second of this thread's CPU time: `training` (int64 token ids in a tensor), `values` (token ids in the
        corpus's own type), `evaluation` (int64 token ids and byte lengths); `share`, of `values` that `training` gets.
    """
    from shoal_workloads.samples import Samples

    reader, samples = Corpus.open(corpus).reader(seq_len, 3), Samples(corpus, seq_len, 3, "cpu")
    total = min(reader.samples, 4096) // batch * batch
    ids = [np.arange(first, first + batch) for first in range(0, total, batch)]
    for one in ids:
        assert np.array_equal(samples.tokens(one).numpy(), reader.tokens(one))
    calls = {"training": samples.tokens, "values": reader.tokens, "evaluation": reader.read}
    turns = [{name: _speed(call, ids, total)[1] for name, call in calls.items()} for _ in range(15)]
    figures = {name: round(float(np.median([turn[name] for turn in turns]))) for name in calls}
    share = float(np.median([turn["training"] / turn["values"] for turn in turns]))
    return {**figures, "share": round(share, 3)}


def mosaic(corpus: str, seq_len: int, out: str) -> dict[str, Any]:
    """The same samples as MDS, read by StreamingDataset, shuffled, in order of its own index."""
    from streaming import MDSWriter, StreamingDataset

    reader = Corpus.open(corpus).reader(seq_len, 3)
    total = min(reader.samples, 4096)
    tokens = reader.tokens(range(total))
    if not Path(out).exists():
        with MDSWriter(out=out, columns={"tokens": f"ndarray:{tokens.dtype}"}) as writer:
            for row in tokens:
                writer.write({"tokens": row})
    dataset = StreamingDataset(local=out, shuffle=True, batch_size=64, num_canonical_nodes=1)
    for _ in dataset:
        pass
    found = []
    for _ in range(5):
        begin, cpu = time.perf_counter(), time.process_time()
        count = sum(1 for _ in dataset)
        found.append((count / (time.perf_counter() - begin), count / (time.process_time() - cpu)))
    wall, in_cpu_time = np.median(found, axis=0).round().tolist()
    return {"samples_per_second": wall, "samples_per_cpu_second": in_cpu_time, "samples": count}


_OTHER = np.zeros(1 << 25)


def _speed(call: Callable[[Any], object], arguments: Sequence[Any], total: int) -> tuple[float, float]:
    """Samples a second by the clock, and by this thread's CPU time, which other work on the machine moves less, of
    calls that read `total` samples and find them in memory and not in the processor's cache."""
    np.add(_OTHER, 1, out=_OTHER)  # takes the cache
    begin, cpu = time.perf_counter(), time.thread_time()
    for argument in arguments:
        call(argument)
    return total / (time.perf_counter() - begin), total / (time.thread_time() - cpu)
