"""Documents of a corpus, decoded: for people to look at, and to write back as JSONL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tokenizers import Tokenizer, decoders

from shoal_data.reader import Corpus
from shoal_data.verify import check_shard

__all__ = ["documents", "show", "write_documents"]


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


def show(path: str | Path, count: int) -> None:
    """Print the first `count` documents with a bar between tokens, and the composition."""
    corpus = Corpus.open(path)
    decode = _Decoder(corpus)
    for number, (row, ids) in enumerate(documents(corpus)):
        if number >= count:
            break
        print(f"--- {row['file']} row {row['row']} ({row['lang']}): {row['bytes']:,} bytes, {len(ids):,} tokens")
        print("│".join(decode.pieces(ids[:200])))
    totals = corpus.manifest.totals
    for by in ("by_source", "by_lang"):
        for name, counts in totals[by].items():
            figures = f"{counts['tokens']:,} tokens, {counts['documents']:,} documents"
            print(f"{by[3:]:>8} {name}: {figures}, {counts['bytes'] / max(1, counts['tokens']):.2f} bytes a token")
