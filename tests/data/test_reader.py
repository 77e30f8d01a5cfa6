"""Working locations out ahead and gathering in one call change no answer."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal_core.errors import UserError
from shoal_core.store import open_store
from shoal_data.reading import local_store, locations
from shoal_data.reading.locations import Locator, Stream
from shoal_data.reading.order import SampleOrder
from shoal_data.reading.reader import Corpus
from shoal_data.reading.store import FarStore, read_manifest
from shoal_data.writing.options import TokenizeOptions
from shoal_data.writing.tokenize import tokenize
from tests.support.corpora import write_corpus


@pytest.fixture
def corpus(tokenizer: Path, tmp_path: Path) -> Corpus:
    """A corpus of a dozen short shards in one stream."""
    lines = [json.dumps({"text": f"Document {number} of a short corpus. " * 8}) for number in range(60)]
    for name in "abc":
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    tokenize([str(tmp_path / "*.jsonl")], tokenizer, tmp_path / "c", TokenizeOptions(part_bytes=4_000))
    return Corpus.open(tmp_path / "c")


def expected(corpus: Corpus, seq_len: int, seed: int, ids: list[int]) -> np.ndarray:
    """The samples straight from the definition: the stream end to end, cut, in the order's order."""
    lengths = corpus.manifest.shards.tokens.tolist()
    stream = np.concatenate([corpus.store.tokens(shard, 0, size) for shard, size in enumerate(lengths)])
    order = SampleOrder([(len(stream) - 1) // seq_len], None, seed)
    return np.stack([stream[at * seq_len : (at + 1) * seq_len + 1] for at in order(np.array(ids))[1].tolist()])


@pytest.mark.parametrize("step", [1, 3, 16, 0, -2])
@pytest.mark.parametrize("weights", [None, [0.7, 0.3]])
def test_places_ahead_are_those_worked_out_one_by_one(
    step: int, weights: list[float] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locations, "_TOGETHER", 64)
    streams = [Stream(np.arange(5), np.array([0, 90, 700, 701, 1500, 4000]))]
    if weights:
        streams.append(Stream(np.arange(5, 7), np.array([0, 1000, 1300])))
    order = SampleOrder([(int(stream.starts[-1]) - 1) // 32 for stream in streams], weights, seed=2)
    ahead, plain = Locator(streams, order, 32), Locator(streams, order, 32)
    position = np.array([900, 904, 901])
    for _ in range(200):  # several times what is worked out in one go, and over several epochs
        assert np.array_equal(np.stack(ahead(position)), np.stack(plain.locate(position)))
        position = position + step
    for other in (np.array([3]), np.array([4, 5, 6]), np.array([], np.int64), position):
        assert np.array_equal(np.stack(ahead(other)), np.stack(plain.locate(other)))


def test_samples_within_shards_and_across_them(corpus: Corpus) -> None:
    assert len(corpus.manifest.shards) > 8
    shortest = int(corpus.manifest.shards.tokens.min())
    for seq_len in (16, 3 * shortest):  # the longer ones go over several shards
        reader = corpus.reader(seq_len, 4)
        everything = expected(corpus, seq_len, 4, list(range(reader.samples)))
        for first in range(0, reader.samples, 7):
            ids = list(range(first, min(first + 7, reader.samples)))
            wanted = everything[ids]
            out = np.zeros(wanted.shape, np.int64)
            assert np.array_equal(reader.tokens(ids), wanted)
            assert np.array_equal(reader.tokens(ids, out), wanted)
            tokens, lengths = reader.read(ids)
            assert np.array_equal(tokens, wanted)
            assert np.array_equal(lengths, corpus.token_bytes[wanted[:, 1:]].sum(axis=1))
            assert np.array_equal(reader.lengths(ids), lengths)
    assert corpus.reader(16, 4).tokens([]).shape == (0, 17)


def test_more_shards_than_may_be_mapped(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_store, "_MOST_MAPPED", 3)
    reader = corpus.reader(16, 4)
    held = corpus.store.tokens(0, 0, 20)
    kept = held.copy()
    wanted = expected(corpus, 16, 4, list(range(reader.samples)))
    for number in range(reader.samples):
        assert np.array_equal(reader.tokens([number])[0], wanted[number])
    assert np.array_equal(held, kept)  # its mapping stays while a view of it does


@pytest.mark.parametrize("seq_len", [0, -1, 16.0, "16", None, float("nan")])
def test_a_length_that_is_none(corpus: Corpus, seq_len: Any) -> None:
    for work in (lambda: corpus.reader(seq_len, 0), lambda: corpus.samples(seq_len)):
        with pytest.raises(UserError, match="seq_len"):
            work()
    sizes: Any = np.int32(16), np.int64(0)
    assert corpus.reader(*sizes).samples == corpus.samples(16)


@pytest.mark.parametrize("ids", [[-1], [3, -2], [0.5], ["1"], [None], [True], [[1, 2]], 3, [1 << 63]])
def test_positions_that_are_none(corpus: Corpus, ids: Any) -> None:
    reader = corpus.reader(16, 0)
    for work in (reader.read, reader.tokens, reader.lengths, reader.locate, reader.prefetch):
        with pytest.raises(UserError, match="position"):
            work(ids)
    assert reader.read(np.array([4, 5], np.uint8))[0].tolist() == reader.read([4, 5])[0].tolist()


def test_a_seed_that_is_none_and_a_length_too_long(corpus: Corpus) -> None:
    with pytest.raises(UserError, match="seed"):
        corpus.reader(16, 0.5)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="less than one sample"):
        corpus.reader(corpus.tokens, 0)


def test_threads_share_a_corpus(corpus: Corpus) -> None:
    count = corpus.reader(16, 4).samples
    wanted = expected(corpus, 16, 4, list(range(count)))
    fresh = Corpus.open(corpus.address)
    wrong: list[int] = []

    def work(first: int) -> None:
        reader = fresh.reader(16, 4)
        for at in range(first, count, 4):
            if not np.array_equal(reader.tokens([at])[0], wanted[at]):
                wrong.append(at)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_corpus_on_any_store_is_read_as_in_a_folder(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus", shards=3)
    far = FarStore(open_store(folder))
    ours, theirs = Corpus(far, *read_manifest(far)).reader(32, 4), Corpus.open(folder).reader(32, 4)
    assert far.address == str(folder)
    for found, wanted in zip(ours.read(range(90)), theirs.read(range(90)), strict=True):
        assert np.array_equal(found, wanted)
    name = theirs.corpus.manifest.shards.file[1].decode()
    (folder / name).write_bytes((folder / name).read_bytes()[:-9])
    again = FarStore(open_store(folder))
    read_manifest(again)
    with pytest.raises(UserError, match="it has less than"):
        again.shard(1)
