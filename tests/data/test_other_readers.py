"""Other programs read Shoal's shards: `datasets` takes them as Arrow files, torch's DataLoader takes a reader."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from shoal_data.reader import Corpus
from shoal_data.reading.inspection import documents
from shoal_data.writing.options import TokenizeOptions
from shoal_data.writing.tokenize import tokenize


@pytest.fixture(scope="module")
def corpus(raw: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "corpus"
    tokenize([str(raw / "*.parquet")], tokenizer, out, TokenizeOptions(part_bytes=20_000))
    return out


def test_datasets_reads_the_shards(corpus: Path, tmp_path: Path) -> None:
    files = str(corpus / "shards" / "*.arrow")
    theirs = datasets.load_dataset("arrow", data_files=files, split="train", cache_dir=str(tmp_path))
    ours = list(documents(Corpus.open(corpus)))
    assert len(theirs) == len(ours) > 100
    assert set(theirs.column_names) == {"file", "row", "lang", "bytes", "fim", "tokens"}
    for row, (fields, tokens) in zip(theirs, ours, strict=True):
        assert {name: row[name] for name in ("file", "row", "lang", "bytes")} == {
            name: fields[name] for name in ("file", "row", "lang", "bytes")
        }
        assert row["tokens"] == tokens.tolist()
    streamed = datasets.load_dataset("arrow", data_files=files, split="train", streaming=True)
    assert [row["tokens"] for row in streamed] == [tokens.tolist() for _, tokens in ours]


def test_a_loader_of_torch_reads_samples(corpus: Path) -> None:
    reader = Corpus.open(corpus).reader(seq_len=32, seed=1)

    class Samples(torch.utils.data.Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return reader.samples

        def __getitems__(self, positions: list[int]) -> list[torch.Tensor]:
            return list(torch.from_numpy(reader.read(positions)[0]))

    loader = torch.utils.data.DataLoader(Samples(), batch_size=8)
    batch = next(iter(loader))
    assert batch.shape == (8, 33)
    assert np.array_equal(batch.numpy(), reader.read(range(8))[0])
