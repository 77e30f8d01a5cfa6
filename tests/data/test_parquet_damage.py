"""Damage in a Parquet file costs the rows it touches, and no column but the text costs the text."""

from __future__ import annotations

import base64
import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from pyarrow.parquet import encryption

from shoal_core.errors import StoreError
from shoal_data.sources.documents import Quarantined, read_piece
from shoal_data.sources.parquet import parquet_columns
from shoal_data.sources.parts import Piece, plan_parts

TEXT = [f"row {number} " + "abc" * (number % 9) for number in range(60)]
TAGS = ["en", "de", "fr"] * 20
Reader = Callable[..., Any]


def parquet(table: pa.Table, **options: Any) -> bytearray:
    content = io.BytesIO()
    pq.write_table(table, content, **options)
    return bytearray(content.getvalue())


def column_of(content: bytearray, group: int, column: int) -> slice:
    """Where a column of a row group lies."""
    meta = pq.read_metadata(io.BytesIO(content)).row_group(group).column(column)
    first = meta.dictionary_page_offset or meta.data_page_offset
    return slice(first, first + meta.total_compressed_size)


def without(content: bytearray, group: int, column: int) -> bytes:
    where = column_of(content, group, column)
    content[where] = b"\0" * (where.stop - where.start)
    return bytes(content)


def extents(lost: list[Any]) -> list[tuple[int | None, int | None]]:
    return [(entry.row, entry.rows) for entry in lost]


def test_a_damaged_row_group_costs_its_own_rows(read: Reader) -> None:
    content = parquet(pa.table({"text": TEXT, "lang": TAGS}), row_group_size=10, compression="zstd")
    found, lost = read("a.parquet", without(content, 2, 0))
    assert found == {row: (TEXT[row], TAGS[row]) for row in range(60) if not 20 <= row < 30}
    assert extents(lost) == [(20, 10)]
    assert "row group 2" in lost[0].cause


def test_damaged_tags_cost_no_text(read: Reader) -> None:
    content = parquet(pa.table({"lang": TAGS, "text": TEXT}), row_group_size=20)
    found, lost = read("a.parquet", without(content, 1, 0))
    assert found == {row: (TEXT[row], "und" if 20 <= row < 40 else TAGS[row]) for row in range(60)}
    assert lost == []


def test_columns_that_are_not_read_may_be_broken(read: Reader) -> None:
    table = pa.table({"text.raw": TEXT, "meta": [{"text": "x", "tags": ["a"]}] * 60, "text": TEXT})
    content = parquet(table)
    for column in range(3):
        without(content, 0, column)
    assert read("a.parquet", bytes(content)) == ({row: (text, "und") for row, text in enumerate(TEXT)}, [])


@pytest.mark.parametrize("dictionary", [False, True])
def test_the_checksum_of_a_page_is_checked(read: Reader, dictionary: bool) -> None:
    content = parquet(
        pa.table({"text": TEXT}),
        row_group_size=30,
        write_page_checksum=True,
        compression="none",
        use_dictionary=dictionary,
    )
    found, lost = read("a.parquet", bytes(content).replace(b"row 7 ", b"rxw 7 "))
    assert [*found] == [*range(30, 60)]
    assert extents(lost) == [(0, 30)]
    assert "checksum" in lost[0].cause


@pytest.mark.parametrize(
    "tags",
    [
        pa.array(range(60)),
        pa.array([["en"]] * 60),
        pa.array([{"is": "en"}] * 60),
        pa.nulls(60),
        pa.array([b"\xff\xfe"] * 60),
        pa.Array.from_buffers(
            pa.string(), 60, [None, pa.py_buffer(struct.pack("61i", *range(61))), pa.py_buffer(b"\xe9" * 60)]
        ),
    ],
    ids=lambda tags: str(tags.type),
)
def test_tags_that_are_none_are_unknown(read: Reader, tags: pa.Array) -> None:
    content = bytes(parquet(pa.table({"text": TEXT, "lang": tags})))
    assert read("a.parquet", content) == ({row: (text, "und") for row, text in enumerate(TEXT)}, [])


def test_tags_of_any_string_type_are_read(read: Reader) -> None:
    for tags in (
        pa.array(TAGS, pa.large_string()),
        pa.array(TAGS, pa.string_view()),
        pa.array(TAGS).dictionary_encode(),
    ):
        found, lost = read("a.parquet", bytes(parquet(pa.table({"text": TEXT, "lang": tags}))))
        assert ([tag for _, tag in found.values()], lost) == (TAGS, [])
    mixed = pa.array([b"en", b"\xff", None])
    found, _ = read("a.parquet", bytes(parquet(pa.table({"text": TEXT[:3], "lang": mixed}))))
    assert [tag for _, tag in found.values()] == ["en", "und", "und"]


def test_columns_of_one_name(read: Reader) -> None:
    text, tags = pa.array(TEXT), pa.array(TAGS)
    twice = pa.Table.from_arrays([text, text], names=["text", "text"])
    found, lost = read("a.parquet", bytes(parquet(twice)))
    assert (found, extents(lost)) == ({}, [(None, 60)])
    assert "2 columns 'text'" in lost[0].cause
    tagged = pa.Table.from_arrays([tags, text, tags], names=["lang", "text", "lang"])
    found, lost = read("a.parquet", bytes(parquet(tagged)))
    assert (found[0], len(found), lost) == ((TEXT[0], "und"), 60, [])


def test_a_file_without_the_column_is_named_once_with_all_its_rows(read: Reader) -> None:
    for column in (pa.array([["a"]] * 60), pa.array([{"a": 1}] * 60)):
        found, lost = read("a.parquet", bytes(parquet(pa.table({"text": column}), row_group_size=10)))
        assert (found, extents(lost)) == ({}, [(None, 60)])
        assert str(column.type)[:4] in lost[0].cause
    found, lost = read("a.parquet", bytes(parquet(pa.table({"Text": TEXT}), row_group_size=10)))
    assert (found, extents(lost)) == ({}, [(None, 60)])
    assert lost[0].cause == "no column 'text' (it has Text)"


def test_bytes_are_text_where_they_are_utf8(read: Reader) -> None:
    values = [b"one", b"\xff\xfe\xfd", None, b"two"]
    for kind in (pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(3)):
        found, lost = read("a.parquet", bytes(parquet(pa.table({"text": pa.array(values, kind)}))))
        assert found == {0: ("one", "und"), 3: ("two", "und")}
        assert [(entry.row, entry.cause) for entry in lost] == [(1, "invalid UTF-8 at byte 0"), (2, "null text")]
    packed = pa.array([b"one", b"\xff", b"one"]).dictionary_encode()
    found, lost = read("a.parquet", bytes(parquet(pa.table({"text": packed}))))
    assert ([*found], extents(lost)) == ([0, 2], [(1, 1)])


def test_a_column_of_nulls_is_one_entry(read: Reader) -> None:
    found, lost = read("a.parquet", bytes(parquet(pa.table({"text": pa.nulls(5000)}))))
    assert (found, extents(lost)) == ({}, [(0, 5000)])


def varint(value: int) -> bytes:
    """As Thrift writes a positive number."""
    value, written = value << 1, bytearray()
    while value >= 128:
        written.append(value & 127 | 128)
        value >>= 7
    return bytes([*written, value])


@pytest.mark.parametrize("claim", [7, 40, 1 << 31, 1 << 60, 1 << 62])
def test_what_a_footer_claims_is_not_believed(read: Reader, claim: int) -> None:
    """Wherever the footer has the count of rows, another stands: no crash, no row that is not there, none unnamed."""
    content = parquet(pa.table({"text": TEXT[:23]}), use_dictionary=False, write_statistics=False)
    size = struct.unpack("<I", content[-8:-4])[0]
    body, footer = bytes(content[: -8 - size]), bytes(content[-8 - size : -8])
    places = [at for at in range(size) if footer[at : at + 1] == varint(23)]
    assert len(places) >= 3
    for at in places:
        forged = footer[:at] + varint(claim) + footer[at + 1 :]
        found, lost = read("a.parquet", body + forged + struct.pack("<I", len(forged)) + b"PAR1")
        assert found.items() <= {row: (text, "und") for row, text in enumerate(TEXT[:23])}.items()
        assert len(found) == 23 or lost
        assert all(entry.rows is None or entry.rows <= 23 for entry in lost)


class Keys(encryption.KmsClient):
    """Keeps its keys to itself, as they are."""

    def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> bytes:
        return base64.b64encode(key_bytes)


@pytest.mark.parametrize("plain_footer", [False, True])
def test_an_encrypted_column_is_quarantined_and_ends_no_process(tmp_path: Path, plain_footer: bool) -> None:
    """Arrow ends the process when it is asked what a footer that can be read says of a column that cannot."""
    settings = encryption.EncryptionConfiguration("foot", column_keys={"text": ["text"]}, plaintext_footer=plain_footer)
    factory = encryption.CryptoFactory(lambda connection: Keys())
    keys = factory.file_encryption_properties(encryption.KmsConnectionConfig(), settings)
    table = pa.table({"text": TEXT})
    with pq.ParquetWriter(tmp_path / "a.parquet", table.schema, encryption_properties=keys) as writer:
        writer.write_table(table)
    ((piece,),) = (part.pieces for part in plan_parts([str(tmp_path / "a.parquet")], "text", 0))
    lost: list[Quarantined] = []
    assert list(read_piece(piece, "text", lost)) == []
    assert extents(lost) == [(0, 60) if plain_footer else (None, None)]
    assert "crypt" in lost[0].cause


class Failing(io.BytesIO):
    """Gives bytes so many times, then fails as a store does."""

    def __init__(self, content: bytes, times: int) -> None:
        super().__init__(content)
        self.times = times

    def read(self, size: int | None = -1, /) -> bytes:
        self.times -= 1
        if self.times < 0:
            raise StoreError("s3://bucket/a.parquet: slow down")
        return super().read(size)


def test_what_the_store_raises_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the footer, nor in a row group, nor in the text alone after its tags could not be read."""
    content = without(parquet(pa.table({"lang": TAGS, "text": TEXT}), row_group_size=10), 1, 0)
    piece = Piece("a.parquet", "parquet", 0, 0, 0, 1)
    raised = 0
    for times in range(100):
        file = Failing(content, times)
        monkeypatch.setattr("shoal_data.sources.parquet.open_file", lambda path, stamp, file=file: file)
        lost: list[Any] = []
        try:
            rows = sum(len(found.row) for found in parquet_columns(piece, "text", None, lost))
        except StoreError:
            raised += 1
            assert lost == []
        else:
            assert (rows, lost) == (60, [])
            assert raised >= 7  # the footer, and each row group
            return
    pytest.fail("it never succeeded")


@pytest.mark.long
def test_a_row_group_of_more_than_2_gib(tmp_path: Path) -> None:
    """Beyond what one column of 32-bit offsets holds: every byte comes through."""
    path = tmp_path / "a.parquet"
    base = "lorem ipsum dolor sit amet " * 40_000
    schema = pa.schema([("text", pa.string())])
    batches = [
        pa.record_batch([pa.array([f"{row:06d} {base}" for row in range(first, first + 100)])], schema=schema)
        for first in range(0, 2200, 100)
    ]
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        writer.write_table(pa.Table.from_batches(batches), row_group_size=10**6)
    del batches
    lost: list[Any] = []
    found = list(read_piece(Piece(str(path), "parquet", 0, 0, 0, 1), "text", lost))
    assert sum(pc.sum(pc.binary_length(some.text)).as_py() for some in found) == 2200 * (7 + len(base)) > 1 << 31
    assert [str(text)[:6] for some in found for text in pc.utf8_slice_codeunits(some.text, 0, 6)] == [
        f"{row:06d}" for row in range(2200)
    ]
    assert lost == []
