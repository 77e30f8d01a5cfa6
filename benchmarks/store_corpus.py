"""Reading a corpus from S3 beside reading it from a folder: tokens a second, and whether training waits.

    python benchmarks/store_corpus.py [--megabytes 192] [--delay 0.02] [--turns 3]

S3 is moto's server in a process of its own, every answer of which takes `--delay` seconds more. Samples of 4,096 tokens
in batches of 8, shuffled, as tensors, as training takes them. Cold: nothing is in memory (of a folder, in this
process); warm: all of the corpus is. A large corpus, of which memory holds a part, is stood for by a cache that holds a
third of this one: two of three samples then take a block of 1 MiB each. Where training is paced, a pause stands
between two batches as a step would, and what was waited for after the first batch is counted.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest

from shoal_core.store import open_store
from shoal_data.reading.reader import Corpus
from shoal_data.reading.store import FarStore, read_manifest
from shoal_workloads.samples import Samples
from tests.support.corpora import write_corpus
from tests.support.s3_server import account, s3_server

SEQ, BATCH, MOST = 4096, 8, 200


@contextmanager
def corpora(folder: Path, megabytes: int, delay: float) -> Iterator[tuple[str, str]]:
    """A corpus in a folder, in shards of some 2 MB, and the same on S3."""
    local = write_corpus(folder / "corpus", shards=max(1, megabytes // 2), repeat=1 + (2 << 20) // 55_000)
    with s3_server(delay) as url, pytest.MonkeyPatch.context() as patch:
        account(patch, url, folder)
        s3 = boto3.client("s3")
        s3.create_bucket(Bucket="corpora")
        for path in sorted(local.rglob("*")):
            if path.is_file():
                s3.put_object(Bucket="corpora", Key=f"c/{path.relative_to(local)}", Body=path.read_bytes())
        yield str(local), "s3://corpora/c"


def large(address: str, megabytes: int) -> Samples:
    """Reads with a cache of a third of the corpus."""
    store, samples = FarStore(open_store(address), cache_bytes=(megabytes << 20) // 3), Samples(address, SEQ, 1, "cpu")
    samples.__dict__["_reader"] = Corpus(store, *read_manifest(store)).reader(SEQ, 1)
    return samples


def batches(samples: Samples) -> list[range]:
    """An epoch, or the beginning of it, in whole batches."""
    count = min(MOST, samples._reader.samples // BATCH)
    return [range(first, first + BATCH) for first in range(0, count * BATCH, BATCH)]


def epoch(samples: Samples, *, ahead: bool) -> float:
    """Tokens a second."""
    coming = batches(samples)
    samples.expect(coming if ahead else [])
    start = time.perf_counter()
    for ids in coming:
        samples.tokens(ids)
    return len(coming) * BATCH * SEQ / (time.perf_counter() - start)


def paced(samples: Samples, pause: float) -> tuple[int, int, float]:
    """Batches after the first, how many of them were waited for, and for how many seconds in all."""
    coming = batches(samples)
    samples.expect(coming)
    samples.tokens(coming[0])
    waits, waited = samples.waits, samples.waited
    for ids in coming[1:]:
        time.sleep(pause)
        samples.tokens(ids)
    return len(coming) - 1, samples.waits - waits, samples.waited - waited


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=192)
    parser.add_argument("--delay", type=float, default=0.02)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, corpora(Path(folder), options.megabytes, options.delay) as places:
        for _ in range(options.turns):
            for name, address in zip(("folder", "S3"), places, strict=True):
                samples = Samples(address, SEQ, 1, "cpu")
                batches(samples)  # opens it
                rates.setdefault(f"{name}, cold", []).append(epoch(samples, ahead=True))
                rates.setdefault(f"{name}, warm", []).append(epoch(samples, ahead=True))
            for name, ahead in (("S3, large", True), ("S3, large, not read ahead", False)):
                rates.setdefault(name, []).append(epoch(large(places[1], options.megabytes), ahead=ahead))
        middle = {name: statistics.median(found) for name, found in rates.items()}
        for name, rate in middle.items():
            beside = middle["folder, warm" if "warm" in name else "folder, cold"]
            print(f"{name:26} {rate:12,.0f} tokens a second, {rate / beside:.3f} x the folder's")
        pause = 2 * BATCH * SEQ / middle["S3, large"]
        count, waits, seconds = paced(large(places[1], options.megabytes), pause)
        print(f"steps of {pause:.2f} s: {waits} of {count} batches after the first waited, {seconds:.2f} s in all")


if __name__ == "__main__":
    main()
