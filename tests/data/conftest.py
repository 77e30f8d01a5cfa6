"""Text for the data tests, the way to read a file by itself, and an S3 in memory."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shoal_data.sources import s3_files
from shoal_data.sources.documents import Quarantined, read_piece
from shoal_data.sources.parts import Piece

Read = tuple[dict[int, tuple[str, str]], list[Quarantined]]

MODULES = ("heapq.py", "bisect.py", "textwrap.py", "calendar.py", "fractions.py", "shlex.py")
FOREIGN = [
    "Köln ist schön.\n",
    "東京は2024年も人口1,396万人です。\r\n\r\n",
    "नमस्ते दुनिया! 😀👍🏽",
    "a\t\t b\n\n  c",
    "۱۲۳ ½ №5",
]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Some documents of the standard library, and some in other scripts."""
    library = Path(sysconfig.get_path("stdlib"))
    return [*((library / name).read_text() for name in MODULES), *FOREIGN]


@pytest.fixture(scope="session")
def raw(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those documents as Parquet, in two files of several row groups: `web-0.parquet`, `code-0.parquet`."""
    folder = tmp_path_factory.mktemp("raw")
    for name, rows in (("code", texts[: len(MODULES)]), ("web", texts[len(MODULES) :] * 40)):
        langs = [name] * len(rows)
        table = pa.table({"lang": langs, "text": rows})
        pq.write_table(table, folder / f"{name}-0.parquet", row_group_size=3)
    return folder


@pytest.fixture(scope="session")
def tokenizer(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer trained on them."""
    from shoal_data.bpe.train import TrainOptions, train

    found = train([str(raw / "*.parquet")], tmp_path_factory.mktemp("tokenizer") / "tok", TrainOptions(600))
    assert isinstance(found, Path)
    return found


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Read]:
    """Reads content as a file of a name: {row: (text, language)}, and what was left out."""

    def read_content(name: str, content: bytes, column: str = "text") -> Read:
        path = tmp_path / name
        path.write_bytes(content)
        kind = "parquet" if ".parquet" in name else "jsonl" if ".jsonl" in name else "text"
        found: dict[int, tuple[str, str]] = {}
        quarantine: list[Quarantined] = []
        for some in read_piece(Piece(str(path), kind, 0, 0, 0, len(content)), column, quarantine):
            rows = zip(some.text.to_pylist(), some.lang.to_pylist(), strict=True)
            found.update(zip(some.row.tolist(), rows, strict=True))
        assert {entry.file for entry in quarantine} <= {str(path)}
        return found, quarantine

    return read_content


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nobody sleeps; how long they would have."""
    naps: list[float] = []
    monkeypatch.setattr("shoal_data.retry._sleep", naps.append)
    return naps


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """A client of an S3 in memory."""
    import boto3
    from moto import mock_aws

    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setattr(s3_files, "_clients", {})
        with mock_aws():
            yield boto3.client("s3")


@pytest.fixture
def bucket(s3: Any, slept: list[float]) -> Iterator[Any]:
    """The same with the empty bucket `raw`; the client that reads input has had no answer yet."""
    s3.create_bucket(Bucket="raw")
    s3_files._client("s3://raw").unanswered = 0
    yield s3
    for entry in s3.list_objects_v2(Bucket="raw").get("Contents", ()):
        s3.delete_object(Bucket="raw", Key=entry["Key"])
    s3.delete_bucket(Bucket="raw")
