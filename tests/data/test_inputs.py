"""The plan of parts covers every row of every file once, and lies where the files do."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import BinaryIO

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shoal_core.errors import UserError
from shoal_data.sources.documents import Quarantined, read_piece
from shoal_data.sources.filesystem import find_files, stamp_of
from shoal_data.sources.names import source_name, source_names
from shoal_data.sources.opening import open_file
from shoal_data.sources.parts import plan_parts
from tests.support.s3_server import account

LINE = '{"text": "x"}\n'


def pieces(patterns: list[str]) -> list[str]:
    """The path of each piece."""
    return [piece.path for part in plan_parts(patterns, "text", 0) for piece in part.pieces]


def sources(patterns: list[str]) -> set[str]:
    return {part.source for part in plan_parts(patterns, "text", 0)}


def rows(patterns: list[str], target: int) -> list[tuple[str, int, str]]:
    found = []
    for part in plan_parts(patterns, "text", target):
        for piece in part.pieces:
            quarantine: list[Quarantined] = []
            for read in read_piece(piece, "text", quarantine):
                texts = read.text.to_pylist()
                found += [(Path(read.path).name, int(row), text) for row, text in zip(read.row, texts, strict=True)]
            assert quarantine == []
    return found


@pytest.mark.parametrize("target", [1, 100, 1000, 10**6])
def test_every_row_is_in_one_part(tmp_path: Path, target: int) -> None:
    texts = [f"text {number} " + "é" * (number % 40) for number in range(300)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    pq.write_table(pa.table({"text": texts}), tmp_path / "b.parquet", row_group_size=17)
    expected = sorted((name, row, text) for name in ("a.jsonl", "b.parquet") for row, text in enumerate(texts))
    assert sorted(rows([str(tmp_path / "*")], target)) == expected


@pytest.mark.parametrize("last", ["", "\n"])
def test_lines_longer_than_a_part_stay_whole(tmp_path: Path, last: str) -> None:
    sizes = [10, 3_000_000, 50, 0, 2_500_000, 70]
    lines = [b"x" * size + b"\n" for size in sizes]
    path = tmp_path / "long.jsonl"
    path.write_bytes(b"".join(lines)[:-1] + last.encode())
    pieces = [piece for part in plan_parts([str(path)], "text", 1_000) for piece in part.pieces]
    content = path.read_bytes()
    assert [piece.first for piece in pieces[1:]] == [piece.last for piece in pieces[:-1]]
    assert (pieces[0].first, pieces[-1].last) == (0, len(content))
    for piece in pieces:
        assert piece.first == 0 or content[piece.first - 1 : piece.first] == b"\n"
        assert piece.row == content[: piece.first].count(b"\n")
    assert len(pieces) > 2


def test_sources_take_their_name_from_the_option_or_the_file(tmp_path: Path) -> None:
    for name in ("web-00001-of-00002.jsonl", "web-00002-of-00002.jsonl", "code.jsonl"):
        (tmp_path / name).write_text(LINE)
    assert sources([str(tmp_path / "*")]) == {"web", "code"}
    assert sources([f"all={tmp_path}/*.jsonl"]) == {"all"}


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("x/web-00012-of-00100.jsonl.gz", "web"),
        ("web.00012_of_00100.json.zst", "web"),
        ("web-12.jsonl", "web"),
        ("web_12.jsonl", "web"),
        ("web00012.jsonl", "web"),
        ("c4.jsonl", "c4"),
        ("books1.jsonl", "books1"),
        ("books3.jsonl", "books3"),
        ("c4-00000-of-01024.json.gz", "c4"),
        ("wiki-2023.parquet", "wiki-2023"),
        ("wiki_2024.parquet", "wiki_2024"),
        ("wiki-20231101.parquet", "wiki-20231101"),
        ("wiki-2023-00001-of-00009.parquet", "wiki-2023"),
        ("CC-MAIN-2023-14.jsonl.zst", "CC-MAIN-2023-14"),
        ("dolma-v1.7.jsonl", "dolma-v1.7"),
        ("dolma-v1_5-0003.jsonl", "dolma-v1_5"),
        ("wiki.en.jsonl", "wiki.en"),
        ("part-00000-4f1c9a52-11aa-4f43-9c1c-0d6a0e5f7b11-c000.snappy.parquet", "part"),
        ("part-00001.gz.parquet", "part"),
        ("part-r-00001.jsonl", "part"),
        ("web_4f1c9a52-11aa-4f43-9c1c-0d6a0e5f7b11_0.parquet", "web"),
        ("shards/train/0007.parquet", "train"),
        ("s3://bucket/en/00007-of-00100.jsonl", "en"),
        ("0007.jsonl", "0007"),
        ("1984.txt", "1984"),
        ("heapq.py", "heapq"),
        ("README", "README"),
    ],
)
def test_a_source_is_a_file_name_without_what_counts_shards(path: str, source: str) -> None:
    assert source_name(path) == source


def test_digits_glued_to_a_word_count_shards_where_there_are_many() -> None:
    assert source_names([f"in/f{number}.txt" for number in range(12)]) == ["f"] * 12
    assert source_names(["books1.txt", "books2.txt", "c4.txt"]) == ["books1", "books2", "c4"]


def test_files_on_s3_are_found_and_read(s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    account(monkeypatch, s3_endpoint, tmp_path)
    client = boto3.client("s3")
    client.create_bucket(Bucket="raw")
    texts = [f"row {number}" for number in range(20)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "x.parquet", row_group_size=5)
    client.put_object(Bucket="raw", Key="in/deep/x.parquet", Body=(tmp_path / "x.parquet").read_bytes())
    client.put_object(Bucket="raw", Key="in/y.jsonl", Body=b'{"text": "from y"}\n')
    assert [found.path for found in find_files("s3://raw/in/*.jsonl")] == ["s3://raw/in/y.jsonl"]
    assert len(find_files("s3://raw/in/**/*")) == 2
    found = rows(["s3://raw/in/**/*"], 1)
    assert sorted(found) == sorted(
        [("y.jsonl", 0, "from y"), *(("x.parquet", row, text) for row, text in enumerate(texts))]
    )


def test_one_file_is_read_once_whatever_its_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in/sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in/a.jsonl").write_text(LINE)
    os.link("in/a.jsonl", "in/hard.jsonl")
    (tmp_path / "in/soft.jsonl").symlink_to("a.jsonl")
    for name in ("loop", "other"):  # two of them: each path through both is another name
        (tmp_path / "in/sub" / name).symlink_to(".")
        (tmp_path / "in/sub" / f"up-{name}").symlink_to("..")
    patterns = ["in/a.jsonl", "./in/*.jsonl", "in//a.jsonl", f"other={tmp_path}/in/**/*.jsonl"]
    assert pieces(patterns) == ["in/a.jsonl"]
    said = capsys.readouterr().err
    assert "7 names lead to files that another name has led to" in said
    assert "3 of them were meant for another source" in said


def test_what_cannot_be_read_is_named_before_work_starts(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(LINE)
    (tmp_path / "gone.jsonl").symlink_to("nowhere.jsonl")
    (tmp_path / "self.jsonl").symlink_to("self.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "spark.parquet").mkdir()
    with open(os.fsencode(tmp_path) + b"/caf\xe9.jsonl", "w") as file:
        file.write(LINE)
    (tmp_path / "b.csv").write_text("text\nx\n")
    with pytest.raises(UserError) as raised:
        plan_parts([f"{tmp_path}/*"], "text", 0)
    for words in ("nowhere.jsonl", "back to itself", "a pipe", "caf\\udce9.jsonl", "not UTF-8", ".csv is not read"):
        assert words in raised.value.problem or words in raised.value.remedy or "and 1 more" in raised.value.problem
    assert raised.value.problem.startswith("6 of the files")
    raised.value.problem.encode()
    for name in ("gone.jsonl", "pipe.jsonl", "spark.parquet"):
        with pytest.raises(UserError, match=name):
            plan_parts([f"{tmp_path}/{name}"], "text", 0)


REFUSED = (
    "a.csv A.CSV.GZ a.tar.gz a.zip a.arrow.gz a.jsonl.bz2 a.parquet.gz a.jsonl.part a.parquet.bak a.pdf a.npy a.sqlite "
    "a.jsonl.gzip a.warc.gz"
)
KINDS = {
    "jsonl": "a.JSONL a.jsonlines a.jl.gz a.ldjson a.json.zst a.ndjson",
    "text": "a.txt a a.py a.md.gz v1.5 a.en",
}


@pytest.mark.parametrize("name", REFUSED.split())
def test_what_is_no_text_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=f"{name} \\(") as raised:
        plan_parts([f"{tmp_path}/*"], "text", 0)
    assert raised.value.remedy


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for kind, names in KINDS.items() for name in names.split()])
def test_a_name_says_what_is_in_a_file(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).write_text(LINE)
    ((piece,),) = (part.pieces for part in plan_parts([f"{tmp_path}/*"], "text", 0))
    assert piece.format == kind


def test_paths_that_are_there_are_found_as_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("d[1]/a.jsonl", "year=2024/b.jsonl", "x/c.jsonl"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(LINE)
    for pattern, path in (
        ("d[1]/a.jsonl", "d[1]/a.jsonl"),
        ("d[1]/*.jsonl", "d[1]/a.jsonl"),
        ("year=2024/*.jsonl", "year=2024/b.jsonl"),
        ("year=*/*.jsonl", "year=2024/b.jsonl"),
        ("~/x/*.jsonl", f"{tmp_path}/x/c.jsonl"),
        ("mine=~/x/*.jsonl", f"{tmp_path}/x/c.jsonl"),
        ("mine=year=2024/*", "year=2024/b.jsonl"),
    ):
        assert pieces([pattern]) == [path]
    assert sources(["mine=year=2024/*", "year=2024/*"]) == {"mine"}


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("in", r"it is a folder\n.*'in/\*'"),
        ("in/", r"it is a folder\n.*'in/\*'"),
        ("*", r"folders alone\n.*'in/\*'"),
        ("in/gone/*.jsonl", "nothing called gone in in"),
        ("in/*.txt", r"nothing that matches \*.txt in in"),
        ("in/[a]b.jsonl", r"\[\[\]"),
        ("in/{a,b}.jsonl", "braces"),
        ("~/gone/*", "home folder"),
        ("web=gone/*", "web= was taken for the name of a source"),
        ("in/*SUCCESS", "side files"),
    ],
)
def test_nothing_found_says_what_is_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_text(LINE)
    (tmp_path / "in/_SUCCESS").touch()
    with pytest.raises(UserError, match=words):
        plan_parts([pattern], "text", 0)


def test_side_files_and_folders_are_passed_over_in_a_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.jsonl", ".DS_Store", "_SUCCESS", ".a.jsonl.crc"):
        (tmp_path / name).write_text(LINE)
    (tmp_path / "more").mkdir()
    assert pieces([f"{tmp_path}/*"]) == [f"{tmp_path}/a.jsonl"]
    said = capsys.readouterr().err
    assert "3 side files were passed over" in said
    assert "1 folders match as well" in said


def test_links_to_folders_that_are_not_there_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text(LINE)
    (tmp_path / "disk").symlink_to("unmounted")
    assert pieces([f"{tmp_path}/**/*.jsonl"]) == [f"{tmp_path}/a.jsonl"]
    assert "1 links that could have been folders lead nowhere" in capsys.readouterr().err


def test_a_file_that_changes_while_work_is_planned_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(LINE * 100)

    def changed(path: str, stamp: str) -> BinaryIO:
        os.truncate(path, 500)
        return open_file(path, stamp)

    monkeypatch.setattr("shoal_data.sources.parts.open_file", changed)
    with pytest.raises(UserError, match=r"a.jsonl: it changed from 1,\d+ to 500 bytes"):
        plan_parts([str(path)], "text", 10)


def test_footers_of_any_kind_are_planned(tmp_path: Path) -> None:
    text = pa.array(["x", "y"])
    tables = {
        "twice": pa.Table.from_arrays([text, text], names=["text", "text"]),
        "dotted": pa.table({"a.text": text}),
        "nested": pa.table({"text": pa.array([{"text": "x"}, {"text": "y"}])}),
        "lists": pa.table({"text": pa.array([["x"], ["y"]])}),
        "empty": pa.table({"text": text[:0]}),
    }
    for name, table in tables.items():
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=1)
    with pq.ParquetWriter(tmp_path / "none.parquet", pa.schema({"text": pa.string()})):
        pass
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not any more PAR1")
    planned = [piece for part in plan_parts([f"{tmp_path}/*"], "text", 1) for piece in part.pieces]
    ranges = {name: [(one.first, one.last) for one in planned if f"/{name}." in one.path] for name in tables}
    assert ranges == {name: [(0, 1)] if name == "empty" else [(0, 1), (1, 2)] for name in tables}
    assert {Path(piece.path).stem for piece in planned} == {*tables, "none", "broken"}


def test_pieces_carry_the_stamp_of_their_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(LINE * 100)
    before = plan_parts([str(path)], "text", 10)
    assert before == plan_parts([str(path)], "text", 10)
    assert {piece.stamp for part in before for piece in part.pieces} == {stamp_of(str(path))}
    os.utime(path, (10**9, 10**9))
    assert before != plan_parts([str(path)], "text", 10)
