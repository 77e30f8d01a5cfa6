"""Text to token ids with gigatoken, Arrow in and Arrow out, without a Python loop over documents or tokens."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import awkward as ak
import gigatoken
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal_data.build.recipe import Splits, Stream, splits_of
from shoal_data.build.tasks import on_ray
from shoal_data.errors import InputError

__all__ = ["Encoder", "load_encoder"]


class Encoder:
    """A byte-level BPE `tokenizer.json`, ready to encode.

    Text cannot forge control tokens: what looks like a special token in a document is encoded as plain text. Special
    ids enter the stream only where the pipeline puts them.

    Attributes:
        vocab_size: one more than the largest token id.
        special: content of each special token -> id.
        digest: hex SHA-256 of the file.
        tokens: text bytes of each token by id; empty for special tokens and unused ids.
    """

    def __init__(self, content: bytes, where: str) -> None:
        remedy = "give the tokenizer.json that `shoal data tokenizer-train` wrote, or another byte-level BPE one"
        try:
            config = json.loads(content)
            self.special = {token["content"]: int(token["id"]) for token in config.get("added_tokens") or []}
            plain = json.dumps({**config, "added_tokens": []}, ensure_ascii=False)
            self._backend = gigatoken.Tokenizer.from_json(plain).backend
            vocab = self._backend.vocab
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise InputError(f"{where}: not a tokenizer that can be used ({error})", remedy) from error
        self.digest = hashlib.sha256(content).hexdigest()
        self.vocab_size = 1 + max([*vocab, *self.special.values()])
        self.tokens: list[bytes] = [b""] * self.vocab_size
        for token, text in vocab.items():
            self.tokens[token] = text
        for token in self.special.values():
            self.tokens[token] = b""
        self._splits: Splits | None = None
        self._lengths = np.zeros(self.vocab_size, np.uint16)
        self._lengths[:] = [len(text) for text in self.tokens]

    @property
    def token_bytes(self) -> npt.NDArray[np.uint16]:
        """Bytes of text each token id stands for, (vocab_size,); 0 for special tokens and unused ids."""
        return self._lengths

    @property
    def splits(self) -> Splits:
        """How its tokens of punctuation and line breaks fall apart."""
        if self._splits is None:
            self._splits = splits_of(self.tokens, lambda texts: self.encode(pa.array(texts, pa.large_string())))
        return self._splits

    def encode(self, text: pa.LargeStringArray) -> Stream:
        """Token ids of the documents `text` (n,); with all cores, but within Ray, which has a process for each."""
        layout = self._backend.encode_batch(ak.from_arrow(text), parallel=not on_ray()).layout
        offsets = np.asarray(layout.offsets.data)
        ids = np.asarray(layout.content.data)[offsets[0] : offsets[-1]]
        return Stream((offsets - offsets[0]).astype(np.int64, copy=False), ids)


_kept: list[Encoder] = []


def load_encoder(path: str | Path, digest: str = "") -> Encoder:
    """The encoder of a `tokenizer.json`; the last is kept for who names its digest, since loading costs about a second.

    Raises:
        InputError: no such file, one that cannot be used, or not the one that `digest` (hex SHA-256) names.
    """
    if digest and _kept and _kept[0].digest == digest:
        return _kept[0]
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file", "give --tokenizer DIR/tokenizer.json")
    encoder = Encoder(Path(path).read_bytes(), str(path))
    if digest and encoder.digest != digest:
        raise InputError(f"{path}: it changed while the job ran", "run the job again with the tokenizer it began with")
    _kept[:] = [encoder]
    return encoder
