"""Real text that every machine has: the sources of the Python standard library, about 10 MB, as Parquet."""

from __future__ import annotations

import hashlib
import sysconfig
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from shoal_data.files import write_whole
from shoal_data.place import Place

__all__ = ["write_sample"]

_TRAIN_FILES = 4
_HELD_OUT_SHARE = 20  # one document in this many
_LIMIT = 12_000_000  # bytes of text


def write_sample(folder: Place) -> dict[str, int]:
    """Write `train-0000N.parquet` and `heldout.parquet` (source, lang, path, text) into `folder`, the same each time.

    Tests and the vendored packages are left out; documents are held out by a hash of their path, so training and
    held-out text never share a document.

    Returns:
        bytes of text by split: `train`, `heldout`.
    """
    library = Path(sysconfig.get_path("stdlib"))
    skip = {"test", "tests", "site-packages", "dist-packages", "__pycache__", "idlelib", "lib2to3"}
    rows: dict[str, list[tuple[str, str]]] = {"train": [], "heldout": []}
    size = {"train": 0, "heldout": 0}
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library).as_posix()
        if skip & set(Path(name).parts) or sum(size.values()) >= _LIMIT:
            continue
        text = path.read_bytes().decode("utf-8", errors="ignore")
        if not text.strip():
            continue
        held = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % _HELD_OUT_SHARE == 0
        split = "heldout" if held else "train"
        rows[split].append((name, text))
        size[split] += len(text.encode())
    for number in range(_TRAIN_FILES):
        _write(folder / f"train-{number:05d}.parquet", rows["train"][number::_TRAIN_FILES])
    _write(folder / "heldout.parquet", rows["heldout"])
    return size


def _write(path: Place, rows: list[tuple[str, str]]) -> None:
    """Write one file; one that holds the same is left as it is, so that what was built from it still counts."""
    table = pa.table(
        {
            "source": pa.array(["python-stdlib"] * len(rows), pa.string()),
            "lang": pa.array(["python"] * len(rows), pa.string()),
            "path": pa.array([name for name, _ in rows], pa.string()),
            "text": pa.array([text for _, text in rows], pa.string()),
        }
    )
    content = pa.BufferOutputStream()
    pq.write_table(table, content, compression="zstd", row_group_size=256)
    made = content.getvalue().to_pybytes()
    if not path.is_file() or path.read_bytes() != made:
        write_whole(path, made)
