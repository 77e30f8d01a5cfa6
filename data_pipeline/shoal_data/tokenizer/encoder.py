"""Text to token ids, Arrow in and Arrow out: with gigatoken, without a Python loop over documents or tokens, where it
gives the ids that `tokenizers` gives; elsewhere with `tokenizers` itself.

What counts is what `tokenizers` makes of a text in which control tokens are plain text (`encode_special_tokens`).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import awkward as ak
import gigatoken
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tokenizers import Tokenizer

from shoal_core.errors import UserError
from shoal_data.arrow import text_buffers
from shoal_data.jobs.session import on_ray
from shoal_data.place import place_at
from shoal_data.tokenizer.fast_rules import why_slow
from shoal_data.tokenizer.normalize import normalized
from shoal_data.tokenizer.probe import PROBE
from shoal_data.tokenizer.rules import Rules, flat, rules_of, token_texts

__all__ = ["Encoded", "Encoder", "load_encoder"]

_WHAT = "not a tokenizer.json that can be used"
# Text that `tokenizers` encodes at a time: what it keeps of each token is a hundred times what we keep.
_BATCH_BYTES = 1 << 20
_REMEDY = "give the tokenizer.json that `shoal data tokenizer-train` wrote, or another BPE one"


@dataclass(frozen=True)
class Encoded:
    """Documents as token ids: document i is `ids[offsets[i]:offsets[i + 1]]`."""

    offsets: npt.NDArray[np.int64]
    ids: npt.NDArray[np.uint32]

    def with_token(self, token: int, *, after: bool) -> Encoded:
        """One `token` more after (or before) every document."""
        where = self.offsets[1:] if after else self.offsets[:-1]
        return Encoded(self.offsets + np.arange(len(self.offsets)), np.insert(self.ids, where, np.uint32(token)))


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

    def prepare(self, text: pa.LargeStringArray) -> pa.LargeStringArray:
        """The documents `text` (n,) as the tokenizer normalizes them: what `encode` takes and its tokens stand for."""
        return normalized(text, nfc=self._rules.nfc, spaces=self._rules.spaces)

    def encode(self, text: pa.LargeStringArray) -> Encoded:
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
    try:
        content = place_at(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise UserError(f"{path}: no such file", "give --tokenizer DIR/tokenizer.json") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})", "give --tokenizer a file that may be read") from error
    encoder = Encoder(content, str(path), engine)
    if digest and encoder.digest != digest:
        raise UserError(f"{path}: it changed while the job ran", "run the job again with the tokenizer it began with")
    _kept[:] = [encoder]
    return encoder


class Gigatoken:
    """A tokenizer in gigatoken, without its control tokens, for text that is normalized already.

    Raises:
        ValueError, RuntimeError: gigatoken does not know it.
    """

    name = "gigatoken"

    def __init__(self, config: Mapping[str, Any], rules: Rules, texts: Sequence[bytes]) -> None:
        """`texts`: the bytes of each token by id; what has none is left out, since no text becomes it."""
        vocab = {name: token for name, token in config["model"]["vocab"].items() if texts[token]}
        added = [entry for entry in config.get("added_tokens") or [] if entry["content"] in rules.added]
        steps = [step for step in flat(config.get("normalizer"), "normalizers") if step["type"] != "NFC"]
        plain = {
            **config,
            "model": {**config["model"], "vocab": vocab},
            "added_tokens": added,
            "normalizer": {"type": "Sequence", "normalizers": steps} if steps else None,
        }
        self._backend = gigatoken.Tokenizer.from_json(json.dumps(plain, ensure_ascii=False)).backend

    def encode(self, text: pa.LargeStringArray) -> Encoded:
        """Token ids of the documents `text` (n,), without a Python loop."""
        layout = self._backend.encode_batch(ak.from_arrow(text), parallel=not on_ray()).layout
        offsets = np.asarray(layout.offsets.data)
        ids = np.asarray(layout.content.data)[offsets[0] : offsets[-1]]
        return Encoded((offsets - offsets[0]).astype(np.int64, copy=False), ids)


class Tokenizers:
    """A tokenizer in `tokenizers`, with control tokens that no text becomes.

    Raises:
        UserError: the file is none that `tokenizers` loads.
    """

    name = "tokenizers"

    def __init__(self, config: Mapping[str, Any], rules: Rules) -> None:
        added = [{**entry, "special": entry["content"] in rules.special} for entry in config.get("added_tokens") or []]
        try:
            self._tokenizer = Tokenizer.from_str(json.dumps({**config, "added_tokens": added}))
        except Exception as error:  # of no class of its own
            raise UserError(f"not a tokenizer.json that `tokenizers` loads ({error})", "mend the file") from error
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._added = {**rules.special, **rules.added}

    def check_ids(self) -> None:
        """Raises UserError if `tokenizers` gives an added token another id than the file says."""
        for content, token in self._added.items():
            found = self._tokenizer.token_to_id(content)
            if found != token:
                raise UserError(
                    f"its added token {content!r} has the id {token} there, and {found} when `tokenizers` loads it",
                    "mend the id, or name the token in the vocabulary under that id as well",
                )

    def encode(self, text: pa.LargeStringArray) -> Encoded:
        """Token ids of the documents `text` (n,)."""
        if on_ray():  # whose workers have a core each
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
        bounds = [0, *_batch_ends(text)]
        counts, ids = [np.zeros(1, np.int64)], [np.zeros(0, np.uint32)]
        for first, last in itertools.pairwise(bounds):
            found = self._tokenizer.encode_batch_fast(text[first:last].to_pylist(), add_special_tokens=False)
            rows = [encoding.ids for encoding in found]
            counts.append(np.array([len(row) for row in rows], np.int64))
            ids.append(np.fromiter(itertools.chain.from_iterable(rows), np.uint32))
        return Encoded(np.cumsum(np.concatenate(counts)), np.concatenate(ids))


def _batch_ends(text: pa.LargeStringArray) -> list[int]:
    """Where each batch of documents ends."""
    if len(text) == 0:
        return []
    starts = text_buffers(text)[0][:-1]
    batch = (starts - starts[0]) // _BATCH_BYTES
    return [*np.flatnonzero(np.diff(batch) > 0) + 1, len(text)]
