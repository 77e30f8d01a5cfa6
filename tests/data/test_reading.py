"""Reading pieces: what is no fault of the bytes ends the work, what is costs a line of the quarantine."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shoal_core.errors import StoreError, UserError
from shoal_data.sources import documents
from shoal_data.sources.documents import Quarantined, read_piece
from shoal_data.sources.filesystem import stamp_of
from shoal_data.sources.parts import Piece, plan_parts

Reader = Callable[..., Any]


def kinds_of_files(folder: Path) -> list[Path]:
    """One file of each kind, with a few documents."""
    texts = [f"document {number}" for number in range(300)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    (folder / "a.jsonl").write_bytes(lines)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (folder / "a.txt").write_bytes(lines)
    pq.write_table(pa.table({"text": texts}), folder / "a.parquet", row_group_size=50)
    return sorted(folder.iterdir())


def planned(path: Path) -> list[Piece]:
    return [piece for part in plan_parts([str(path)], "text", 1000) for piece in part.pieces]


def test_what_the_store_says_passes_through_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in kinds_of_files(tmp_path):
        (piece, *_) = planned(path)
        error = StoreError(f"{path}: slow down", "try later")

        class Failing(io.BytesIO):
            def read(self, size: int | None = -1, /) -> bytes:
                raise error  # noqa: B023

        with monkeypatch.context() as patch:
            for module in ("unpack", "parquet"):
                patch.setattr(f"shoal_data.sources.{module}.open_file", lambda path, stamp: Failing(b"x" * 1000))
            lost: list[Quarantined] = []
            with pytest.raises(StoreError) as raised:
                list(read_piece(piece, "text", lost))
        assert raised.value is error
        assert lost == []


def read_all(pieces: list[Piece], lost: list[Quarantined], meanwhile: Callable[[], None]) -> None:
    for piece in pieces:
        for _ in read_piece(piece, "text", lost):
            meanwhile()


@pytest.mark.parametrize("change", ["cut", "grown", "mended", "gone"])
def test_a_file_that_changes_is_an_error_that_names_it(tmp_path: Path, change: str) -> None:
    """Before its first byte is read, and while it is."""
    for path in kinds_of_files(tmp_path):
        content = path.read_bytes()

        def alter(path: Path = path, content: bytes = content) -> None:
            if change == "gone":
                path.unlink(missing_ok=True)
            else:
                new = {"cut": content[: len(content) // 2], "grown": content * 2, "mended": content.swapcase()}[change]
                path.write_bytes(new)
                os.utime(path, ns=(1, 1))

        for early in (True, False):
            path.write_bytes(content)
            pieces = planned(path)
            lost: list[Quarantined] = []
            if early:
                alter()
            with pytest.raises(UserError, match=path.name):
                read_all(pieces, lost, (lambda: None) if early else alter)
            assert lost == []


def test_bytes_that_are_not_there_any_more_are_missed(tmp_path: Path) -> None:
    """Even where nothing is known of the file's stamp."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text":"one"}\n' * 10)
    lost: list[Quarantined] = []
    with pytest.raises(UserError, match=r"a\.jsonl: the file changed"):
        list(read_piece(Piece(str(path), "jsonl", 15, 300, 1, 285), "text", lost))
    assert lost == []


def test_whatever_a_parser_raises_costs_that_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(piece: Piece, column: str, join: str | None, lost: list[Quarantined]) -> Iterator[Any]:
        raise RecursionError("too deep")
        yield

    monkeypatch.setitem(documents._READERS, "jsonl", broken)
    (tmp_path / "a.jsonl").write_text('{"text":"one"}\n')
    lost: list[Quarantined] = []
    assert list(read_piece(Piece(str(tmp_path / "a.jsonl"), "jsonl", 0, 0, 0, 1), "text", lost)) == []
    assert lost == [Quarantined(str(tmp_path / "a.jsonl"), None, "unreadable jsonl: too deep", None)]


def test_a_text_file_is_one_document_or_lost(read: Reader) -> None:
    kept = {
        b"\xef\xbb\xbfwith a mark": "with a mark",
        "schön 😀 一".encode("utf-16"): "schön 😀 一",
        "два".encode("utf-32"): "два",
        b"a zero \0 within": "a zero \0 within",
        b"a\r\nb\n": "a\r\nb\n",
        b"a hole" + b"\0" * 4096 + b"in it": "a hole" + "\0" * 4096 + "in it",
    }
    for content, text in kept.items():
        assert read("a.txt", content) == ({0: (text, "und")}, [])
    lost = {
        b"": "empty document",
        b"\xef\xbb\xbf": "empty document",
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR": "invalid UTF-8 at byte 0",
        "schön".encode("latin-1"): "invalid UTF-8 at byte 3",
        "hello there".encode("utf-16-le"): "looks like UTF-16LE without a byte order mark",
        "привет, мир ".encode("utf-16-be") * 10: "looks like UTF-16BE without a byte order mark",
        "hello".encode("utf-32-le"): "looks like UTF-32LE without a byte order mark",
        "abc".encode("utf-16")[:-1]: "no UTF-16",
        b"\xff\xfe\x00\xd8a\x00": "invalid UTF-8",
    }
    for content, cause in lost.items():
        found, (entry,) = read("a.txt", content)
        assert (found, entry.row, entry.rows) == ({}, 0, 1)
        assert cause in entry.cause


def test_utf16_is_not_cut_into_pieces(tmp_path: Path) -> None:
    """Its line breaks are no single bytes: U+0A0A and U+010A have the byte as well."""
    path = tmp_path / "a.jsonl"
    texts = [f"\u0a0a\u010a {number}" for number in range(500)]
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), "utf-16")
    lost: list[Quarantined] = []
    found = [
        text for piece in planned(path) for some in read_piece(piece, "text", lost) for text in some.text.to_pylist()
    ]
    assert (found, lost) == (texts, [])


def test_flipped_bytes_never_change_a_row_unnamed(read: Reader) -> None:
    """With the checksums that Parquet can hold, a row is the one that was written, or lost and counted."""
    texts = [f"row {number} " + "abc" * (number % 9) for number in range(60)]
    chance = random.Random(0)
    damaged = 0
    for trial in range(80):
        out = io.BytesIO()
        options: dict[str, Any] = {
            "compression": ["none", "zstd", "snappy"][trial % 3],
            "use_dictionary": trial % 2 == 0,
        }
        pq.write_table(pa.table({"text": texts}), out, row_group_size=20, write_page_checksum=True, **options)
        content = bytearray(out.getvalue())
        footer = int.from_bytes(content[-8:-4], "little")
        for _ in range(1 + trial % 3):
            content[chance.randrange(4, len(content) - 8 - footer)] = chance.randrange(256)
        found, lost = read("a.parquet", bytes(content))
        assert found.items() <= {row: (text, "und") for row, text in enumerate(texts)}.items()
        assert len(found) + sum(entry.rows for entry in lost) == 60
        damaged += bool(lost)
    assert damaged > 40


def test_stamps_are_asked_for_around_each_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("text")
    (piece,) = planned(tmp_path / "a.txt")
    asked: list[str] = []

    def stamp(path: str) -> str:
        asked.append(path)
        return stamp_of(path)

    monkeypatch.setattr(documents, "stamp_of", stamp)
    assert sum(len(some.row) for some in read_piece(piece, "text", [])) == 1
    assert asked == [str(tmp_path / "a.txt")] * 2
