"""Raw text to a finished corpus: one Ray Data task a part, each part done once or not at all.

A part's shard has a fixed name and appears by a rename; the part's record, `job/<part>.json`, appears after it. So a
job killed at any moment and run again does what has no record, and the corpus is byte for byte what an undisturbed
run makes.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shoal_data.build.duplicates import find_duplicates
from shoal_data.build.encode import Encoder, load_encoder
from shoal_data.build.encode_part import Recipe, encode_part, part_record
from shoal_data.build.inputs import Part, plan_parts
from shoal_data.build.special import beginning_of_text, end_of_text, fim_sentinels
from shoal_data.build.tasks import run_parts, session_for
from shoal_data.errors import InputError, StoreError
from shoal_data.files import sha256_file, sweep_temporary, write_json, write_lines, write_whole
from shoal_data.manifest import MANIFEST, Manifest, Shards
from shoal_data.permutation import Permutation
from shoal_data.verify import verify

__all__ = ["Recipe", "TokenizeOptions", "tokenize"]


@dataclass(frozen=True)
class TokenizeOptions:
    """What the corpus is made from; recorded in its manifest.

    Attributes:
        column: column or field that holds the text.
        part_bytes: bytes of text a task works on; 0 to choose by the size of the text.
        recipe: what happens to documents on the way.
    """

    column: str = "text"
    part_bytes: int = 0
    recipe: Recipe = field(default_factory=Recipe)


def tokenize(inputs: Sequence[str], tokenizer: str | Path, out: str | Path, options: TokenizeOptions) -> Manifest:
    """Encode the files that the globs `inputs` name into the corpus folder `out`.

    Run again after it was killed, it finishes what is missing; run again after it finished, it does nothing.

    Raises:
        InputError: nothing matches, the tokenizer cannot be used, `out` holds another corpus, a setting is out of
            range, or (strict) bad input.
    """
    corpus, recipe = Path(out), options.recipe
    recipe.check()
    encoder = load_encoder(tokenizer)
    _specials(encoder, recipe)
    parts = plan_parts(inputs, options.column, options.part_bytes)
    unknown = set(recipe.weights or {}) ^ {part.source for part in parts}
    if recipe.weights and unknown:
        raise InputError(
            f"--mixture: {', '.join(sorted(unknown))} is weighted but not among the inputs, or the other way round",
            f"weigh each of {', '.join(sorted({part.source for part in parts}))}",
        )
    _claim(corpus, parts, encoder, options)
    missing = [part for part in parts if part_record(corpus, part.id) is None]
    if (corpus / MANIFEST).exists() and not missing and (finished := _finished(corpus)):
        return finished
    for folder in (corpus, corpus / "job", corpus / "shards"):
        sweep_temporary(folder)
    write_whole(corpus / "tokenizer.json", Path(tokenizer).read_bytes())
    if missing:
        settings = {
            "corpus": str(corpus.absolute()),
            "tokenizer": str((corpus / "tokenizer.json").absolute()),
            "digest": encoder.digest,
            "column": options.column,
            "recipe": asdict(recipe),
        }
        with session_for(missing):
            if recipe.deduplicate:
                find_duplicates(parts, options.column, corpus / "job")
            run_parts("tokenize", encode_part, missing, settings, ["documents", "tokens"])
    return _finish(corpus, parts, encoder, options)


def _finished(corpus: Path) -> Manifest | None:
    """The manifest of a corpus all of whose shards stand; None if a file beside them is missing or damaged, and is to be
    written anew from the parts' records."""
    try:
        return verify(corpus, full=False)
    except StoreError:
        raise
    except InputError as error:
        print(f"{error.problem}: it is written anew")
        return None


def _specials(encoder: Encoder, recipe: Recipe) -> dict[str, int]:
    """Ids of the special tokens the recipe uses, by role."""
    ids = {"eos": end_of_text(encoder.special)}
    if recipe.bos:
        ids["bos"] = beginning_of_text(encoder.special)
    if recipe.fim_rate > 0:
        ids.update(zip(("fim_begin", "fim_hole", "fim_end"), fim_sentinels(encoder.special), strict=True))
    return ids


def _claim(corpus: Path, parts: Sequence[Part], encoder: Encoder, options: TokenizeOptions) -> None:
    """Make `corpus` this job's, or see that it already is."""
    plan = {"tokenizer": encoder.digest, "options": asdict(options), "parts": [part.to_json() for part in parts]}
    job = json.loads(json.dumps(plan))
    path = corpus / "job" / "job.json"
    if path.exists():
        if json.loads(path.read_bytes()) != job:
            raise InputError(
                f"{corpus}: it belongs to a job with other inputs, options or tokenizer",
                "choose another --out, or delete this folder",
            )
        return
    if corpus.exists() and any(corpus.iterdir()):
        raise InputError(f"{corpus}: a folder with other things in it", "choose an empty or new folder for --out")
    write_json(path, job)


def _finish(corpus: Path, parts: Sequence[Part], encoder: Encoder, options: TokenizeOptions) -> Manifest:
    """Write quarantine, token lengths and, last, the manifest."""
    recipe = options.recipe
    records = [part_record(corpus, part.id) or {"shards": [], "quarantine": [], "by_lang": {}} for part in parts]
    order = np.arange(len(parts))
    if recipe.shuffle:
        order = Permutation(len(parts), recipe.seed, "parts")(order)
    rows = [shard for at in order for shard in records[at]["shards"]]
    if not rows:
        raise InputError(f"{corpus}: no document could be read", f"see why in {corpus / 'job'} (field quarantine)")
    sources = sorted({row["source"] for row in rows})
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    columns["source"] = [sources.index(name) for name in columns["source"]]
    write_lines(corpus / "quarantine.jsonl", (entry for record in records for entry in record["quarantine"]))
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
    total = sum((recipe.weights or {}).values())
    manifest = Manifest(
        dtype="uint16" if encoder.vocab_size <= 1 << 16 else "uint32",
        vocab_size=encoder.vocab_size,
        sources=sources,
        shards=Shards.from_columns(columns),
        files={role: {"file": name, "sha256": sha256_file(corpus / name)} for role, name in roles.items()},
        weights={name: recipe.weights[name] / total for name in sources} if recipe.weights else None,
        special=_specials(encoder, recipe),
        totals=_totals(records, rows),
        options=asdict(options),
        version=importlib.metadata.version("shoal"),
    )
    manifest.check(str(corpus / MANIFEST), "choose another --out, or delete this folder")
    write_json(corpus / MANIFEST, manifest.to_json())
    return manifest


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
