"""Training from a store that answers late waits for its first batch alone: what comes is known, and asked for ahead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import boto3
import pytest

from shoal import batching
from shoal_core.errors import UserError
from shoal_core.store import open_store
from shoal_data.reading.reader import Corpus
from shoal_data.reading.store import FarStore, read_manifest
from shoal_workloads.config import DataConfig, PretrainConfig
from shoal_workloads.pretrain import Pretrain
from shoal_workloads.samples import Samples
from tests.support.corpora import write_corpus
from tests.support.s3_server import account, s3_server

SHARDS, SEQ = 40, 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus whose every shard is a block of its own."""
    return write_corpus(tmp_path_factory.mktemp("corpus") / "c", shards=SHARDS)


@pytest.fixture(scope="module")
def there(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same on a store whose every answer takes 20 ms."""
    with s3_server(delay=0.02) as url, pytest.MonkeyPatch.context() as patch:
        account(patch, url, tmp_path_factory.mktemp("aws"))
        s3 = boto3.client("s3")
        s3.create_bucket(Bucket="corpora")
        for path in folder.rglob("*"):
            if path.is_file():
                s3.upload_file(str(path), "corpora", f"c/{path.relative_to(folder)}")
        yield "s3://corpora/c"


def settle(samples: Samples) -> None:
    """Let the time pass that a step takes: until all that was asked for is there."""
    wait(list(samples._reader.corpus.store._blocks._blocks.values()))


def reading(store: FarStore) -> Samples:
    samples = Samples("s3://corpora/c", SEQ, 5, "cpu")
    samples.__dict__["_reader"] = Corpus(store, *read_manifest(store)).reader(SEQ, 5)
    return samples


def test_training_waits_for_its_first_batch_alone(there: str) -> None:
    config = PretrainConfig.model_validate(
        {
            "model": {"preset": "laptop-1m", "vocab_size": 512, "n_layers": 2, "d_model": 32},
            "data": {"corpus": there, "seq_len": SEQ, "seed": 5},
            "batch": {"global_batch": 8, "micro_batch": 4},
            "schedule": {"budget": 30 * 256, "lr": 1e-2, "warmup_steps": 2},
        }
    )
    workload, steps, waits = Pretrain(config), 5, []
    shard = workload.build(seed=1)
    for step in range(steps):
        coming = list(batching.coming(workload.samples, range(step, steps), [0, 1], [0], 0, 1, 4))
        shard.begin(step)
        shard.expect(coming)
        if step:
            settle(shard._train)
        shard.accumulate(coming[0])
        total = shard.sums()
        metrics = shard.commit(total, shard.stats(), shard.norm_sq(total))
        waits.append(metrics["data_waits"])
        assert (metrics["data_wait_seconds"] > 0) == (metrics["data_waits"] > 0)
    assert waits[0] > 0
    assert waits[1:] == [0.0] * (steps - 1)


def test_memory_is_bounded_and_no_block_is_asked_for_twice_before_it_is_read(there: str, folder: Path) -> None:
    store, asked, kept = FarStore(open_store(there), cache_bytes=12 << 20), [], []
    samples, local = reading(store), Samples(str(folder), SEQ, 5, "cpu")
    read = store._blocks._read

    def count(shard: int, block: int) -> bytes:
        asked.append(shard)
        return read(shard, block)

    store._blocks._read = count
    batches = [range(first, first + 3) for first in range(0, 180, 3)]
    for number, ids in enumerate(batches):
        if number % 4 == 0:
            samples.expect(batches[number:])
        if number:
            settle(samples)
        assert samples.tokens(ids).equal(local.tokens(ids))
        kept.append(len(store._blocks._blocks))
    assert samples.waits == 1
    assert max(kept) <= 12
    assert len(asked) <= sum(len(store._touched(*place)) for ids in batches for place in places(samples._reader, ids))
    assert local.waits == 0


def places(reader: Any, ids: Sequence[int]) -> list[tuple[int, int, int]]:
    location = reader.locate(ids)
    starts = zip(location.stream.tolist(), location.turn.tolist(), location.first.tolist(), strict=True)
    return [place for start in starts for place in reader._stretches(*start)]


def test_what_is_not_to_be_had_is_told_when_it_is_read(there: str) -> None:
    s3, store = boto3.client("s3"), FarStore(open_store(there))
    samples = reading(store)
    shard = int(samples._reader.locate([9]).shard[0])
    name = store._manifest.shards.file[shard].decode() if store._manifest else ""
    good = s3.get_object(Bucket="corpora", Key=f"c/{name}")["Body"].read()
    s3.delete_object(Bucket="corpora", Key=f"c/{name}")
    try:
        samples.expect([[9], [9]])
        settle(samples)
        with pytest.raises(UserError, match=name):
            samples.tokens([9])
    finally:
        s3.put_object(Bucket="corpora", Key=f"c/{name}", Body=good)
    assert len(samples.tokens([9])) == 1


@pytest.mark.parametrize(
    ("verify", "corpus", "all_of_it"),
    [(None, "s3://corpora/c", False), (None, "c", True), (None, "file:///c", True), ("full", "s3://corpora/c", True)],
)
def test_a_corpus_on_a_store_is_not_read_whole_before_training(
    verify: str | None, corpus: str, all_of_it: bool
) -> None:
    data = DataConfig.model_validate({"corpus": corpus, "verify": verify})
    assert data.reads_all_of(corpus) == all_of_it
    assert Samples(corpus, 8, 0, "cpu").far == corpus.startswith("s3:")
