"""`manifest.json`: what a corpus holds, in a form that stays small at 100,000 shards.

The shard table is stored by columns (one JSON list each), and held as NumPy arrays, so that 14.8T tokens in 100,000
shards take some 10 MB of memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["BLOCK_BYTES", "FORMAT", "MANIFEST", "Manifest", "Shards"]

FORMAT = "shoal-corpus-1"
MANIFEST = "manifest.json"
#: each block of this many bytes of a shard has a CRC-32 of its own in the file `blocks`, so that ranges can be checked
BLOCK_BYTES = 1 << 20
_COLUMNS = ("file", "source", "size", "sha256", "offset", "tokens", "documents", "text_bytes")


@dataclass(frozen=True)
class Shards:
    """The shard table; every array has one element a shard, in corpus order.

    Attributes:
        file: path relative to the corpus folder (bytes).
        source: index into `Manifest.sources`.
        size: bytes of the file.
        sha256: hex digest of the file (bytes).
        offset: byte offset of the token values within the file.
        tokens: token values in the shard.
        documents: documents in the shard.
        text_bytes: UTF-8 bytes of the text the tokens stand for.
    """

    file: npt.NDArray[np.bytes_]
    source: npt.NDArray[np.int32]
    size: npt.NDArray[np.int64]
    sha256: npt.NDArray[np.bytes_]
    offset: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    documents: npt.NDArray[np.int64]
    text_bytes: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.file)

    @staticmethod
    def from_columns(columns: dict[str, list[Any]]) -> Shards:
        """From the lists of the JSON file.

        Raises:
            KeyError: a column is missing.
            ValueError: a column does not hold what it should.
        """
        names = ("size", "offset", "tokens", "documents", "text_bytes")
        return Shards(
            file=_texts(columns, "file"),
            source=_integers(columns, "source").clip(-1, (1 << 31) - 1).astype(np.int32),
            sha256=_texts(columns, "sha256"),
            **{name: _integers(columns, name) for name in names},
        )

    def to_columns(self) -> dict[str, list[Any]]:
        """As the lists of the JSON file."""
        columns: dict[str, list[Any]] = {name: getattr(self, name).tolist() for name in _COLUMNS}
        for name in ("file", "sha256"):
            columns[name] = [value.decode() for value in columns[name]]
        return columns


def _texts(columns: dict[str, list[Any]], name: str) -> npt.NDArray[np.bytes_]:
    values = columns[name]
    wrong = next((at for at, value in enumerate(values) if not isinstance(value, str) or "\0" in value), None)
    if wrong is not None:
        raise ValueError(f"field shards.{name} of shard {wrong} is {values[wrong]!r}, not a text")
    return np.array([value.encode() for value in values], dtype=np.bytes_)


def _integers(columns: dict[str, list[Any]], name: str) -> npt.NDArray[np.int64]:
    values = columns[name]
    found = np.array(values) if values else np.empty(0, np.int64)
    if found.dtype != np.int64 or found.ndim != 1:  # a single fraction or text gives the array another type
        wrong = next((at for at, value in enumerate(values) if type(value) is not int or abs(value) >= 1 << 63), 0)
        raise ValueError(f"field shards.{name} of shard {wrong} is {values[wrong]!r}, not an integer of 64 bits")
    return found


@dataclass(frozen=True)
class Manifest:
    """A finished corpus.

    Attributes:
        dtype: `uint16` or `uint32`, little-endian, of every token value.
        vocab_size: one more than the largest token id the tokenizer can give.
        sources: names of the sources; a shard belongs to one.
        weights: mixture weight of each source (they add up to 1), or None to take every token once an epoch.
        files: the corpus's other files by role: `{"file", "sha256"}`. `tokenizer`; `token_bytes`, the text bytes of
            each token (.npy); `blocks`, CRC-32 of each block of each shard (uint32); `quarantine`.
        special: ids of the special tokens in use by role (`eos`, ...).
        totals: `tokens, documents, bytes`, each over all, and by source and by language.
        options: what the corpus was built with.
        version: the software's version.
    """

    dtype: str
    vocab_size: int
    sources: list[str]
    shards: Shards
    files: dict[str, dict[str, str]]
    weights: dict[str, float] | None = None
    special: dict[str, int] = field(default_factory=dict)
    totals: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    version: str = ""

    def to_json(self) -> dict[str, Any]:
        """The content of `manifest.json`."""
        return {
            "format": FORMAT,
            "version": self.version,
            "dtype": self.dtype,
            "vocab_size": self.vocab_size,
            "special": self.special,
            "sources": self.sources,
            "weights": self.weights,
            "totals": self.totals,
            "files": self.files,
            "options": self.options,
            "shards": self.shards.to_columns(),
        }
