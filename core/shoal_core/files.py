"""Whole files or none."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

__all__ = ["TEMPORARY", "parse_json", "replace_file"]

TEMPORARY = ".tmp"
"""Ending of the names of files that are being written."""


def replace_file(path: Path, content: str | bytes | memoryview, *, durable: bool = True, mode: int = 0o644) -> None:
    """Put `content` (text in UTF-8) in the place of `path` in one move: a reader sees the old file or the new one,
    never a part, whoever is killed meanwhile and whoever else writes it, on this machine or another.

    `durable` waits until the disk has it; leave it off for what is stale in a second anyway. `mode`: who may read it.

    Raises:
        OSError: it cannot be written, and `path` is the file it names; nothing is left of the attempt.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}{TEMPORARY}")
    data = content.encode() if isinstance(content, str) else content
    try:
        with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        if isinstance(error, OSError):
            error.filename = str(path)  # a full disk names none, and nobody knows the temporary one
        with contextlib.suppress(OSError):  # a disk that takes no writes may not take this one either
            temporary.unlink(missing_ok=True)
        raise


def parse_json(content: bytes) -> Any:
    """The JSON in `content`, which is UTF-8: `json` itself takes bytes with NULs for UTF-16 or UTF-32.

    Raises:
        ValueError: it is none. RecursionError: it is nested too deeply.
    """
    if b"\0" in content:
        raise ValueError("it holds NUL bytes, which a disk leaves where it lost what was written")
    return json.loads(content.decode())
