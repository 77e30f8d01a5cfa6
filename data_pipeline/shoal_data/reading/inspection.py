"""Documents of a corpus, decoded: for people to look at, and to write back as JSONL. A shard is in memory at a time."""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal_core.errors import UserError
from shoal_data.files import write_whole
from shoal_data.place import Place
from shoal_data.reading.reader import Corpus
from shoal_data.reading.store import LocalStore
from shoal_data.tokenizer.rules import token_texts

__all__ = ["document_lengths", "documents", "draw", "figures", "show", "write_documents"]

#: shards whose documents' lengths are drawn, in a folder and on S3
_SHARDS_LOOKED_AT, _SHARDS_FETCHED = 64, 8
_SHOWN = 200  # tokens of a document
#: what terminals act on and JSON leaves as it is: control characters above ASCII's, and those that turn text around
_ACTED_ON = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def documents(corpus: Corpus) -> Iterator[tuple[dict[str, Any], npt.NDArray[np.unsignedinteger]]]:
    """Each document's columns (`source, file, row, lang, bytes`) and its token ids, in corpus order."""
    manifest = corpus.manifest
    for index in range(len(manifest.shards)):
        source = manifest.sources[int(manifest.shards.source[index])]
        batch = _batch(corpus, index)
        rows = batch.drop_columns(["tokens"]).to_pylist()
        for number, row in enumerate(rows):
            yield {"source": source, **row}, batch["tokens"][number].values.to_numpy()


def _batch(corpus: Corpus, index: int) -> pa.RecordBatch:
    """The documents of shard `index`: those of a folder mapped, those on S3 read whole.

    Raises:
        UserError: the shard is missing, or not what was written.
    """
    content = pa.py_buffer(corpus.store.shard(index))
    try:
        batch = pa.ipc.open_file(content).get_batch(0)
        batch.validate(full=True)  # offsets of a damaged shard would reach outside of it
        largest = batch["tokens"].values.to_numpy().max(initial=0)
        if largest >= corpus.vocab_size:
            raise ValueError(f"token id {largest}, the vocabulary has {corpus.vocab_size}")
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        name = corpus.manifest.shards.file[index].decode()
        raise UserError(
            f"{corpus.store.where(name)}: this shard is damaged ({error})", corpus.store.remedy(name)
        ) from error
    return batch


class _Decoder:
    """Token ids to the text that their bytes spell: special tokens left out and fill-in-the-middle undone."""

    def __init__(self, corpus: Corpus) -> None:
        config = json.loads(corpus.file("tokenizer"))
        self._bytes = token_texts(config)
        self._names = {token["id"]: token["content"] for token in config.get("added_tokens") or []}
        self._special = corpus.manifest.special

    def __call__(self, ids: npt.NDArray[np.unsignedinteger], *, fim: bool) -> str:
        if fim:
            hole = int(np.flatnonzero(ids == self._special["fim_hole"])[0])
            end = int(np.flatnonzero(ids == self._special["fim_end"])[0])
            ids = np.concatenate((ids[:hole], ids[end:], ids[hole:end]))
        return b"".join([self._bytes[token] for token in ids.tolist()]).decode(errors="replace")

    def pieces(self, ids: npt.NDArray[np.unsignedinteger]) -> list[str]:
        """The text of each token by itself; the name of one that stands for none."""
        return [self._bytes[token].decode(errors="replace") or self._names.get(token, "") for token in ids.tolist()]


def write_documents(address: str | Path, out: BinaryIO) -> None:
    """Write every document as a line of JSON: `source, file, row, lang, text`. What a terminal would act on
    stands in it as an escape, which JSON's readers give back as it was."""
    corpus = Corpus.open(address)
    decode = _Decoder(corpus)
    for row, ids in documents(corpus):
        fields = {key: row[key] for key in ("source", "file", "row", "lang")}
        text = decode(ids, fim=row["fim"])
        line = json.dumps({**fields, "text": text}, ensure_ascii=False)
        out.write(_ACTED_ON.sub(lambda found: f"\\u{ord(found[0]):04x}", line).encode() + b"\n")


def figures(
    address: str | Path, count: int, picture: Place | None = None, fit: Callable[[str], str] = str
) -> dict[str, Any]:
    """What a corpus is made of, which is drawn into `picture` too: if None, into `inspect.png` in the corpus's folder,
    or in the current one where the corpus lies on S3.

    Args:
        fit: makes names fit for a picture.

    Returns:
        `documents`, the first `count`: `source, file, row, lang, bytes, tokens, pieces` (the first 200 tokens' texts);
        `by_source`, `by_lang`: tokens, documents and bytes by name; `picture`: where it is.
    """
    corpus = Corpus.open(address)
    decode = _Decoder(corpus)
    found = []
    for row, ids in itertools.islice(documents(corpus), count):
        fields = {key: row[key] for key in ("source", "file", "row", "lang", "bytes")}
        found.append({**fields, "tokens": len(ids), "pieces": decode.pieces(ids[:_SHOWN])})
    totals = {by: corpus.manifest.totals.get(by, {}) for by in ("by_source", "by_lang")}
    if picture is None:
        picture = (corpus.store.folder if isinstance(corpus.store, LocalStore) else Path()) / "inspect.png"
    draw(corpus, picture, fit)
    return {"documents": found, **totals, "picture": str(picture)}


def show(address: str | Path, count: int, picture: Place | None = None, fit: Callable[[str], str] = str) -> None:
    """Print the first `count` documents with a bar between tokens, and the composition, and draw it, as `figures` does.

    Args:
        fit: makes texts of documents and names fit for where they are printed.
    """
    found = figures(address, count, picture, fit)
    for one in found["documents"]:
        size = f"{one['bytes']:,} bytes, {one['tokens']:,} tokens"
        print(fit(f"--- {one['file']} row {one['row']} ({one['lang']}): {size}"))
        print(fit("│".join(one["pieces"])))
    for by in ("by_source", "by_lang"):
        for name, counts in found[by].items():
            said = f"{counts['tokens']:,} tokens, {counts['documents']:,} documents"
            rate = counts["bytes"] / max(1, counts["tokens"])
            print(fit(f"{by[3:]:>8} {name}: {said}, {rate:.2f} bytes a token"))
    print(fit(f"lengths and composition: {found['picture']}"))


def document_lengths(corpus: Corpus) -> npt.NDArray[np.int64]:
    """Tokens of each document of some shards, evenly spaced over the corpus: fewer where they must be fetched whole."""
    shards = len(corpus.manifest.shards)
    most = _SHARDS_LOOKED_AT if isinstance(corpus.store, LocalStore) else _SHARDS_FETCHED
    chosen = np.unique(np.linspace(0, shards - 1, min(most, shards)).astype(int))
    return np.concatenate([np.diff(_batch(corpus, index)["tokens"].offsets.to_numpy()) for index in chosen.tolist()])


def draw(corpus: Corpus, picture: Place, fit: Callable[[str], str] = str) -> None:
    """A picture of document lengths and of tokens by source and language; `fit` as in `show`."""
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False}):  # names are no formulas
        write_whole(picture, _picture(corpus, fit))


def _picture(corpus: Corpus, fit: Callable[[str], str]) -> bytes:
    """As a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    lengths, *shares = figure.subplots(1, 3)
    tokens = document_lengths(corpus)
    lengths.hist(tokens, bins=np.geomspace(max(1, tokens.min()), tokens.max() + 1, 40))
    lengths.set(xscale="log", xlabel="tokens a document", ylabel="documents", title="Document lengths")
    for axes, by in zip(shares, ("by_source", "by_lang"), strict=True):
        totals = corpus.manifest.totals.get(by, {})
        largest = sorted(totals, key=lambda name: -totals[name]["tokens"])[:15][::-1]
        axes.barh([fit(name) for name in largest], [totals[name]["tokens"] / 1e6 for name in largest])
        axes.set(xlabel="million tokens", title=f"Tokens {by.replace('_', ' ')}")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()
