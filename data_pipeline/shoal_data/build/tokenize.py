"""Raw text to a finished corpus: one Ray Data task a part, each part done once or not at all.

A part's shard has a fixed name and appears by a rename; the part's record, `job/<part>.json`, appears after it. So a
job killed at any moment and run again does what has no record, and the corpus is byte for byte what an undisturbed
run makes.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data

from shoal_data.build.documents import Documents, Quarantined, read_piece
from shoal_data.build.encode import Encoder, load_encoder
from shoal_data.build.inputs import Part, plan_parts
from shoal_data.build.progress import Progress
from shoal_data.build.session import ray_session
from shoal_data.build.shards import ShardEntry, write_shard
from shoal_data.build.special import end_of_text
from shoal_data.errors import InputError
from shoal_data.files import sha256_file, sweep_temporary, write_json, write_whole
from shoal_data.manifest import MANIFEST, Manifest, Shards
from shoal_data.verify import verify

__all__ = ["TokenizeOptions", "tokenize"]

PART_BYTES = 32 << 20


@dataclass(frozen=True)
class TokenizeOptions:
    """What the corpus is made with; recorded in its manifest.

    Attributes:
        column: column or field that holds the text.
        part_bytes: bytes of text a task works on.
        strict: broken input is an error instead of a line in `quarantine.jsonl`.
    """

    column: str = "text"
    part_bytes: int = PART_BYTES
    strict: bool = False


def tokenize(inputs: Sequence[str], tokenizer: str | Path, out: str | Path, options: TokenizeOptions) -> Manifest:
    """Encode the files that the globs `inputs` name into the corpus folder `out`.

    Run again after it was killed, it finishes what is missing; run again after it finished, it does nothing.

    Raises:
        InputError: nothing matches, the tokenizer cannot be used, `out` holds another corpus, or (strict) bad input.
    """
    corpus = Path(out)
    encoder = load_encoder(tokenizer)
    parts = plan_parts(inputs, options.column, options.part_bytes)
    _claim(corpus, parts, encoder, options)
    if (corpus / MANIFEST).exists() and all(_record(corpus, part.id) is not None for part in parts):
        return verify(corpus, full=False)
    for folder in (corpus, corpus / "job", corpus / "shards"):
        sweep_temporary(folder)
    tokenizer_file = corpus / "tokenizer.json"
    write_whole(tokenizer_file, Path(tokenizer).read_bytes())
    missing = [part for part in parts if _record(corpus, part.id) is None]
    if missing:
        with ray_session():
            _run(corpus, missing, encoder, options)
    return _finish(corpus, parts, encoder, options)


def _claim(corpus: Path, parts: Sequence[Part], encoder: Encoder, options: TokenizeOptions) -> None:
    """Make `corpus` this job's, or see that it already is."""
    job = json.loads(
        json.dumps(
            {"tokenizer": encoder.digest, "options": asdict(options), "parts": [part.to_json() for part in parts]}
        )
    )
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


def _record(corpus: Path, part: int) -> dict[str, Any] | None:
    """What part `part` made, if it is done and its shards stand."""
    try:
        record: dict[str, Any] = json.loads((corpus / "job" / f"{part:06d}.json").read_bytes())
    except FileNotFoundError:
        return None
    for shard in record["shards"]:
        path = corpus / shard["file"]
        if not path.exists() or path.stat().st_size != shard["size"]:
            return None
    return record


def _run(corpus: Path, parts: Sequence[Part], encoder: Encoder, options: TokenizeOptions) -> None:
    rows = [{"part": json.dumps(part.to_json())} for part in parts]
    task = {
        "corpus": str(corpus.absolute()),
        "tokenizer": str((corpus / "tokenizer.json").absolute()),
        "digest": encoder.digest,
        "options": asdict(options),
    }
    progress = Progress("tokenize", sum(piece.size for part in parts for piece in part.pieces))
    done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        partial(_encode_parts, task=task), batch_size=1, batch_format="numpy", num_cpus=1
    )
    documents = tokens = 0
    for row in done.iter_rows():
        if row["error"]:
            raise InputError(row["error"], "mend the input, or leave out --strict to quarantine it")
        documents, tokens = documents + row["documents"], tokens + row["tokens"]
        progress.advance(row["bytes"], f"{documents:,} documents  {tokens:,} tokens")
    progress.finish(f"{documents:,} documents  {tokens:,} tokens")


def _encode_parts(batch: dict[str, Any], task: dict[str, Any]) -> dict[str, Any]:
    """The Ray Data task: encode the parts of `batch`, return a row of figures for each."""
    options = TokenizeOptions(**task["options"])
    encoder = load_encoder(task["tokenizer"], task["digest"])
    rows = []
    for text in batch["part"]:
        part = Part.from_json(json.loads(text))
        try:
            rows.append(_encode_part(Path(task["corpus"]), part, encoder, options))
        except InputError as error:
            rows.append({"documents": 0, "tokens": 0, "bytes": 0, "error": str(error)})
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _encode_part(corpus: Path, part: Part, encoder: Encoder, options: TokenizeOptions) -> dict[str, Any]:
    quarantine: list[Quarantined] = []
    read = [documents for piece in part.pieces for documents in read_piece(piece, options.column, quarantine)]
    if options.strict and quarantine:
        first = quarantine[0]
        raise InputError(f"{first.file}, row {first.row}: {first.cause}")
    shards: list[ShardEntry] = []
    by_lang: dict[str, list[int]] = {}
    if read:
        shards.append(_encode_documents(corpus, part, read, encoder, by_lang))
    record = {
        "part": part.id,
        "shards": [asdict(shard) for shard in shards],
        "by_lang": dict(sorted(by_lang.items())),
        "quarantine": [asdict(entry) for entry in quarantine],
    }
    write_json(corpus / "job" / f"{part.id:06d}.json", record)
    return {
        "documents": sum(shard.documents for shard in shards),
        "tokens": sum(shard.tokens for shard in shards),
        "bytes": sum(shard.text_bytes for shard in shards),
        "error": "",
    }


def _encode_documents(
    corpus: Path, part: Part, read: Sequence[Documents], encoder: Encoder, by_lang: dict[str, list[int]]
) -> ShardEntry:
    text = pa.concat_arrays([documents.text for documents in read])
    offsets, ids = encoder.encode(text)
    # One end-of-text token after each document.
    ids = np.insert(ids, offsets[1:], end_of_text(encoder.special))
    offsets = offsets + np.arange(len(offsets))
    dtype = np.uint16 if encoder.vocab_size <= 1 << 16 else np.uint32
    lengths = pa.compute.binary_length(text).cast(pa.int64())
    files = pa.array(np.repeat(np.arange(len(read), dtype=np.int32), [len(documents.row) for documents in read]))
    lang = pa.concat_arrays([documents.lang for documents in read])
    columns = {
        "file": pa.DictionaryArray.from_arrays(files, pa.array([documents.path for documents in read])),
        "row": pa.array(np.concatenate([documents.row for documents in read])),
        "lang": lang.dictionary_encode(),
        "bytes": lengths,
    }
    table = pa.table({"lang": lang, "tokens": pa.array(np.diff(offsets)), "bytes": lengths})
    for row in table.group_by("lang").aggregate([("tokens", "sum"), ("lang", "count"), ("bytes", "sum")]).to_pylist():
        by_lang[row["lang"]] = [row["tokens_sum"], row["lang_count"], row["bytes_sum"]]
    return write_shard(corpus, f"{part.id:06d}", part.source, columns, offsets, ids.astype(dtype, copy=False))


def _finish(corpus: Path, parts: Iterable[Part], encoder: Encoder, options: TokenizeOptions) -> Manifest:
    """Write quarantine, token lengths and, last, the manifest."""
    records = [_record(corpus, part.id) for part in parts]
    rows = [shard for record in records if record for shard in record["shards"]]
    if not rows:
        raise InputError(f"{corpus}: no document could be read", f"see why in {corpus / 'job'} (field quarantine)")
    sources = sorted({row["source"] for row in rows})
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    columns["source"] = [sources.index(name) for name in columns["source"]]
    lines = [json.dumps(entry, ensure_ascii=False) for record in records if record for entry in record["quarantine"]]
    write_whole(corpus / "quarantine.jsonl", "".join(line + "\n" for line in lines).encode())
    table = io.BytesIO()
    np.save(table, encoder.token_bytes)
    write_whole(corpus / "token_bytes.npy", table.getvalue())
    roles = {"tokenizer": "tokenizer.json", "token_bytes": "token_bytes.npy", "quarantine": "quarantine.jsonl"}
    manifest = Manifest(
        dtype="uint16" if encoder.vocab_size <= 1 << 16 else "uint32",
        vocab_size=encoder.vocab_size,
        sources=sources,
        shards=Shards.from_columns(columns),
        files={role: {"file": name, "sha256": sha256_file(corpus / name)} for role, name in roles.items()},
        special={"eos": end_of_text(encoder.special)},
        totals=_totals(records, rows),
        options=asdict(options),
        version=importlib.metadata.version("shoal"),
    )
    write_json(corpus / MANIFEST, manifest.to_json())
    return manifest


def _totals(records: Sequence[dict[str, Any] | None], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
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
        for lang, counts in (record or {})["by_lang"].items():
            add(by_lang, lang, *counts)
    return {**everything[""], "by_source": by_source, "by_lang": dict(sorted(by_lang.items()))}
