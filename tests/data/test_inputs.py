"""The plan of parts covers every row of every file once, and lies where the files do."""

from __future__ import annotations

import json
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from shoal_data.build.documents import Quarantined, read_piece
from shoal_data.build.filesystem import find_files
from shoal_data.build.inputs import plan_parts
from shoal_data.build.sources import source_name
from shoal_data.errors import InputError


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
        (tmp_path / name).write_text('{"text": "x"}\n')
    assert {part.source for part in plan_parts([str(tmp_path / "*")], "text", 0)} == {"web", "code"}
    named = plan_parts([f"all={tmp_path}/*.jsonl"], "text", 0)
    assert {part.source for part in named} == {"all"}
    assert source_name("x/web-00012-of-00100.jsonl.gz") == "web"


def test_files_on_s3_are_found_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
        for name, value in {**keys, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
            monkeypatch.setenv(name, value)
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
    finally:
        server.stop()


def test_a_store_that_is_not_known_is_named() -> None:
    with pytest.raises(InputError, match="gopher://"):
        find_files("gopher://raw/*")
