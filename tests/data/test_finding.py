"""What is named is found, locally and on S3 alike; what cannot be an address is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoal_core.errors import UserError
from shoal_data.sources import s3_files
from shoal_data.sources.filesystem import find_files, list_files, stamp_of
from shoal_data.sources.opening import open_file
from shoal_data.sources.parts import plan_parts

NAMES = (
    "a b.txt",
    "100%.txt",
    "%41.txt",
    "c#.txt",
    "d+e.txt",
    "q?.txt",
    "star*.txt",
    "ü 東.txt",
    "d[1].txt",
    "x=y.txt",
)


@pytest.mark.parametrize("store", ["local", "s3"])
def test_any_name_is_found_and_read(store: str, tmp_path: Path, bucket: Any) -> None:
    names = [*NAMES, "new\nline.txt"] if store == "local" else list(NAMES)
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
        bucket.put_object(Bucket="raw", Key=f"in/{name}", Body=name.encode())
    root = str(tmp_path) if store == "local" else "s3://raw/in"
    found = {file.path for file in find_files(f"{root}/*")}
    assert found == {f"{root}/{name}" for name in names}
    for name in names:
        (file,) = find_files(f"{root}/{name}")  # as it is written, brackets and stars and all
        assert file.path == f"{root}/{name}"
        assert open_file(file.path).read() == name.encode()
        assert stamp_of(file.path) == file.stamp


TREE = {
    "a.jsonl": b"{}",
    ".hidden.jsonl": b"{}",
    "_SUCCESS": b"",
    "_metadata": b"",
    ".a.jsonl.crc": b"",
    "deep/b.jsonl": b"{}",
    "deep/er/c.jsonl": b"{}",
    ".git/d.jsonl": b"{}",
    "_delta_log/e.jsonl": b"{}",
    "d[1]/f.jsonl": b"{}",
    "d1/g.jsonl": b"{}",
}
WANTED = {
    "*": ({"a.jsonl"}, 4),
    "*.jsonl": ({"a.jsonl"}, 1),
    "**/*.jsonl": ({"a.jsonl", "deep/b.jsonl", "deep/er/c.jsonl", "d[1]/f.jsonl", "d1/g.jsonl"}, 1),
    "**": ({"a.jsonl", "deep/b.jsonl", "deep/er/c.jsonl", "d[1]/f.jsonl", "d1/g.jsonl"}, 4),
    "deep/**/c.jsonl": ({"deep/er/c.jsonl"}, 0),
    "*/*.jsonl": ({"deep/b.jsonl", "d[1]/f.jsonl", "d1/g.jsonl"}, 0),
    "d[1]/*": ({"d[1]/f.jsonl", "d1/g.jsonl"}, 0),
    "d[1]/f.jsonl": ({"d[1]/f.jsonl"}, 0),
    ".hidden.jsonl": ({".hidden.jsonl"}, 0),
    ".*.jsonl": ({".hidden.jsonl"}, 0),
    ".git/*": ({".git/d.jsonl"}, 0),
    "[ab].jsonl": ({"a.jsonl"}, 0),
    "nothing/*": (set(), 0),
}


@pytest.mark.parametrize("pattern", WANTED)
def test_globs_mean_the_same_locally_and_on_s3(pattern: str, tmp_path: Path, bucket: Any) -> None:
    for name, content in TREE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
        bucket.put_object(Bucket="raw", Key=f"in/{name}", Body=content)
    bucket.put_object(Bucket="raw", Key="in/deep/", Body=b"")  # as consoles mark folders
    for root in (str(tmp_path), "s3://raw/in"):
        listing = list_files(f"{root}/{pattern}")
        assert ({file.path.removeprefix(f"{root}/") for file in listing.files}, listing.passed) == WANTED[pattern]
        assert listing.problems == []


def test_all_pages_of_a_listing_are_read_and_told(bucket: Any) -> None:
    for number in range(5):
        bucket.put_object(Bucket="raw", Key=f"in/{number}.txt", Body=b"x")
    events = s3_files._client("s3://raw").s3.meta.events
    told: list[int] = []

    def short(params: dict[str, Any], **_: Any) -> dict[str, Any]:
        return {**params, "MaxKeys": 2}

    events.register("provide-client-params.s3.ListObjectsV2", short)
    try:
        assert len(list_files("s3://raw/in/*.txt", told.append).files) == 5
    finally:
        events.unregister("provide-client-params.s3.ListObjectsV2", short)
    assert told == [2, 2, 1]


@pytest.mark.parametrize("key", ["in", "in/", ""])
def test_a_folder_on_s3_is_called_one(bucket: Any, key: str) -> None:
    for name in ("in/a.txt", "in-between"):
        bucket.put_object(Bucket="raw", Key=name, Body=b"x")
    with pytest.raises(UserError, match="folder") as raised:
        plan_parts([f"s3://raw/{key}"], "text", 0)
    assert "/*'" in raised.value.remedy


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3a://raw/*", "write s3://"),
        ("https://x/y", "download"),
        ("gopher://raw/*", "s3:// or hf://"),
        ("s3://*/x", "s3://bucket/key"),
        ("s3://", "s3://bucket/key"),
    ],
)
def test_an_address_that_cannot_be_one_is_refused(url: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        find_files(url)
