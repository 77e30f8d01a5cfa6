"""Text for the data tests, and the way to read a file by itself."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

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

    return train([str(raw / "*.parquet")], tmp_path_factory.mktemp("tokenizer") / "tok", TrainOptions(600))


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
