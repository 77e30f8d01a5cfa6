"""A small real corpus in the pipeline's format, written without Ray: standard library sources, byte-level BPE."""

from __future__ import annotations

import hashlib
import json
import sysconfig
from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from shoal_data.reading.manifest import Manifest, Shards
from shoal_data.writing.shards import write_shard

EOS = "<|eos_token|>"


def write_corpus(folder: Path, vocab_size: int = 400, shards: int = 1, repeat: int = 1) -> Path:
    """Tokenize three modules into `folder`, `repeat` times into each of the `shards`; returns it."""
    library = Path(sysconfig.get_paths()["stdlib"])
    texts = [(library / name).read_text() for name in ("heapq.py", "bisect.py", "textwrap.py")]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    lengths = np.array([0 if i == 0 else len(tokenizer.id_to_token(i) or "") for i in range(vocab_size)], np.uint16)
    np.save(folder / "token_bytes.npy", lengths)
    ids = [[*tokenizer.encode(text).ids, 0] for text in texts] * repeat
    texts *= repeat
    offsets = np.cumsum([0, *map(len, ids)]).astype(np.int64)
    columns = {"bytes": pa.array([len(text.encode()) for text in texts])}
    (folder / "shards").mkdir()
    values = np.concatenate(ids).astype(np.uint16)
    entries = [write_shard(folder, f"{number:05d}", "all", columns, offsets, values) for number in range(shards)]
    blocks = np.concatenate([entry.blocks for entry in entries])
    (folder / "blocks.crc32").write_bytes(blocks.astype("<u4").tobytes())
    names = {"tokenizer": "tokenizer.json", "token_bytes": "token_bytes.npy", "blocks": "blocks.crc32"}
    files = {
        role: {"file": name, "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest()}
        for role, name in names.items()
    }
    columns_of = {name: [getattr(entry, name) for entry in entries] for name in vars(entries[0])}
    columns_of["source"] = [0] * shards
    manifest = Manifest("uint16", vocab_size, ["all"], Shards.from_columns(columns_of), files, special={"eos": 0})
    (folder / "manifest.json").write_text(json.dumps(manifest.to_json()))
    return folder
