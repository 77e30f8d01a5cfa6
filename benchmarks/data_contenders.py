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
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_meter import SPENT, Clock, Memory, Start
from data_readers import loader, mosaic, read, seek


def text_bytes(files: list[str]) -> int:
    """Bytes of text in Parquet files; counted in a process of its own, so that it does not show in the peak memory."""
    command = [sys.executable, __file__, "count_bytes", json.dumps({"files": files})]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return int(json.loads(done.stdout)["bytes"])


def count_bytes(files: list[str]) -> dict[str, Any]:
    sizes = {path: os.path.realpath(path) for path in files}
    known = {real: pc.sum(pc.binary_length(pq.read_table(real)["text"])).as_py() for real in set(sizes.values())}
    return {"bytes": sum(known[real] for real in sizes.values())}


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


CONTENDERS: tuple[Callable[..., dict[str, Any]], ...] = (
    *(count_bytes, spin),
    *(tokenize, gigatoken_files, tiktoken, datasets_map, datatrove),
    *(train, train_tokenizers),
    *(seek, read, mosaic, loader),
)

if __name__ == "__main__":
    memory = Memory()
    memory.start()
    SPENT.start()
    contender = next(one for one in CONTENDERS if one.__name__ == sys.argv[1])
    figures = contender(**json.loads(sys.argv[2]))
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({**figures, "peak_mb": round(own / 1e3), "all_processes_mb": round(memory.peak_mb)}))
