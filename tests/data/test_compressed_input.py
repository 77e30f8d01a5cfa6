"""Compressed files, whole and broken: what comes before the damage and after it is kept, what it took is named."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import zstandard

Reader = Callable[..., Any]
TEXT = [hashlib.sha256(b"%d" % row).hexdigest() for row in range(20_000)]  # which hardly compresses
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXT).encode()


def zstd(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


def row(text: str) -> bytes:
    return json.dumps({"text": text}).encode()


def texts(found: dict[int, tuple[str, str]]) -> dict[int, str]:
    return {number: text for number, (text, _) in found.items()}


PACK = {".gz": gzip.compress, ".zst": zstd}
both = pytest.mark.parametrize("suffix", [".gz", ".zst"])


@both
def test_members_and_padding(read: Reader, suffix: str) -> None:
    pack = PACK[suffix]
    content = (
        pack(row("one") + b"\n") + b"\0" * 3 + pack(b"") + pack(row("two")[:5]) + pack(row("two")[5:]) + b"\0" * 70_000
    )
    assert read("a.jsonl" + suffix, content) == ({0: ("one", "und"), 1: ("two", "und")}, [])
    many = b"".join(pack(row(str(number)) + b"\n") for number in range(3000))
    assert texts(read("many.jsonl" + suffix, many)[0]) == {number: str(number) for number in range(3000)}
    assert read("a.txt" + suffix, pack(b"whole ") + pack(b"text") + b"\0" * 512) == ({0: ("whole text", "und")}, [])


def test_what_zstd_alone_has(read: Reader) -> None:
    skipped = b"\x5a\x2a\x4d\x18\x04\0\0\0????"
    content = skipped + zstd(row("one") + b"\n") + skipped + zstd(row("two"))
    assert texts(read("a.jsonl.zst", content)[0]) == {0: "one", 1: "two"}
    long = zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=1)
    pack = zstandard.ZstdCompressor(compression_params=long).compressobj()
    assert texts(read("long.jsonl.zst", pack.compress(row("one")) + pack.flush())[0]) == {0: "one"}
    trained = zstandard.train_dictionary(1024, [b"hello world %d" % number * 5 for number in range(1000)])
    packed = zstandard.ZstdCompressor(dict_data=trained).compress(row("hello world"))
    found, (entry,) = read("own.jsonl.zst", packed)
    assert found == {}
    assert "may be whole, but was packed with a dictionary" in entry.cause


@both
@pytest.mark.parametrize("share", [0.01, 0.3, 0.999])
def test_all_whole_lines_before_a_cut_are_kept(read: Reader, suffix: str, share: float) -> None:
    packed = PACK[suffix](LINES)
    packed = packed[: int(len(packed) * share)]
    unpack = zlib.decompressobj(31) if suffix == ".gz" else zstandard.ZstdDecompressor().decompressobj()
    whole = unpack.decompress(packed).count(b"\n")
    found, (entry,) = read("a.jsonl" + suffix, packed)
    assert texts(found) == dict(enumerate(TEXT[:whole]))
    assert (entry.row, entry.rows) == (whole, None)
    assert "it ends within its" in entry.cause
    found, (entry,) = read("a.txt" + suffix, packed)
    assert (found, entry.row, entry.rows) == ({}, 0, 1)


@both
def test_lines_before_bytes_that_make_no_sense_are_kept(read: Reader, suffix: str) -> None:
    """Up to the very block that breaks, not up to a step of reading."""
    half = PACK[suffix](LINES)
    half = half[: len(half) // 2]
    unpack = zlib.decompressobj(31) if suffix == ".gz" else zstandard.ZstdDecompressor().decompressobj()
    whole = unpack.decompress(half).count(b"\n")
    found, (entry,) = read("a.jsonl" + suffix, half + b"\xff" * 300_000)
    kept = texts(found)
    assert list(kept) == list(range(len(kept)))
    assert len(kept) >= whole
    assert {number: kept[number] for number in range(whole)} == dict(enumerate(TEXT[:whole]))
    assert entry.row == len(kept)


@both
def test_a_wrong_checksum_costs_its_member(read: Reader, suffix: str) -> None:
    """Some byte of it is not what was packed, and nothing says which; its neighbours are whole."""
    pack = PACK[suffix]
    bad = bytearray(pack(b"".join(row(text) + b"\n" for text in TEXT[:1000])))
    bad[-6 if suffix == ".gz" else -2] ^= 1
    content = pack(row("before") + b"\n") + bytes(bad) + pack(row("after") + b"\n")
    found, (entry,) = read("a.jsonl" + suffix, content)
    assert texts(found) == {0: "before", 1001: "after"}
    assert (entry.row, entry.rows) == (1, 1000)
    assert "checksum" in entry.cause
    assert texts(read("b.jsonl" + suffix, bytes(bad))[0]) == {}
    found, (entry,) = read("a.txt" + suffix, content)
    assert (found, entry.row, entry.rows) == ({}, 0, 1)


@both
def test_lines_that_reach_into_a_broken_member_go_with_it(read: Reader, suffix: str) -> None:
    pack = PACK[suffix]
    lines = b"".join(row(f"text {number}") + b"\n" for number in range(9))
    cuts = [0, 40, 90, len(lines)]  # within lines 2 and 4
    first, second, third = (lines[start:end] for start, end in itertools.pairwise(cuts))
    bad = bytearray(pack(second))
    bad[-1] ^= 1  # of gzip the length, of zstd the checksum
    found, (entry,) = read("a.jsonl" + suffix, pack(first) + bytes(bad) + pack(third))
    before, after = first.count(b"\n"), (first + second).count(b"\n") + 1
    assert texts(found) == {number: f"text {number}" for number in range(9) if not before <= number < after}
    assert (entry.row, entry.rows) == (before, after - before)


@both
def test_garbage_behind_is_named_and_what_is_before_is_kept(read: Reader, suffix: str) -> None:
    pack = PACK[suffix]
    found, (entry,) = read("a.jsonl" + suffix, pack(row("one")) + b"garbage")
    assert (texts(found), entry.row, entry.rows) == ({0: "one"}, 1, None)
    found, (entry,) = read("a.txt" + suffix, pack(b"whole") + b"garbage")
    assert (texts(found), entry.row) == ({0: "whole"}, None)
    assert "what is before is kept" in entry.cause


@both
def test_names_that_do_not_say_what_is_inside(read: Reader, suffix: str) -> None:
    for name in ("a.jsonl", "a.txt"):
        found, (entry,) = read(name + suffix, row("plain"))
        assert found == {}
        assert "it is not" in entry.cause
        for content, file in ((PACK[suffix](LINES), name), (PACK[suffix](PACK[suffix](LINES)), name + suffix)):
            found, (entry,) = read(file, content)
            assert found == {}
            assert "-compressed: unpack it, or let its name end in" in entry.cause


@both
def test_empty_ones(read: Reader, suffix: str) -> None:
    for content in (b"", PACK[suffix](b"")):
        assert read("a.jsonl" + suffix, content) == ({}, [])
        found, (entry,) = read("a.txt" + suffix, content)
        assert (found, entry.cause) == ({}, "empty document")


@both
def test_what_unpacks_to_more_than_can_be_held(read: Reader, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("documents._LARGEST", 1 << 20), ("jsonl._LONGEST", 1 << 20), ("jsonl._STRETCH", 1 << 18)):
        monkeypatch.setattr(f"shoal_data.sources.{name}", size)
    bomb = PACK[suffix](b"\0" * (4 << 20))
    found, (entry,) = read("a.txt" + suffix, bomb)
    assert (found, entry.rows) == ({}, 1)
    assert "unpacks to more than" in entry.cause
    found, (entry,) = read(
        "a.jsonl" + suffix, PACK[suffix](row("one") + b"\n") + bomb + PACK[suffix](b"\n" + row("two"))
    )
    assert texts(found) == {0: "one", 2: "two"}
    assert (entry.row, entry.rows) == (1, 1)
    blank = PACK[suffix](b"\n" * (1 << 20)) + PACK[suffix](row("last"))
    assert read("a.jsonl" + suffix, blank) == ({1 << 20: ("last", "und")}, [])


@both
def test_utf16_is_decoded_when_unpacked(read: Reader, suffix: str) -> None:
    content = '{"text":"schön 😀"}\n{"text":"два"}\n'.encode("utf-16")
    assert texts(read("a.jsonl" + suffix, PACK[suffix](content))[0]) == {0: "schön 😀", 1: "два"}
    assert texts(read("a.txt" + suffix, PACK[suffix]("два".encode("utf-32")))[0]) == {0: "два"}
