"""Whole files or none: a temporary name, then one rename; and checksums of what stands on disk."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["sha256_file", "sweep_temporary", "write_json", "write_lines", "write_whole"]

_TEMPORARY = ".tmp"


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write `content` so that `path` holds all of it or does not exist, whoever is killed meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{time.time_ns()}{_TEMPORARY}")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """`write_whole` of indented JSON with its keys in the order given."""
    write_whole(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """`write_whole` of JSONL, a row a line."""
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def sweep_temporary(folder: Path) -> int:
    """Remove what killed writers left in `folder`; returns how many files. Call it when no writer is alive."""
    left = list(folder.glob(f"*{_TEMPORARY}"))
    for path in left:
        path.unlink(missing_ok=True)
    return len(left)


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
