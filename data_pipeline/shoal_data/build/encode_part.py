"""One part of the corpus: its documents through the recipe, into a shard and a record."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shoal_core.errors import UserError
from shoal_data.build.documents import Quarantined, read_piece
from shoal_data.build.duplicates import is_duplicate
from shoal_data.build.encode import Encoder, load_encoder
from shoal_data.build.inputs import Part
from shoal_data.build.recipe import cut_for_fim, draws, fim_order, insert_tokens, split_tokens
from shoal_data.build.shards import write_shard
from shoal_data.build.special import beginning_of_text, end_of_text, fim_sentinels
from shoal_data.files import write_json
from shoal_data.order import ROUND, turns_of
from shoal_data.permutation import Permutation

__all__ = ["Recipe", "encode_part", "part_record"]


@dataclass(frozen=True)
class Recipe:
    """How documents become the stream; recorded in the manifest.

    Attributes:
        seed: names everything random.
        shuffle: order documents by the seed: parts among each other, and documents within their part.
        bos: begin each document with the tokenizer's beginning-of-text token.
        fim_rate: share of documents in fill-in-the-middle order (DeepSeek-V3: 0.1).
        split_rate: share of tokens joining punctuation and line breaks that are split (unpublished for V3).
        deduplicate: leave out documents whose content came before.
        weights: mixture weight by source, or empty to take every token once an epoch.
        strict: broken input is an error instead of a line in `quarantine.jsonl`.
    """

    seed: int = 0
    shuffle: bool = False
    bos: bool = False
    fim_rate: float = 0.0
    split_rate: float = 0.0
    deduplicate: bool = False
    weights: dict[str, float] | None = None
    strict: bool = False

    def check(self) -> None:
        """Raises UserError on a setting out of range."""
        for name in ("fim_rate", "split_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)} is no share", "choose 0 to 1")
        if abs(self.seed) >= 1 << 63:
            raise UserError(f"--seed {self.seed} has more than 64 bits", "choose a smaller one")
        for source, weight in (self.weights or {}).items():
            if not 0 < weight < math.inf:
                remedy = "choose a number above 0, or leave the source out of --input"
                raise UserError(f"--mixture {source}={weight}: no weight", remedy)
        if not math.isfinite(sum((self.weights or {}).values())):
            raise UserError("--mixture: the weights add up to no number", "choose smaller ones: only shares count")
        if self.weights:
            share = {source: weight / sum(self.weights.values()) for source, weight in self.weights.items()}
            least = min(share, key=lambda source: share[source])
            if not share[least] or not turns_of(list(share.values())).min():
                raise UserError(
                    f"--mixture: {least} has a share of {share[least]:.2g}, less than a turn in {ROUND:,}, so it would "
                    "never be read",
                    "weigh it more, or leave the source out of --input",
                )


def part_record(corpus: Path, part: int) -> dict[str, Any] | None:
    """What part `part` made, if it is done, its record is whole and its shard stands."""
    try:
        record: dict[str, Any] = json.loads((corpus / "job" / f"{part:06d}.json").read_bytes())
        if record["part"] != part or not record.keys() >= {"by_lang", "quarantine"}:
            return None
        for shard in record["shards"]:
            if (corpus / shard["file"]).stat().st_size != shard["size"]:
                return None
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return record


def encode_part(part: Part, settings: dict[str, Any]) -> dict[str, int]:
    """The task: read and encode one part, write its shard and then its record."""
    corpus, recipe = Path(settings["corpus"]), Recipe(**settings["recipe"])
    encoder = load_encoder(settings["tokenizer"], settings["digest"], settings["engine"])
    quarantine: list[Quarantined] = []
    documents = _read(part, settings["column"], quarantine)
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


def _read(part: Part, column: str, quarantine: list[Quarantined]) -> pa.Table:
    tables = []
    for piece in part.pieces:
        for read in read_piece(piece, column, quarantine):
            path = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(read.row), np.int32)), pa.array([read.path]))
            columns = {"file": path, "row": pa.array(read.row), "lang": read.lang, "text": read.text}
            tables.append(pa.table(columns))
    return (
        pa.concat_tables(tables).unify_dictionaries() if tables else pa.table({"text": pa.array([], pa.large_string())})
    )


def _encode(
    corpus: Path, part: Part, documents: pa.Table, encoder: Encoder, recipe: Recipe, shards: list[dict[str, Any]]
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
        stream = split_tokens(stream, encoder.splits, recipe.split_rate, recipe.seed, "split", part.id)
    if recipe.bos:
        stream = insert_tokens(stream, beginning_of_text(encoder.special), after=False)
    stream = insert_tokens(stream, end_of_text(encoder.special), after=True)
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
