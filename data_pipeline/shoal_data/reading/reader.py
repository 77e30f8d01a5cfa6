"""Samples of a corpus by their position in the global order.

Sample i of epoch e is a pure function of (manifest, seed, i, e): any rank of any world size at any step reads exactly
its samples, and the whole state of reading is one integer, the next position. Nothing here knows Ray or torch.
"""

from __future__ import annotations

import atexit
import hashlib
import io
import math
import operator
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shoal_core.errors import UserError
from shoal_data.files import write_whole
from shoal_data.reading.locations import Location, Locator, Stream
from shoal_data.reading.manifest import MANIFEST, Manifest
from shoal_data.reading.order import SampleOrder
from shoal_data.reading.store import LocalStore, Store, open_store

__all__ = ["Corpus", "Reader", "bits_per_byte"]

Ids = Sequence[int] | npt.NDArray[np.int64]


def bits_per_byte(nats: float, text_bytes: float) -> float:
    """Bits per byte of a summed cross-entropy: `nats / ln 2 / text_bytes`, with `text_bytes` the sum of what
    `Reader.read` gives for the same samples."""
    return nats / math.log(2) / text_bytes


class Corpus:
    """A finished corpus, opened; cheap to hold, safe to share between threads.

    Attributes:
        address: its folder or `s3://` URL.
        manifest: what it holds.
        digest: hex SHA-256 of the manifest, which itself holds the checksum of every file: names the content.
        token_bytes: bytes of text each token id stands for, (vocab_size,); 0 for special tokens.
    """

    def __init__(self, store: Store, manifest: Manifest, digest: str) -> None:
        self.address, self.store, self.manifest, self.digest = store.address, store, manifest, digest
        self.token_bytes: npt.NDArray[np.uint16] = np.load(io.BytesIO(self.file("token_bytes")), allow_pickle=False)
        if self.token_bytes.shape != (manifest.vocab_size,):
            name = manifest.files["token_bytes"]["file"]
            raise UserError(
                f"{store.where(name)}: {self.token_bytes.shape} entries, not {manifest.vocab_size}", store.remedy(name)
            )
        self._tokenizer: Path | None = None

    @staticmethod
    def open(address: str | Path) -> Corpus:
        """Open the corpus in a folder or under an `s3://bucket/prefix`.

        Raises:
            UserError: there is none, it is unfinished, its manifest contradicts itself, or its files do not fit it.
        """
        return Corpus(*open_store(address))

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id."""
        return self.manifest.vocab_size

    @property
    def tokens(self) -> int:
        """Tokens in all shards."""
        return int(self.manifest.shards.tokens.sum())

    def file(self, role: str) -> bytes:
        """The content of a small file of the corpus, by its role in `Manifest.files`.

        Raises:
            UserError: there is none, or it is not what the manifest says.
        """
        entry = self.manifest.files.get(role)
        if entry is None:
            raise UserError(f"{self.store.where(MANIFEST)}: field files.{role} is missing", self.store.remedy(MANIFEST))
        where, remedy = self.store.where(entry["file"]), self.store.remedy(entry["file"])
        for _ in range(2):  # what comes from a store may have been spoilt on its way
            try:
                content = self.store.small(entry["file"])
            except FileNotFoundError as error:
                raise UserError(f"{where}: missing", remedy) from error
            if hashlib.sha256(content).hexdigest() == entry["sha256"]:
                return content
        raise UserError(f"{where}: its SHA-256 is not the manifest's", remedy)

    @property
    def tokenizer_path(self) -> Path:
        """The `tokenizer.json` the corpus was encoded with; of a corpus on S3, a copy that this process alone may read
        and that goes when it ends.

        Raises:
            UserError: as `file`.
        """
        if self._tokenizer is None:
            content = self.file("tokenizer")
            if isinstance(self.store, LocalStore):
                return self.store.folder / self.manifest.files["tokenizer"]["file"]
            folder = Path(tempfile.mkdtemp(prefix="shoal-"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            write_whole(folder / "tokenizer.json", content)
            self._tokenizer = folder / "tokenizer.json"
        return self._tokenizer

    def samples(self, seq_len: int) -> int:
        """Samples an epoch at `seq_len`: each predicts `seq_len` tokens that no other predicts.

        Raises:
            UserError: `seq_len` is not an integer above 0.
        """
        return sum(_samples(stream, _above_0(seq_len)) for stream in self.streams())

    def streams(self) -> list[Stream]:
        """What samples are cut from: one stream of all shards, or one for each source if the manifest has weights."""
        tokens, source = self.manifest.shards.tokens, self.manifest.shards.source
        members = [np.arange(len(tokens))]
        if self.manifest.weights is not None:
            members = [np.flatnonzero(source == number) for number in range(len(self.manifest.sources))]
        return [Stream(shards, np.concatenate(([0], np.cumsum(tokens[shards])))) for shards in members]

    def reader(self, seq_len: int, seed: int) -> Reader:
        """Samples of `seq_len + 1` tokens in the order that `seed` names.

        Raises:
            UserError: `seq_len` is not an integer above 0, `seed` not an integer, or the corpus, or a source of it, is
                shorter than one sample.
        """
        return Reader(self, seq_len, seed)


def _above_0(seq_len: int) -> int:
    try:
        found = operator.index(seq_len)
    except TypeError:
        found = 0
    if found < 1:
        raise UserError(f"seq_len {seq_len!r}: not an integer above 0", "choose how many tokens a sample predicts")
    return found


def _samples(stream: Stream, seq_len: int) -> int:
    return max(0, (int(stream.starts[-1]) - 1) // seq_len)


def _positions(ids: Ids) -> npt.NDArray[np.int64]:
    """`ids` as they are worked with; negative ones are refused where samples are looked up."""
    found = np.asarray(ids)
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
        raise UserError(f"positions {ids!r}: not a row of integers", "give positions in the global order, from 0 on")
    return found.astype(np.int64, copy=False)


class Reader:
    """Reads samples by position: of `samples` an epoch, position p is index `p % samples` of epoch `p // samples`.

    Attributes:
        samples: samples an epoch.
    """

    def __init__(self, corpus: Corpus, seq_len: int, seed: int) -> None:
        self.corpus, self.seq_len, self.seed = corpus, _above_0(seq_len), seed
        if not isinstance(seed, int | np.integer):
            raise UserError(f"seed {seed!r}: not an integer", "choose any integer")
        manifest = corpus.manifest
        self._streams = corpus.streams()
        counts = [_samples(stream, self.seq_len) for stream in self._streams]
        for number, count in enumerate(counts):
            if count < 1:
                what = f"source {manifest.sources[number]!r}" if manifest.weights else "the corpus"
                raise UserError(
                    f"{corpus.address}: {what} has {int(self._streams[number].starts[-1])} tokens, less than one "
                    f"sample of seq_len + 1 = {seq_len + 1}",
                    "tokenize more text or choose a smaller seq_len",
                )
        self.samples = sum(counts)
        weights = [manifest.weights[name] for name in manifest.sources] if manifest.weights else None
        self._locator = Locator(self._streams, SampleOrder(counts, weights, seed), self.seq_len)

    def locate(self, ids: Ids) -> Location:
        """Where the samples at positions `ids` begin. Pure: nothing is read.

        Raises:
            UserError: a position is no integer, or negative.
        """
        return self._locator(_positions(ids))

    def tokens(self, ids: Ids, out: npt.NDArray[np.integer] | None = None) -> npt.NDArray[np.integer]:
        """Token ids of the samples at positions `ids`: (n, seq_len + 1); predict `[:, 1:]` from `[:, :-1]`.

        Args:
            out: takes them, widened to its dtype; a new array of the corpus's own unsigned dtype if None.
        """
        location, width = self.locate(ids), self.seq_len + 1
        across = np.flatnonzero(location.room < width) if location.room.min(initial=width) < width else ()
        if len(across) == 0:
            found = self.corpus.store.gather(location.shard, location.first, width)
        elif len(across) == len(location.room):
            found = np.empty((len(across), width), self.corpus.manifest.dtype)
        else:  # copy another sample in the place of each that goes on in the next shard, and write those over
            pick = np.arange(len(location.room))
            pick[across] = np.argmax(location.room)
            found = self.corpus.store.gather(location.shard[pick], location.first[pick], width)
        for number in across:
            self._across(found[number], *(int(one[number]) for one in (location.stream, location.turn, location.first)))
        if out is None:
            return found
        out[:] = found
        return out

    def _across(self, row: npt.NDArray[np.integer], stream: int, turn: int, begin: int) -> None:
        """Fill `row` with a sample that goes on in the next shard of its stream."""
        done = 0
        for shard, first, last in self._stretches(stream, turn, begin):
            row[done : done + last - first] = self.corpus.store.tokens(shard, first, last)
            done += last - first

    def _stretches(self, stream: int, turn: int, begin: int) -> Iterator[tuple[int, int, int]]:
        """Shards, and which of their tokens (half open), that a sample is made of."""
        left = self.seq_len + 1
        while left:
            shard = int(self._streams[stream].shards[turn])
            end = min(begin + left, int(self.corpus.manifest.shards.tokens[shard]))
            yield shard, begin, end
            left, begin, turn = left - (end - begin), 0, turn + 1

    def lengths(self, ids: Ids) -> npt.NDArray[np.int64]:
        """UTF-8 bytes of text that the predicted tokens of the samples at positions `ids` stand for: (n,)."""
        return self._lengths(self.tokens(ids))

    def read(self, ids: Ids) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Both, for evaluation: training has no use for lengths, and takes `tokens` alone.

        Returns:
            tokens: (n, seq_len + 1) int64; predict `tokens[:, 1:]` from `tokens[:, :-1]`.
            lengths: (n,) int64, see `lengths`.
        """
        tokens = self.tokens(ids)
        return tokens.astype(np.int64), self._lengths(tokens)

    def _lengths(self, tokens: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        sizes = self.corpus.token_bytes.take(tokens)
        return sizes.sum(axis=1, dtype=np.int64) - sizes[:, 0]

    def prefetch(self, ids: Ids) -> int:
        """Begin to read the samples at positions `ids`, which will be asked for later (a corpus on S3). Returns how
        many blocks hold them, a block of several samples counted for each."""
        location = self._locator.locate(_positions(ids))
        blocks = 0
        for stream, turn, begin in zip(*(one.tolist() for one in location[:2]), location.first.tolist(), strict=True):
            for shard, first, last in self._stretches(stream, turn, begin):
                blocks += self.corpus.store.prefetch(shard, first, last)
        return blocks
