"""Documents of a corpus, decoded: for people to look at, and to write back as JSONL."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tokenizers import Tokenizer, decoders

from shoal_data.files import write_whole
from shoal_data.reader import Corpus
from shoal_data.verify import check_shard

__all__ = ["document_lengths", "documents", "draw", "show", "write_documents"]


def documents(corpus: Corpus) -> Iterator[tuple[dict[str, Any], npt.NDArray[np.unsignedinteger]]]:
    """Each document's columns (`source, file, row, lang, bytes`) and its token ids, in corpus order."""
    manifest = corpus.manifest
    for index in range(len(manifest.shards)):
        path = check_shard(corpus.path, manifest.shards, index)
        source = manifest.sources[int(manifest.shards.source[index])]
        with pa.memory_map(str(path)) as mapped:
            batch = pa.ipc.open_file(mapped).get_batch(0)
            rows = batch.drop_columns(["tokens"]).to_pylist()
            for number, row in enumerate(rows):
                yield {"source": source, **row}, batch["tokens"][number].values.to_numpy()


class _Decoder:
    """Token ids to text, special tokens left out and fill-in-the-middle undone."""

    def __init__(self, corpus: Corpus) -> None:
        self.tokenizer = Tokenizer.from_file(str(corpus.tokenizer_path))
        self.tokenizer.decoder = decoders.ByteLevel()
        self.special = corpus.manifest.special

    def __call__(self, ids: npt.NDArray[np.unsignedinteger], *, fim: bool) -> str:
        if not fim:
            return self._text(ids)
        hole = int(np.flatnonzero(ids == self.special["fim_hole"])[0])
        end = int(np.flatnonzero(ids == self.special["fim_end"])[0])
        return self._text(ids[:hole]) + self._text(ids[end:]) + self._text(ids[hole:end])

    def _text(self, ids: npt.NDArray[np.unsignedinteger]) -> str:
        return str(self.tokenizer.decode(ids.tolist(), skip_special_tokens=True))

    def pieces(self, ids: npt.NDArray[np.unsignedinteger]) -> list[str]:
        """The text of each token by itself."""
        return [str(self.tokenizer.decode([token], skip_special_tokens=False)) for token in ids.tolist()]


def write_documents(path: str | Path, out: BinaryIO) -> None:
    """Write every document as a line of JSON: `source, file, row, lang, text`."""
    corpus = Corpus.open(path)
    decode = _Decoder(corpus)
    for row, ids in documents(corpus):
        fields = {key: row[key] for key in ("source", "file", "row", "lang")}
        text = decode(ids, fim=row["fim"])
        out.write(json.dumps({**fields, "text": text}, ensure_ascii=False).encode() + b"\n")


def show(path: str | Path, count: int, picture: Path | None) -> None:
    """Print the first `count` documents with a bar between tokens, and the composition; draw it into `picture`."""
    corpus = Corpus.open(path)
    decode = _Decoder(corpus)
    for row, ids in itertools.islice(documents(corpus), count):
        print(f"--- {row['file']} row {row['row']} ({row['lang']}): {row['bytes']:,} bytes, {len(ids):,} tokens")
        print("│".join(decode.pieces(ids[:200])))
    totals = corpus.manifest.totals
    for by in ("by_source", "by_lang"):
        for name, counts in totals[by].items():
            figures = f"{counts['tokens']:,} tokens, {counts['documents']:,} documents"
            print(f"{by[3:]:>8} {name}: {figures}, {counts['bytes'] / max(1, counts['tokens']):.2f} bytes a token")
    if picture is not None:
        draw(corpus, picture)
        print(f"lengths and composition: {picture}")


def document_lengths(corpus: Corpus, most: int = 64) -> npt.NDArray[np.int64]:
    """Tokens of each document of at most `most` shards, evenly spaced over the corpus."""
    shards = corpus.manifest.shards
    chosen = np.unique(np.linspace(0, len(shards) - 1, min(most, len(shards))).astype(int))
    lengths = []
    for index in chosen.tolist():
        with pa.memory_map(str(check_shard(corpus.path, shards, index))) as mapped:
            tokens = pa.ipc.open_file(mapped).get_batch(0)["tokens"]
            lengths.append(np.diff(tokens.offsets.to_numpy()))
    return np.concatenate(lengths)


def draw(corpus: Corpus, picture: Path) -> None:
    """A picture of document lengths and of tokens by source and language."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    lengths, *shares = figure.subplots(1, 3)
    tokens = document_lengths(corpus)
    lengths.hist(tokens, bins=np.geomspace(max(1, tokens.min()), tokens.max() + 1, 40))
    lengths.set(xscale="log", xlabel="tokens a document", ylabel="documents", title="Document lengths")
    for axes, by in zip(shares, ("by_source", "by_lang"), strict=True):
        totals = corpus.manifest.totals[by]
        largest = sorted(totals, key=lambda name: -totals[name]["tokens"])[:15][::-1]
        axes.barh(largest, [totals[name]["tokens"] / 1e6 for name in largest])
        axes.set(xlabel="million tokens", title=f"Tokens {by.replace('_', ' ')}")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    write_whole(picture, content.getvalue())
