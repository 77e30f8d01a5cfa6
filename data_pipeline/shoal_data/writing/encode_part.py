"""One part of the corpus: its documents through the recipe, into a shard and a record."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shoal_core.errors import UserError
from shoal_data.files import write_json
from shoal_data.place import Place, Remote, place_at
from shoal_data.reading.permutation import Permutation
from shoal_data.sources.documents import Quarantined, read_piece
from shoal_data.sources.parts import Part
from shoal_data.tokenizer.encoder import Encoder, load_encoder
from shoal_data.tokenizer.special import beginning_of_text, end_of_text, fim_sentinels
from shoal_data.writing.duplicates import is_duplicate
from shoal_data.writing.options import Recipe
from shoal_data.writing.recipe import cut_for_fim, draws, fim_order, split_tokens, splits_of
from shoal_data.writing.shards import write_shard

__all__ = ["encode_part", "part_record", "part_records"]


def part_records(corpus: Place, parts: Sequence[Part]) -> list[dict[str, Any] | None]:
    """What each part made, as `part_record`: from a store many at once."""
    if isinstance(corpus, Path):
        return [part_record(corpus, part.id) for part in parts]
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(lambda part: part_record(corpus, part.id), parts))


def part_record(corpus: Place, part: int) -> dict[str, Any] | None:
    """What part `part` made, if it is done, its record is whole and its shard stands."""
    try:
        record: dict[str, Any] = json.loads((corpus / "job" / f"{part:06d}.json").read_bytes())
        if record["part"] != part or not record.keys() >= {"by_lang", "quarantine"}:
            return None
        for shard in record["shards"]:
            if _size(corpus / shard["file"]) != shard["size"]:
                return None
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return record


def _size(file: Place) -> int:
    return file.size if isinstance(file, Remote) else file.stat().st_size


def encode_part(part: Part, settings: dict[str, Any]) -> dict[str, int]:
    """The task: read and encode one part, write its shard and then its record."""
    corpus, recipe = place_at(settings["corpus"]), Recipe(**settings["recipe"])
    encoder = load_encoder(settings["tokenizer"], settings["digest"], settings["engine"])
    quarantine: list[Quarantined] = []
    documents = _read(part, settings["column"], settings["join"], quarantine)
    if recipe.strict and quarantine:
        first = quarantine[0]
        where = first.file if first.row is None else f"{first.file}, row {first.row}"
        raise UserError(f"{where}: {first.cause}", "mend the input, or leave out --strict to quarantine it")
    duplicates = 0
    if recipe.deduplicate and len(documents):
        again = is_duplicate(corpus / "job", part.id, len(documents))
        duplicates = int(again.sum())
        documents = documents.filter(pa.array(~again))
    shards: list[dict[str, Any]] = []
    by_lang: dict[str, list[int]] = {}
    if len(documents):
        if recipe.shuffle:
            order = Permutation(len(documents), recipe.seed, "documents", part.id)(np.arange(len(documents)))
            documents = documents.take(pa.array(order))
        by_lang = _encode(corpus, part, documents.combine_chunks(), encoder, recipe, shards)
    record = {
        "part": part.id,
        "shards": shards,
        "by_lang": by_lang,
        "duplicates": duplicates,
        "quarantine": [asdict(entry) for entry in quarantine],
    }
    write_json(corpus / "job" / f"{part.id:06d}.json", record)
    return {name: sum(shard[key] for shard in shards) for name, key in _FIGURES.items()}


_FIGURES = {"documents": "documents", "tokens": "tokens", "bytes": "text_bytes"}


def _read(part: Part, column: str, join: str | None, quarantine: list[Quarantined]) -> pa.Table:
    tables = []
    for piece in part.pieces:
        for read in read_piece(piece, column, quarantine, join):
            path = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(read.row), np.int32)), pa.array([read.path]))
            columns = {"file": path, "row": pa.array(read.row), "lang": read.lang, "text": read.text}
            tables.append(pa.table(columns))
    return (
        pa.concat_tables(tables).unify_dictionaries() if tables else pa.table({"text": pa.array([], pa.large_string())})
    )


def _encode(
    corpus: Place, part: Part, documents: pa.Table, encoder: Encoder, recipe: Recipe, shards: list[dict[str, Any]]
) -> dict[str, list[int]]:
    """Write the shard of `documents`, append its entry to `shards`; returns [tokens, documents, bytes] by language."""
    text = encoder.prepare(documents["text"].chunk(0))  # its bytes are what the tokens stand for
    count = len(text)
    fim = np.zeros(count, bool)
    if recipe.fim_rate > 0:
        chance, first, second = draws(3 * count, recipe.seed, "fim", part.id).reshape(3, count)
        fim = chance < recipe.fim_rate
        pieces = encoder.encode(cut_for_fim(text, fim, first, second))
        stream = fim_order(pieces, fim, fim_sentinels(encoder.special))
    else:
        stream = encoder.encode(text)
    if recipe.split_rate > 0:
        stream = split_tokens(stream, splits_of(encoder), recipe.split_rate, recipe.seed, "split", part.id)
    if recipe.bos:
        stream = stream.with_token(beginning_of_text(encoder.special), after=False)
    stream = stream.with_token(end_of_text(encoder.special), after=True)
    size = pc.binary_length(text).cast(pa.int64())
    columns = {
        "file": documents["file"].chunk(0),
        "row": documents["row"].chunk(0),
        "lang": documents["lang"].chunk(0).dictionary_encode(),
        "bytes": size,
        "fim": pa.array(fim),
    }
    ids: npt.NDArray[np.unsignedinteger] = stream.ids
    if encoder.vocab_size <= 1 << 16:
        ids = ids.astype(np.uint16)
    shards.append(asdict(write_shard(corpus, f"{part.id:06d}", part.source, columns, stream.offsets, ids)))
    table = pa.table({"lang": documents["lang"], "tokens": np.diff(stream.offsets), "bytes": size})
    rows = table.group_by("lang").aggregate([("tokens", "sum"), ("lang", "count"), ("bytes", "sum")]).to_pylist()
    return {row["lang"]: [row["tokens_sum"], row["lang_count"], row["bytes_sum"]] for row in sorted(rows, key=_by_lang)}


def _by_lang(row: dict[str, Any]) -> str:
    return str(row["lang"])
