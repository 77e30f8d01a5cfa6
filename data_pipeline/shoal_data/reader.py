"""Samples of a corpus by their position in the global order.

Sample i of epoch e is a pure function of (manifest, seed, i, e): any rank of any world size at any step reads exactly
its samples, and the whole state of reading is one integer, the next position. Nothing here knows Ray or torch.
"""

from __future__ import annotations

import hashlib
import io
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shoal_data.errors import InputError
from shoal_data.files import write_whole
from shoal_data.manifest import Manifest
from shoal_data.order import SampleOrder
from shoal_data.store import LocalStore, S3Store, open_store

__all__ = ["Corpus", "Reader", "bits_per_byte"]

Ids = Sequence[int] | npt.NDArray[np.int64]


def bits_per_byte(nats: float, text_bytes: float) -> float:
    """Bits per byte of a summed cross-entropy: `nats / ln 2 / text_bytes`, with `text_bytes` the sum of what
    `Reader.read` gives for the same samples."""
    return nats / math.log(2) / text_bytes


class Corpus:
    """A finished corpus, opened; cheap to hold, safe to share between threads.

    Attributes:
        path: its folder or `s3://` URL.
        manifest: what it holds.
        digest: hex SHA-256 of the manifest, which itself holds the checksum of every file: names the content.
        token_bytes: bytes of text each token id stands for, (vocab_size,); 0 for special tokens.
    """

    def __init__(self, path: str | Path, store: LocalStore | S3Store, manifest: Manifest, digest: str) -> None:
        self.path, self.store, self.manifest, self.digest = Path(path), store, manifest, digest
        self.token_bytes: npt.NDArray[np.uint16] = np.load(io.BytesIO(self._checked("token_bytes")), allow_pickle=False)
        if self.token_bytes.shape != (manifest.vocab_size,):
            raise InputError(f"{path}: token_bytes.npy has {self.token_bytes.shape} entries, not {manifest.vocab_size}")
        self._tokenizer: Path | None = None

    @staticmethod
    def open(path: str | Path) -> Corpus:
        """Open the corpus in a folder or under an `s3://bucket/prefix`.

        Raises:
            InputError: there is none, it is unfinished, or its files do not fit its manifest.
        """
        return Corpus(path, *open_store(path))

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id."""
        return self.manifest.vocab_size

    @property
    def tokens(self) -> int:
        """Tokens in all shards."""
        return int(self.manifest.shards.tokens.sum())

    @property
    def tokenizer_path(self) -> Path:
        """The `tokenizer.json` the corpus was encoded with; of a corpus on S3, a private local copy."""
        if isinstance(self.store, LocalStore):
            return self.path / self.manifest.files["tokenizer"]["file"]
        if self._tokenizer is None:
            self._tokenizer = Path(tempfile.mkdtemp(prefix="shoal-")) / "tokenizer.json"
            write_whole(self._tokenizer, self._checked("tokenizer"))
        return self._tokenizer

    def samples(self, seq_len: int) -> int:
        """Samples an epoch at `seq_len`: each predicts `seq_len` tokens that no other predicts."""
        return sum(max(0, (int(starts[-1]) - 1) // seq_len) for _, starts in self.streams())

    def streams(self) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """What samples are cut from: one stream of all shards, or one for each source if the manifest has weights.

        Each is the indices of its shards (k,), and the first token of each in the stream, and the total (k + 1,).
        """
        tokens, source = self.manifest.shards.tokens, self.manifest.shards.source
        members = [np.arange(len(tokens))]
        if self.manifest.weights is not None:
            members = [np.flatnonzero(source == number) for number in range(len(self.manifest.sources))]
        return [(shards, np.concatenate(([0], np.cumsum(tokens[shards], dtype=np.int64)))) for shards in members]

    def reader(self, seq_len: int, seed: int) -> Reader:
        """Samples of `seq_len + 1` tokens in the order that `seed` names.

        Raises:
            InputError: the corpus, or a source of it, is shorter than one sample.
        """
        return Reader(self, seq_len, seed)

    def _checked(self, role: str) -> bytes:
        entry = self.manifest.files[role]
        try:
            content = self.store.small(entry["file"])
        except FileNotFoundError as error:
            raise InputError(f"{self.path}/{entry['file']}: missing", "build or copy the corpus again") from error
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise InputError(
                f"{self.path}/{entry['file']}: its SHA-256 is not the manifest's", "build or copy the corpus again"
            )
        return content


class Reader:
    """Reads samples by position: of `samples` an epoch, position p is index `p % samples` of epoch `p // samples`.

    Attributes:
        samples: samples an epoch.
    """

    def __init__(self, corpus: Corpus, seq_len: int, seed: int) -> None:
        self.corpus, self.seq_len, self.seed = corpus, seq_len, seed
        manifest = corpus.manifest
        self._streams = corpus.streams()
        counts = [max(0, (int(starts[-1]) - 1) // seq_len) for _, starts in self._streams]
        for number, count in enumerate(counts):
            if count < 1:
                what = f"source {manifest.sources[number]!r}" if manifest.weights else "the corpus"
                raise InputError(
                    f"{corpus.path}: {what} has {int(self._streams[number][1][-1])} tokens, less than one sample of "
                    f"seq_len + 1 = {seq_len + 1}",
                    "tokenize more text or choose a smaller seq_len",
                )
        self.samples = sum(counts)
        weights = [manifest.weights[name] for name in manifest.sources] if manifest.weights else None
        self._order = SampleOrder(counts, weights, seed)

    def locate(self, ids: Ids) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Where the samples at positions `ids` begin: stream, position of the shard in it, token in the shard. Pure."""
        position = np.asarray(ids, dtype=np.int64)
        if position.size and position.min() < 0:
            raise ValueError("positions in the global order start at 0")
        stream, sample = self._order(position)
        first = sample * self.seq_len
        shard = np.empty_like(first)
        for number in np.unique(stream).tolist():
            mine = stream == number
            starts = self._streams[number][1]
            shard[mine] = np.searchsorted(starts, first[mine], side="right") - 1
            first[mine] -= starts[shard[mine]]
        return stream, shard, first

    def tokens(self, ids: Ids, out: npt.NDArray[np.integer] | None = None) -> npt.NDArray[np.integer]:
        """Token ids of the samples at positions `ids`: (n, seq_len + 1), in the corpus's own dtype or into `out`."""
        if out is None:
            out = np.empty((len(ids), self.seq_len + 1), self.corpus.manifest.dtype)
        stream, shard, first = self.locate(ids)
        width, store, whole = self.seq_len + 1, self.corpus.store, self._indices(stream, shard)
        inside = first + width <= self.corpus.manifest.shards.tokens[whole]
        local = store if isinstance(store, LocalStore) else None
        if local is None:
            self.prefetch(ids)
        rows = zip(out, whole.tolist(), first.tolist(), inside.tolist(), strict=True)
        for number, (row, index, begin, fits) in enumerate(rows):
            if fits and local is not None:
                row[:] = local.whole(index)[begin : begin + width]
            elif fits:
                row[:] = store.tokens(index, begin, begin + width)
            else:
                self._across(row, int(stream[number]), int(shard[number]), begin)
        return out

    def _across(self, row: npt.NDArray[np.integer], stream: int, shard: int, begin: int) -> None:
        """Fill `row` with a sample that goes on in the next shard of its stream."""
        done = 0
        while done < len(row):
            index = int(self._streams[stream][0][shard])
            end = min(begin + len(row) - done, int(self.corpus.manifest.shards.tokens[index]))
            row[done : done + end - begin] = self.corpus.store.tokens(index, begin, end)
            done, begin, shard = done + end - begin, 0, shard + 1

    def _indices(self, stream: npt.NDArray[np.int64], shard: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Row of the shard table of each shard that `locate` gives as a position in its stream."""
        found = np.empty_like(shard)
        for number, (members, _) in enumerate(self._streams):
            mine = stream == number
            found[mine] = members[shard[mine]]
        return found

    def read(self, ids: Ids) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """The samples at positions `ids` of the global order.

        Returns:
            tokens: (n, seq_len + 1) int32; predict `tokens[:, 1:]` from `tokens[:, :-1]`.
            bytes: (n,) int64, UTF-8 bytes of text that the predicted tokens of each sample stand for.
        """
        tokens = np.empty((len(ids), self.seq_len + 1), np.int32)
        self.tokens(ids, tokens)
        sizes = self.corpus.token_bytes.take(tokens)
        return tokens, sizes.sum(axis=1, dtype=np.int64) - sizes[:, 0]

    def prefetch(self, ids: Ids) -> None:
        """Begin to read the samples at positions `ids`, which will be asked for later (a corpus on S3)."""
        stream, shard, first = self.locate(ids)
        lengths = self.corpus.manifest.shards.tokens
        for index, begin in zip(self._indices(stream, shard).tolist(), first.tolist(), strict=True):
            self.corpus.store.prefetch(index, begin, min(begin + self.seq_len + 1, int(lengths[index])))
