"""One contender of `benchmarks/data.py` a process: `python data_contenders.py NAME '{"argument": ...}'`.

Prints its figures as a line of JSON. Imports happen before the clock starts; Ray's start is timed apart.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq


def text_bytes(files: list[str]) -> int:
    """Bytes of text in Parquet files; counted in a process of its own, so that it does not show in the peak memory."""
    command = [sys.executable, __file__, "count_bytes", json.dumps({"files": files})]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return int(json.loads(done.stdout)["bytes"])


def count_bytes(files: list[str]) -> dict[str, Any]:
    sizes = {path: os.path.realpath(path) for path in files}
    known = {real: pc.sum(pc.binary_length(pq.read_table(real)["text"])).as_py() for real in set(sizes.values())}
    return {"bytes": sum(known[real] for real in sizes.values())}


class Clock:
    """Seconds by the clock, and of CPU in this process and all that it started, which other work moves less."""

    def __init__(self) -> None:
        self._began, self._cpu = time.perf_counter(), SPENT.seconds()

    def rate(self, size: int, start: Start | None = None) -> dict[str, Any]:
        """What `size` bytes of text took since. `start`: what of it was Ray's and is shown apart; the rest is
        `steady`."""
        seconds, cpu = time.perf_counter() - self._began, SPENT.seconds() - self._cpu
        whole = seconds + (start.ray if start else 0.0)
        figures = {
            "mb_per_second": round(size / 1e6 / whole, 3),
            "mb_per_cpu_second": round(size / 1e6 / cpu, 3),
            "seconds": round(whole, 2),
            "cpu_seconds": round(cpu, 2),
            "mb": size / 1e6,
        }
        if start:
            figures |= {
                "ray_start": round(start.ray, 2),
                "workers_start": round(start.workers, 2),
                "steady_mb_per_second": round(size / 1e6 / (seconds - start.workers), 3),
                "steady_mb_per_cpu_second": round(size / 1e6 / (cpu - start.cpu), 3),
            }
        return figures


class Start(NamedTuple):
    """Seconds that a private Ray takes to start, and that a job of one document takes on it: its workers are started,
    Ray Data imported, what they need loaded. `cpu`: CPU seconds of that job."""

    ray: float
    workers: float
    cpu: float


def start_ray(cpus: int, job: Callable[[list[str], str], object], out: str) -> Start:
    """Start a private Ray on so many cores and run `job(files, out)` on one document, twice: the first time modules are
    imported in this process, too."""
    import ray
    import ray.data

    begin = time.perf_counter()
    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        object_store_memory=1 << 29,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    started = time.perf_counter() - begin
    ray.data.DataContext.get_current().enable_progress_bars = False
    for turn in range(2):
        shutil.rmtree(f"{out}-tiny{turn}", ignore_errors=True)
        clock, begin = Clock(), time.perf_counter()
        job([one_document(out)], f"{out}-tiny{turn}")
        found = clock.rate(1)
        workers = time.perf_counter() - begin
    return Start(started, workers, float(found["cpu_seconds"]))


def one_document(beside: str) -> str:
    """A Parquet file to warm up with."""
    path = f"{beside}-tiny.parquet"
    pq.write_table(pa.table({"text": [Path(__file__).read_text()]}), path)
    return path


def tokenize(files: list[str], tokenizer: str, out: str, cpus: int = 2, ray: bool = True) -> dict[str, Any]:
    """On Ray, or without as the command does it on one machine with less than 2 GiB of text."""
    from shoal_data.writing.options import TokenizeOptions
    from shoal_data.writing.tokenize import tokenize as build

    def job(inputs: list[str], folder: str) -> None:
        build(inputs, tokenizer, folder, TokenizeOptions())

    size = text_bytes(files)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cpus])  # and all processes it starts
    start = start_ray(cpus, job, out) if ray else None
    if not ray:
        shutil.rmtree(f"{out}-tiny", ignore_errors=True)
        job([one_document(out)], f"{out}-tiny")  # others have loaded their tokenizer before the clock starts, too
    clock = Clock()
    job(files, out)
    return clock.rate(size, start)


def gigatoken_files(files: list[str], tokenizer: str) -> dict[str, Any]:
    import gigatoken

    size = text_bytes(files)
    loaded = gigatoken.Tokenizer(tokenizer)
    loaded.encode_files(gigatoken.ParquetFileSource([one_document(f"{tokenizer}-warm")]))
    clock = Clock()
    tokens = loaded.encode_files(gigatoken.ParquetFileSource([*files]))
    return {**clock.rate(size), "documents": len(tokens)}


def tiktoken(files: list[str], tokenizer: str) -> dict[str, Any]:
    """The same vocabulary in tiktoken, its own batch call on two threads; text is in memory before the clock starts."""
    import tiktoken as library

    from shoal_data.tokenizer.encoder import load_encoder
    from shoal_data.tokenizer.patterns import PATTERNS

    encoder = load_encoder(tokenizer)
    ranks = {text: token for token, text in enumerate(encoder.tokens) if text}
    encoding = library.Encoding(
        "shoal", pat_str="|".join(PATTERNS["deepseek-v3"]), mergeable_ranks=ranks, special_tokens={}
    )
    texts = [text for path in files for text in pq.read_table(path)["text"].to_pylist()]
    size = text_bytes(files)
    clock = Clock()
    encoding.encode_ordinary_batch(texts, num_threads=2)
    return clock.rate(size)


def datasets_map(files: list[str], tokenizer: str, out: str) -> dict[str, Any]:
    """`datasets.map`, batched, two processes, `tokenizers`' batch call, then its own Arrow files."""
    import datasets
    from tokenizers import Tokenizer

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    loaded = Tokenizer.from_file(tokenizer)
    raw = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=f"{out}/cache")

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"ids": [one.ids for one in loaded.encode_batch_fast(batch["text"], add_special_tokens=False)]}

    size = text_bytes(files)
    clock = Clock()
    raw.map(encode, batched=True, batch_size=64, num_proc=2, remove_columns=raw.column_names)
    return clock.rate(size)


def datatrove(files: list[str], tokenizer: str, out: str) -> dict[str, Any]:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    folder = Path(out) / "in"
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.concat_tables([pq.read_table(path, columns=["text"]) for path in files])
    for part in range(2):
        pq.write_table(table.take(np.arange(part, len(table), 2)), folder / f"{part}.parquet")
    steps = [
        ParquetReader(str(folder), text_key="text"),
        DocumentTokenizer(f"{out}/tokens", tokenizer_name_or_path=tokenizer, eos_token="<|end_of_sentence|>"),
    ]
    size = text_bytes(files)
    clock = Clock()
    LocalPipelineExecutor(pipeline=steps, tasks=2, workers=2, logging_dir=f"{out}/logs").run()
    return clock.rate(size)


def train(files: list[str], out: str, vocab_size: int, ray: bool = False) -> dict[str, Any]:
    """As `shoal data tokenizer-train` does it on this machine, or on a Ray that is started before."""
    from shoal_data.bpe.compile import compile_loops
    from shoal_data.bpe.train import TrainOptions
    from shoal_data.bpe.train import train as build

    size = text_bytes(files)
    compile_loops()
    start = start_ray(2, lambda few, folder: build(few, folder, TrainOptions(300)), out) if ray else None
    clock = Clock()
    build(files, out, TrainOptions(vocab_size))
    return clock.rate(size, start)


def spin(processes: int, seconds: float = 5.0) -> dict[str, Any]:
    """What the machine itself gives: rounds a second of so many processes that do nothing but count."""
    code = f"import time\nend, n = time.time() + {seconds}, 0\nwhile time.time() < end: n += 1\nprint(n)"
    started = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(processes)]
    return {"rounds_per_second": sum(int(one.communicate()[0]) for one in started) / seconds}


def train_tokenizers(files: list[str], out: str, vocab_size: int) -> dict[str, Any]:
    from tokenizers import Tokenizer, models, trainers
    from tokenizers.pre_tokenizers import ByteLevel

    from shoal_data.tokenizer.patterns import pre_tokenizer
    from shoal_data.tokenizer.special import SPECIAL_TOKENS

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizer("deepseek-v3")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    size = text_bytes(files)
    clock = Clock()
    texts = (
        batch["text"].to_pylist() for path in files for batch in pq.ParquetFile(path).iter_batches(64, columns=["text"])
    )
    made.train_from_iterator(texts, trainer)
    figures = clock.rate(size)
    made.save(out)
    return figures


def seek(shards: int, tokens: int, seq_len: int, out: str) -> dict[str, Any]:
    from shoal_data.reading.manifest import MANIFEST, Manifest, Shards
    from shoal_data.reading.reader import Corpus, Reader

    each = tokens // shards
    folder = Path(out) / "synthetic"
    (folder).mkdir(parents=True, exist_ok=True)
    np.save(folder / "token_bytes.npy", np.ones(129_280, np.uint16))
    import hashlib

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
    files = {"token_bytes": {"file": "token_bytes.npy", "sha256": digest}}
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
    from shoal_data.reading.reader import Corpus

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

    other = np.zeros(1 << 25)

    def each(call: Callable[[Any], object], arguments: Any) -> tuple[float, float]:
        """Samples a second by the clock, and by this thread's CPU time, which other work on the machine moves less."""
        np.add(other, 1, out=other)  # takes the cache
        begin, cpu = time.perf_counter(), time.thread_time()
        for argument in arguments:
            call(argument)
        return total / (time.perf_counter() - begin), total / (time.thread_time() - cpu)

    runs: dict[str, list[tuple[float, float]]] = {}
    for _ in range(15):
        runs.setdefault("samples_per_second", []).append(each(reader.tokens, ids))
        runs.setdefault("memcpy_of_them", []).append(each(rows.__getitem__, starts))
        runs.setdefault("at_step_1000000", []).append(each(reader.tokens, far))
        runs.setdefault("with_byte_lengths", []).append(each(reader.read, ids))
    shares = np.array(runs["samples_per_second"]) / np.array(runs["memcpy_of_them"])
    figures: dict[str, Any] = {name: round(float(np.median(found, axis=0)[0])) for name, found in runs.items()}
    wall, cpu = np.median(shares, axis=0).round(3).tolist()
    return {
        **figures,
        "samples_per_cpu_second": round(float(np.median(runs["samples_per_second"], axis=0)[1])),
        "share_of_memcpy": wall,
        "share_of_memcpy_in_cpu_time": cpu,
    }


def mosaic(corpus: str, seq_len: int, out: str) -> dict[str, Any]:
    """The same samples as MDS, read by StreamingDataset, shuffled, in order of its own index."""
    from streaming import MDSWriter, StreamingDataset

    from shoal_data.reading.reader import Corpus

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


class Memory(threading.Thread):
    """Watches the memory of this process and everything it started: the sum of their proportional shares (PSS).

    A look at all of Ray's processes costs a tenth of a second, so it takes at most a twentieth of a core."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_mb = 0.0

    def run(self) -> None:
        while True:
            begin = time.thread_time()
            shares = (_pss(pid) for pid in os.listdir("/proc") if pid.isdigit() and _session(pid) == os.getsid(0))
            self.peak_mb = max(self.peak_mb, sum(shares) / 1e3)
            time.sleep(max(0.5, 20 * (time.thread_time() - begin)))


def _session(pid: str) -> int:
    try:
        return os.getsid(int(pid))
    except OSError:
        return -1


class Spent(threading.Thread):
    """CPU seconds of the processes of this session, also of those that have ended, whoever was their parent: looked at
    four times a second, so what one does in its last quarter of a second is missing."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._ticks: dict[tuple[str, str], int] = {}  # by process number and start time

    def run(self) -> None:
        while True:
            self.seconds()
            time.sleep(0.25)

    def seconds(self) -> float:
        for pid in os.listdir("/proc"):
            if pid.isdigit() and _session(pid) == os.getsid(0):
                try:
                    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                self._ticks[pid, fields[19]] = int(fields[11]) + int(fields[12])  # utime, stime
        return sum(list(self._ticks.values())) / os.sysconf("SC_CLK_TCK")


def _pss(pid: str) -> int:
    """Kilobytes of a process, with pages that several share divided among them; 0 if it is gone."""
    try:
        content = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in content.splitlines() if line.startswith("Pss:")), 0)


SPENT = Spent()

if __name__ == "__main__":
    memory = Memory()
    memory.start()
    SPENT.start()
    figures = globals()[sys.argv[1]](**json.loads(sys.argv[2]))
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({**figures, "peak_mb": round(own / 1e3), "all_processes_mb": round(memory.peak_mb)}))
