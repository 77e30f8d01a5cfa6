"""The last step of a corpus: what the parts recorded becomes its small files and, last of all, its manifest."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shoal_core.errors import UserError
from shoal_data.files import sha256_file, write_json, write_lines, write_whole
from shoal_data.jobs.claim import as_recorded
from shoal_data.place import Place
from shoal_data.reading.manifest import MANIFEST, Manifest, Shards
from shoal_data.reading.manifest_check import check_manifest
from shoal_data.reading.permutation import Permutation
from shoal_data.sources.causes import common_causes
from shoal_data.sources.parts import Part
from shoal_data.tokenizer.encoder import Encoder
from shoal_data.tokenizer.special import beginning_of_text, end_of_text, fim_sentinels
from shoal_data.writing.encode_part import part_records
from shoal_data.writing.options import Recipe, TokenizeOptions

__all__ = ["deal_weights", "finish", "specials_of"]


def finish(corpus: Place, parts: Sequence[Part], encoder: Encoder, options: TokenizeOptions) -> Manifest:
    """Write quarantine, token lengths, blocks' checksums and, last, the manifest.

    Raises:
        UserError: no document is left.
    """
    recipe = options.recipe
    nothing: dict[str, Any] = {"shards": [], "quarantine": [], "by_lang": {}}
    records = [record or nothing for record in part_records(corpus, parts)]
    order = np.arange(len(parts))
    if recipe.shuffle:
        order = Permutation(len(parts), recipe.seed, "parts")(order)
    rows = [shard for at in order for shard in records[at]["shards"]]
    quarantine = [entry for record in records for entry in record["quarantine"]]
    if not rows:
        causes = common_causes(quarantine) or "all files are empty"
        raise UserError(f"{corpus}: no document could be read: {causes}", "mend --input or --column")
    sources = sorted({row["source"] for row in rows})
    weights = deal_weights(recipe.weights, sources) if recipe.weights else None
    for name in sorted({part.source for part in parts} - set(sources)):
        lost = [entry for part, record in zip(parts, records, strict=True) if part.source == name
                for entry in record["quarantine"]]  # fmt: skip
        print(_nothing_left(name, recipe, common_causes(lost)), file=sys.stderr)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    columns["source"] = [sources.index(name) for name in columns["source"]]
    write_lines(corpus / "quarantine.jsonl", quarantine)
    table = io.BytesIO()
    np.save(table, encoder.token_bytes)
    write_whole(corpus / "token_bytes.npy", table.getvalue())
    blocks = np.array([block for row in rows for block in row["blocks"]], "<u4")
    write_whole(corpus / "blocks.crc32", blocks.tobytes())
    roles = {
        "tokenizer": "tokenizer.json",
        "token_bytes": "token_bytes.npy",
        "blocks": "blocks.crc32",
        "quarantine": "quarantine.jsonl",
    }
    manifest = Manifest(
        dtype="uint16" if encoder.vocab_size <= 1 << 16 else "uint32",
        vocab_size=encoder.vocab_size,
        sources=sources,
        shards=Shards.from_columns(columns),
        files={role: {"file": name, "sha256": _sha256(corpus / name)} for role, name in roles.items()},
        weights=weights,
        special=specials_of(encoder, recipe),
        totals=_totals(records, rows),
        options=as_recorded(options),
        version=importlib.metadata.version("shoal"),
    )
    check_manifest(manifest, str(corpus / MANIFEST), "choose another --out, or delete this folder")
    write_json(corpus / MANIFEST, manifest.to_json())
    return manifest


def _sha256(file: Place) -> str:
    return sha256_file(file) if isinstance(file, Path) else hashlib.sha256(file.read_bytes()).hexdigest()


def specials_of(encoder: Encoder, recipe: Recipe) -> dict[str, int]:
    """Ids of the special tokens the recipe uses, by role.

    Raises:
        UserError: the tokenizer lacks one.
    """
    ids = {"eos": end_of_text(encoder.special)}
    if recipe.bos:
        ids["bos"] = beginning_of_text(encoder.special)
    if recipe.fim_rate > 0:
        ids.update(zip(("fim_begin", "fim_hole", "fim_end"), fim_sentinels(encoder.special), strict=True))
    return ids


def deal_weights(weights: dict[str, float], sources: Sequence[str]) -> dict[str, float]:
    """The weights of the sources that have documents, so that they add up to 1.

    >>> deal_weights({"books": 1, "code": 1, "web": 2}, ["books", "code"])
    {'books': 0.5, 'code': 0.5}
    """
    total = sum(weights[name] for name in sources)
    return {name: weights[name] / total for name in sources}


def _nothing_left(source: str, recipe: Recipe, causes: str) -> str:
    """What is said of a source without documents."""
    cause = causes or ("all are duplicates, or its files are empty" if recipe.deduplicate else "its files are empty")
    text = f"warning: nothing is left of source {source!r} ({cause})"
    if recipe.weights:
        share = recipe.weights[source] / sum(recipe.weights.values())
        text += f": its weight of {share:.3g} is dealt to the others"
    return text


def _totals(records: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def add(into: dict[str, dict[str, int]], name: str, tokens: int, documents: int, size: int) -> None:
        entry = into.setdefault(name, {"tokens": 0, "documents": 0, "bytes": 0})
        entry["tokens"] += tokens
        entry["documents"] += documents
        entry["bytes"] += size

    everything: dict[str, dict[str, int]] = {}
    by_source: dict[str, dict[str, int]] = {}
    by_lang: dict[str, dict[str, int]] = {}
    for row in rows:
        add(everything, "", row["tokens"], row["documents"], row["text_bytes"])
        add(by_source, row["source"], row["tokens"], row["documents"], row["text_bytes"])
    for record in records:
        for lang, counts in record["by_lang"].items():
            add(by_lang, lang, *counts)
    return {
        **everything[""],
        "duplicates": sum(record.get("duplicates", 0) for record in records),
        "quarantined": sum(len(record["quarantine"]) for record in records),
        "by_source": dict(sorted(by_source.items())),
        "by_lang": dict(sorted(by_lang.items())),
    }
