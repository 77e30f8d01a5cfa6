"""`manifest.json`: what a corpus holds, in a form that stays small at 100,000 shards.

The shard table is stored by columns (one JSON list each), and held as NumPy arrays, so that 14.8T tokens in 100,000
shards take some 10 MB of memory.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal_data.errors import InputError

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
        """From the lists of the JSON file."""
        ints = {name: np.array(columns[name], np.int64) for name in ("size", "offset", "tokens", "documents")}
        return Shards(
            file=np.array([name.encode() for name in columns["file"]], dtype=np.bytes_),
            source=np.array(columns["source"], np.int32),
            sha256=np.array([digest.encode() for digest in columns["sha256"]], dtype=np.bytes_),
            text_bytes=np.array(columns["text_bytes"], np.int64),
            **ints,
        )

    def to_columns(self) -> dict[str, list[Any]]:
        """As the lists of the JSON file."""
        columns: dict[str, list[Any]] = {name: getattr(self, name).tolist() for name in _COLUMNS}
        for name in ("file", "sha256"):
            columns[name] = [value.decode() for value in columns[name]]
        return columns


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

    @staticmethod
    def parse(content: bytes, where: str) -> tuple[Manifest, str]:
        """The manifest in `content` and its digest (hex SHA-256 of the content); `where` is named in errors.

        Raises:
            InputError: not a manifest of this format.
        """
        remedy = "run `shoal data tokenize` again with this --out; it keeps the finished parts"
        try:
            value = json.loads(content)
            if value.get("format") != FORMAT:
                raise InputError(f"{where}: field format is {value.get('format')!r}, not {FORMAT!r}", remedy)
            manifest = Manifest(
                dtype=value["dtype"],
                vocab_size=int(value["vocab_size"]),
                sources=list(value["sources"]),
                shards=Shards.from_columns(value["shards"]),
                files=value["files"],
                weights=value["weights"],
                special=value["special"],
                totals=value["totals"],
                options=value["options"],
                version=value["version"],
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{where}: not a corpus manifest ({type(error).__name__}: {error})", remedy) from error
        if manifest.dtype not in ("uint16", "uint32"):
            raise InputError(f"{where}: field dtype is {manifest.dtype!r}, not uint16 or uint32", remedy)
        return manifest, hashlib.sha256(content).hexdigest()

    @staticmethod
    def load(corpus: Path) -> tuple[Manifest, str]:
        """The manifest of the corpus folder `corpus`, and its digest.

        Raises:
            InputError: no corpus there, or an unfinished one.
        """
        path = corpus / MANIFEST
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            remedy = "give the folder that `shoal data tokenize --out` wrote"
            if (corpus / "job").is_dir():
                remedy = "the job that builds it has not finished: run the same `shoal data tokenize` again"
            raise InputError(f"{path}: no corpus here", remedy) from error
        return Manifest.parse(content, str(path))
