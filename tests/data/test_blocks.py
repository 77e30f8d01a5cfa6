"""What is read from a folder is checked block by block, each once: damage ends the work and gives no wrong tokens."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal_core.errors import StoreError, UserError
from shoal_data.reading import blocks
from shoal_data.reading.blocks import FirstTouch, first_blocks
from shoal_data.reading.local_store import LocalStore
from shoal_data.reading.manifest import Manifest, Shards
from shoal_data.reading.reader import Corpus
from shoal_data.writing.options import TokenizeOptions
from shoal_data.writing.tokenize import tokenize

SIZES = [1000, 64, 333]  # bytes of three shards
OFFSET = 8  # bytes before their token values, which have two bytes each


@pytest.fixture
def whole(tokenizer: Path, tmp_path: Path) -> Path:
    """A corpus of some short shards."""
    lines = [json.dumps({"text": f"Document {number} of a short corpus. " * 8}) for number in range(60)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    tokenize([str(tmp_path / "a.jsonl")], tokenizer, tmp_path / "c", TokenizeOptions(part_bytes=4_000))
    return tmp_path / "c"


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> list[bytearray]:
    """The content of three shards, whose blocks have 64 bytes."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 64)
    return [bytearray(np.random.default_rng(size).bytes(size)) for size in SIZES]


def touch(files: list[bytearray], checksums: bytes | None = None) -> FirstTouch:
    """The check of those shards, from their content as it is now."""
    if checksums is None:
        cut = [file[at : at + 64] for file in files for at in range(0, len(file), 64)]
        checksums = np.array([zlib.crc32(block) for block in cut], "<u4").tobytes()
    listed = {"file": "blocks.crc32", "sha256": hashlib.sha256(checksums).hexdigest()}
    columns: dict[str, list[Any]] = {name: [0] * 3 for name in ("source", "tokens", "documents", "text_bytes")}
    columns |= {"file": ["a", "b", "c"], "sha256": ["0"] * 3, "size": SIZES, "offset": [OFFSET] * 3}
    manifest = Manifest("uint16", 600, ["all"], Shards.from_columns(columns), {"blocks": listed})
    return FirstTouch(manifest, first_blocks(manifest, "c"), checksums, "c/blocks.crc32", "copy it")


def reading(files: list[bytearray], asked: list[tuple[int, int]]) -> Callable[[int, int], bytes]:
    def block(shard: int, number: int) -> bytes:
        asked.append((shard, number))
        return bytes(files[shard][64 * number : 64 * number + 64])

    return block


@pytest.mark.parametrize("width", [1, 5, 32, 33, 100, 160])
def test_exactly_the_blocks_that_are_touched_are_read_and_each_once(files: list[bytearray], width: int) -> None:
    check, asked, random = touch(files), list[tuple[int, int]](), np.random.default_rng(width)
    wanted: set[tuple[int, int]] = set()
    for _ in range(30):
        shard = random.choice([0, 2] if width > 28 else [0, 1, 2], 4)
        shard = np.where(np.array(SIZES)[shard] < OFFSET + 2 * width, 0, shard)
        first = random.integers(0, (np.array(SIZES)[shard] - OFFSET) // 2 - width + 1)
        for one, begin in zip(shard.tolist(), first.tolist(), strict=True):
            last = OFFSET + 2 * (begin + width) - 1
            wanted |= {(one, number) for number in range((OFFSET + 2 * begin) // 64, last // 64 + 1)}
        assert check.check(shard, first, width, reading(files, asked)) is None
        assert set(asked) == wanted
    for number in range(3):
        assert check.check_whole(number, reading(files, asked)) is None
    assert check.check(np.array([0, 2]), np.array([3, 4]), 9, reading(files, asked)) is None
    assert len(asked) == len(set(asked)) == sum(-(-size // 64) for size in SIZES)


def test_every_flipped_byte_is_found_by_what_touches_its_block(files: list[bytearray]) -> None:
    sums = touch(files)._checksums.tobytes()
    for shard, size in enumerate(SIZES):
        for at in range(0, size, 7):
            files[shard][at] ^= 1
            check = touch(files, sums)
            first = np.array([max(0, min(at, size - 2) - OFFSET) // 2])
            found = check.check(np.array([shard]), first, 1, reading(files, []))
            assert found == ((shard, at // 64) if at >= OFFSET else (shard, 0))
            assert check.check_whole(shard, reading(files, [])) == (shard, at // 64)
            files[shard][at] ^= 1


def test_a_damaged_block_is_refused_each_time(files: list[bytearray]) -> None:
    check = touch(files)
    files[2][130] ^= 4
    for _ in range(2):
        assert check.check(np.array([0, 2]), np.array([0, 60]), 2, reading(files, [])) == (2, 2)


def test_a_list_of_checksums_that_is_too_short(files: list[bytearray]) -> None:
    with pytest.raises(UserError, match=r"c/blocks\.crc32: 8 bytes, for 23 blocks"):
        touch(files, b"12345678")


@pytest.mark.parametrize("how", ["read", "tokens", "shard"])
def test_a_flipped_byte_in_a_shard(whole: Path, how: str) -> None:
    corpus = Corpus.open(whole)
    name = corpus.manifest.shards.file[1].decode()
    content = bytearray((whole / name).read_bytes())
    content[int(corpus.manifest.shards.offset[1]) + 6] ^= 1
    (whole / name).write_bytes(content)
    work: dict[str, Callable[[], object]] = {
        "read": lambda: corpus.reader(16, 0).read(range(corpus.samples(16))),
        "tokens": lambda: corpus.store.tokens(1, 40, 50),
        "shard": lambda: corpus.store.shard(1),
    }
    with pytest.raises(UserError) as error:
        work[how]()
    assert f"{whole / name}: block 0 (1 MiB from byte 0 on) does not match its CRC-32" in str(error.value)
    assert "same `shoal data tokenize` again" in error.value.remedy
    corpus.store.shard(0)  # what is whole is read


def test_a_flipped_byte_in_the_checksums(whole: Path) -> None:
    content = bytearray((whole / "blocks.crc32").read_bytes())
    content[0] ^= 1
    (whole / "blocks.crc32").write_bytes(content)
    with pytest.raises(UserError, match=r"blocks\.crc32: its SHA-256 is not the manifest's"):
        Corpus.open(whole).reader(16, 0).read([0])


def test_a_flipped_byte_in_the_tokenizer(whole: Path) -> None:
    corpus = Corpus.open(whole)
    assert corpus.tokenizer_path == whole / "tokenizer.json"
    content = bytearray((whole / "tokenizer.json").read_bytes())
    content[100] ^= 1
    (whole / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.json: its SHA-256 is not the manifest's"):
        print(corpus.tokenizer_path)


def test_a_corpus_without_checksums(whole: Path) -> None:
    value = json.loads((whole / "manifest.json").read_text())
    del value["files"]["blocks"]
    (whole / "manifest.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match=r"files\.blocks is missing"):
        Corpus.open(whole)


def test_what_a_disk_cannot_give_is_an_error(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Corpus.open(whole)
    name = corpus.manifest.shards.file[0].decode()
    (whole / name).chmod(0)
    monkeypatch.setattr("shoal_data.reading.local_store.open", _refusing, raising=False)  # root may read anything
    assert isinstance(corpus.store, LocalStore)
    with pytest.raises(StoreError, match=f"{name}: Input/output error"):
        corpus.store.tokens(0, 0, 5)


def _refusing(path: Path, mode: str) -> None:
    raise OSError(5, "Input/output error", str(path))
