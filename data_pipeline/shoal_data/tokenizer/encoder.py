"""Text to token ids, Arrow in and Arrow out: with gigatoken, without a Python loop over documents or tokens, where it
gives the ids that `tokenizers` gives; elsewhere with `tokenizers` itself.

What counts is what `tokenizers` makes of a text in which control tokens are plain text (`encode_special_tokens`).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal_core.errors import UserError
from shoal_data.tokenizer.engines import Gigatoken, Tokenizers
from shoal_data.tokenizer.fast_rules import why_slow
from shoal_data.tokenizer.normalize import normalized
from shoal_data.tokenizer.probe import PROBE
from shoal_data.tokenizer.rules import rules_of, token_texts
from shoal_data.tokenizer.stream import Splits, Stream, splits_of

__all__ = ["Encoder", "load_encoder"]

_WHAT = "not a tokenizer.json that can be used"
_REMEDY = "give the tokenizer.json that `shoal data tokenizer-train` wrote, or another BPE one"


class Encoder:
    """A `tokenizer.json`, ready to encode.

    Text cannot forge control tokens: what looks like a special token in a document is encoded as plain text. Special
    ids enter the stream only where the pipeline puts them.

    Attributes:
        vocab_size: one more than the largest token id.
        special: content of each control token -> id.
        digest: hex SHA-256 of the file.
        tokens: text bytes of each token by id; empty for control tokens and unused ids.
        engine: what encodes, "gigatoken" or "tokenizers".
        says: what its user should know: that it is slow and why, that it changes text.
    """

    def __init__(self, content: bytes, where: str, engine: str = "") -> None:
        """Take the file `content` named `where`.

        Args:
            engine: what another process found to encode it rightly; empty to find it here, which costs about as much
                as loading the file twice.

        Raises:
            UserError: it is no `tokenizer.json`, or one whose tokens would not give text back.
        """
        try:
            config = json.loads(content.decode())  # `tokenizers` takes no mark of bytes' order and no UTF-16 either
            self._rules = rules_of(config)
            self.tokens = token_texts(config)
            slow = "" if engine else why_slow(config, self._rules)
        except UserError as error:
            raise UserError(f"{where}: {error.problem}", error.remedy) from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{where}: {_WHAT} ({type(error).__name__}: {error})", _REMEDY) from error
        self.digest = hashlib.sha256(content).hexdigest()
        self.special, self.vocab_size = self._rules.special, len(self.tokens)
        self.says = list(self._rules.says)
        self._splits: Splits | None = None
        sizes = [len(text) for text in self.tokens]
        self._sizes: npt.NDArray[np.unsignedinteger] = np.array(sizes, np.uint32)
        if max(sizes) <= np.iinfo(np.uint16).max:
            self._sizes = self._sizes.astype(np.uint16)
        self._engine: Gigatoken | Tokenizers
        if engine == Gigatoken.name:
            self._engine = Gigatoken(config, self._rules, self.tokens)
        elif engine == Tokenizers.name:
            self._engine = Tokenizers(config, self._rules)
        else:
            self._engine = self._proven(config, where, slow)
        self.engine = self._engine.name

    def _proven(self, config: dict[str, Any], where: str, slow: str) -> Gigatoken | Tokenizers:
        """The engine that encodes the probe as `tokenizers` does, and its tokens as the bytes they stand for."""
        try:
            peer = Tokenizers(config, self._rules)
            peer.check_ids()
        except UserError as error:
            raise UserError(f"{where}: {error.problem}", error.remedy) from None
        probe = self.prepare(pa.array(PROBE, pa.large_string()))
        wanted = peer.encode(probe)
        bounds = wanted.offsets.tolist()
        for number, text in enumerate(probe.to_pylist()):
            ids = wanted.ids[bounds[number] : bounds[number + 1]].tolist()
            if b"".join(self.tokens[token] for token in ids) != text.encode():
                raise UserError(f"{where}: its tokens do not give back the text {text[:40]!r}", _REMEDY)
        if not slow:
            try:
                fast = Gigatoken(config, self._rules, self.tokens)
            except (ValueError, RuntimeError) as error:
                slow = f"gigatoken does not take it ({error})"
            else:
                found = fast.encode(probe)
                if np.array_equal(found.offsets, wanted.offsets) and np.array_equal(found.ids, wanted.ids):
                    return fast
                slow = "gigatoken encodes some text differently"
        self.says.append(f"encoded by `tokenizers` itself, far slower than by gigatoken, because {slow}")
        return peer

    @property
    def token_bytes(self) -> npt.NDArray[np.unsignedinteger]:
        """Bytes of text each token id stands for, (vocab_size,); 0 for control tokens and unused ids."""
        return self._sizes

    @property
    def splits(self) -> Splits:
        """How its tokens of punctuation and line breaks fall apart."""
        if self._splits is None:
            self._splits = splits_of(self.tokens, lambda texts: self.encode(pa.array(texts, pa.large_string())))
        return self._splits

    def prepare(self, text: pa.LargeStringArray) -> pa.LargeStringArray:
        """The documents `text` (n,) as the tokenizer normalizes them: what `encode` takes and its tokens stand for."""
        return normalized(text, nfc=self._rules.nfc, spaces=self._rules.spaces)

    def encode(self, text: pa.LargeStringArray) -> Stream:
        """Token ids of prepared documents `text` (n,); with all cores, but within Ray, which has a process for each."""
        return self._engine.encode(text)


_kept: list[Encoder] = []


def load_encoder(path: str | Path, digest: str = "", engine: str = "") -> Encoder:
    """The encoder of a `tokenizer.json`; the last is kept for who names its digest, since loading costs about a second.

    Args:
        digest: hex SHA-256 that the file must have.
        engine: what the process that gave the digest found to encode it rightly (`Encoder.engine`).

    Raises:
        UserError: no such file, one that cannot be used, or not the one that `digest` names.
    """
    if digest and _kept and _kept[0].digest == digest:
        return _kept[0]
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file", "give --tokenizer DIR/tokenizer.json")
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})", "give --tokenizer a file that may be read") from error
    encoder = Encoder(content, str(path), engine)
    if digest and encoder.digest != digest:
        raise UserError(f"{path}: it changed while the job ran", "run the job again with the tokenizer it began with")
    _kept[:] = [encoder]
    return encoder
