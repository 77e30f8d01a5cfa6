"""The two that encode: gigatoken, and `tokenizers` itself; both take text in which control tokens are plain text."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import awkward as ak
import gigatoken
import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from shoal_core.errors import UserError
from shoal_data.arrow import text_buffers
from shoal_data.jobs.session import on_ray
from shoal_data.tokenizer.rules import Rules, flat
from shoal_data.tokenizer.stream import Stream

__all__ = ["Gigatoken", "Tokenizers"]

# Text that `tokenizers` encodes at a time: what it keeps of each token is a hundred times what we keep.
_BATCH_BYTES = 1 << 20


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

    def encode(self, text: pa.LargeStringArray) -> Stream:
        """Token ids of the documents `text` (n,), without a Python loop."""
        layout = self._backend.encode_batch(ak.from_arrow(text), parallel=not on_ray()).layout
        offsets = np.asarray(layout.offsets.data)
        ids = np.asarray(layout.content.data)[offsets[0] : offsets[-1]]
        return Stream((offsets - offsets[0]).astype(np.int64, copy=False), ids)


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

    def encode(self, text: pa.LargeStringArray) -> Stream:
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
        return Stream(np.cumsum(np.concatenate(counts)), np.concatenate(ids))


def _batch_ends(text: pa.LargeStringArray) -> list[int]:
    """Where each batch of documents ends."""
    if len(text) == 0:
        return []
    starts = text_buffers(text)[0][:-1]
    batch = (starts - starts[0]) // _BATCH_BYTES
    return [*np.flatnonzero(np.diff(batch) > 0) + 1, len(text)]
