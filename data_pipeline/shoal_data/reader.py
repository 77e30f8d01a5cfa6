"""Samples of a corpus by their position in the global order.

Sample i of epoch e is a pure function of (manifest, seed, i, e): any rank of any world size at any step reads exactly
its samples, and the whole state of reading is one integer, the next position. Nothing here knows Ray or torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shoal_data.errors import InputError
from shoal_data.manifest import Manifest
from shoal_data.permutation import Permutation
from shoal_data.verify import check_shard

__all__ = ["Corpus", "Reader", "bits_per_byte"]


def bits_per_byte(nats: float, text_bytes: float) -> float:
    """Bits per byte of a summed cross-entropy: `nats / ln 2 / text_bytes`, with `text_bytes` the sum of what
    `Reader.read` gives for the same samples."""
    return nats / math.log(2) / text_bytes


class Corpus:
    """A finished corpus, opened; cheap to hold, safe to share between threads.

    Attributes:
        path: its folder.
        manifest: what it holds.
        digest: hex SHA-256 of the manifest, which itself holds the checksum of every file: names the content.
        token_bytes: bytes of text each token id stands for, (vocab_size,); 0 for special tokens.
    """

    def __init__(self, path: Path, manifest: Manifest, digest: str) -> None:
        self.path, self.manifest, self.digest = path, manifest, digest
        name = manifest.files["token_bytes"]["file"]
        try:
            table = np.load(path / name, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"{path / name}: {error}", "run `shoal data verify` and build the corpus again") from error
        if table.shape != (manifest.vocab_size,):
            raise InputError(f"{path / name}: {table.shape[0]} entries, the vocabulary has {manifest.vocab_size}")
        self.token_bytes: npt.NDArray[np.uint16] = table
        #: first token of each shard in the stream of all shards, and the total: (shards + 1,)
        self.starts: npt.NDArray[np.int64] = np.concatenate(([0], np.cumsum(manifest.shards.tokens, dtype=np.int64)))
        self._open: dict[int, npt.NDArray[np.unsignedinteger]] = {}

    @staticmethod
    def open(path: str | Path) -> Corpus:
        """Open the corpus folder `path`.

        Raises:
            InputError: there is none, it is unfinished, or its files do not fit its manifest.
        """
        folder = Path(path)
        return Corpus(folder, *Manifest.load(folder))

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id."""
        return self.manifest.vocab_size

    @property
    def tokens(self) -> int:
        """Tokens in all shards."""
        return int(self.starts[-1])

    @property
    def tokenizer_path(self) -> Path:
        """The `tokenizer.json` the corpus was encoded with."""
        return self.path / self.manifest.files["tokenizer"]["file"]

    def samples(self, seq_len: int) -> int:
        """Samples an epoch at `seq_len`: each predicts `seq_len` tokens that no other predicts."""
        return max(0, (self.tokens - 1) // seq_len)

    def reader(self, seq_len: int, seed: int) -> Reader:
        """Samples of `seq_len + 1` tokens in the order that `seed` names.

        Raises:
            InputError: the corpus is shorter than one sample.
        """
        return Reader(self, seq_len, seed)

    def shard(self, index: int) -> npt.NDArray[np.unsignedinteger]:
        """All token values of a shard, memory-mapped: (tokens,).

        Raises:
            InputError: the file is missing or has another size than the manifest says.
        """
        found = self._open.get(index)
        if found is None:
            shards = self.manifest.shards
            path = check_shard(self.path, shards, index)
            found = np.memmap(
                path,
                dtype=np.dtype(self.manifest.dtype).newbyteorder("<"),
                mode="r",
                offset=int(shards.offset[index]),
                shape=(int(shards.tokens[index]),),
            )
            self._open[index] = found
        return found

    def span(self, first: int, out: npt.NDArray[np.int32]) -> None:
        """Fill `out` with the consecutive tokens from `first` on of the stream of all shards."""
        shard = int(np.searchsorted(self.starts, first, side="right")) - 1
        done = 0
        while done < len(out):
            here = first + done - int(self.starts[shard])
            part = self.shard(shard)[here : here + len(out) - done]
            out[done : done + len(part)] = part
            done += len(part)
            shard += 1


class Reader:
    """Reads samples by position: position p is index `p % samples` of epoch `p // samples`.

    Attributes:
        samples: samples an epoch.
    """

    def __init__(self, corpus: Corpus, seq_len: int, seed: int) -> None:
        self.corpus, self.seq_len, self.seed = corpus, seq_len, seed
        self.samples = corpus.samples(seq_len)
        if self.samples < 1:
            raise InputError(
                f"{corpus.path}: {corpus.tokens} tokens are less than one sample of seq_len + 1 = {seq_len + 1}",
                "tokenize more text or choose a smaller seq_len",
            )

    def locate(self, ids: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """First token, in the stream of all shards, of the samples at positions `ids`: (n,). Pure."""
        position = np.asarray(ids, dtype=np.int64)
        if position.size and position.min() < 0:
            raise ValueError("positions in the global order start at 0")
        epoch, index = np.divmod(position, self.samples)
        sample = np.empty_like(index)
        for one in np.unique(epoch):
            here = epoch == one
            sample[here] = Permutation(self.samples, self.seed, int(one))(index[here])
        return sample * self.seq_len

    def read(self, ids: Sequence[int] | npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """The samples at positions `ids` of the global order.

        Returns:
            tokens: (n, seq_len + 1) int32; predict `tokens[:, 1:]` from `tokens[:, :-1]`.
            bytes: (n,) int64, UTF-8 bytes of text that the predicted tokens of each sample stand for.
        """
        tokens = np.empty((len(ids), self.seq_len + 1), np.int32)
        for row, first in zip(tokens, self.locate(ids).tolist(), strict=True):
            self.corpus.span(first, row)
        return tokens, self.corpus.token_bytes[tokens[:, 1:]].sum(axis=1, dtype=np.int64)
