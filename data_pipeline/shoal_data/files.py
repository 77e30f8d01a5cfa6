"""Files of a corpus: written whole or not at all, with errors that are the user's to mend."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shoal_core.errors import UserError
from shoal_core.files import TEMPORARY, replace_file
from shoal_data.place import Place, Remote

__all__ = ["explain", "read_lines", "sha256_file", "sweep_temporary", "write_json", "write_lines", "write_whole"]

_REMEDIES = {
    (errno.ENOSPC, errno.EDQUOT): "make room there; what is finished stays, and the same command goes on from it",
    (errno.EROFS, errno.EACCES, errno.EPERM): "give a place that this user may read and write, or change who may",
    (errno.EMFILE, errno.ENFILE): "allow more open files (`ulimit -n`), and run the same command again",
    (errno.ENOENT,): "check that it is there, on every node, and stays while the command runs",
    (errno.ENOTDIR, errno.EISDIR, errno.EEXIST): "something else has this name: give another path",
    (errno.ENAMETOOLONG,): "give a shorter path",
}


def explain(error: OSError, where: str | Path = "") -> UserError:
    """An error of the operating system as one that is the user's to mend.

    Args:
        where: the file or folder, for errors that do not know it (a full disk is told without a name).
    """
    place = where or error.filename or "this machine"
    remedy = next((text for codes, text in _REMEDIES.items() if error.errno in codes), "")
    cause = error.strerror or str(error) or type(error).__name__
    return UserError(f"{place}: {cause}", remedy or "look at this disk or mount, and run the same command again")


def write_whole(path: Place, content: bytes | memoryview) -> None:
    """Write `content` so that `path` holds all of it or does not exist, whoever is killed meanwhile.

    Raises:
        UserError: it cannot be written (no room, read-only, ...); nothing is left of the attempt.
        StoreError: the store that it is on does not take it.
    """
    if isinstance(path, Remote):
        path.write_bytes(content)
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)
    except OSError as error:
        raise explain(error, path) from error


def write_json(path: Place, value: Any) -> None:
    """`write_whole` of indented JSON with its keys in the order given."""
    write_whole(path, _encoded(json.dumps(value, indent=1, ensure_ascii=False) + "\n"))


def write_lines(path: Place, rows: Iterable[Any]) -> None:
    """`write_whole` of JSONL, a row a line."""
    write_whole(path, _encoded("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)))


def read_lines(path: Place) -> list[Any]:
    """The rows of `write_lines`."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def _encoded(text: str) -> bytes:
    """JSON in UTF-8; a lone surrogate (a file's name that is no UTF-8) becomes the escape that JSON reads back."""
    return text.encode("utf-8", "backslashreplace")


def sweep_temporary(folder: Place) -> int:
    """Remove what killed writers left in `folder`; returns how many files. Call it when no writer is alive."""
    if isinstance(folder, Remote):
        return 0  # an upload that does not end is not seen
    left = list(folder.glob(f"*{TEMPORARY}"))
    for path in left:
        path.unlink(missing_ok=True)
    return len(left)


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
