"""Files as a store's objects: opened, and what is known of them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

__all__ = ["opened", "status", "version_of"]


def opened(path: Path) -> int:
    """A file opened for reading. What is no regular file is no object, and nothing lies under a file."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would wait for its writer
    except NotADirectoryError as error:
        raise FileNotFoundError(path) from error
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise FileNotFoundError(path)
    return file


def status(path: Path) -> os.stat_result:
    """What is known of a file, opened for it: a network file system then asks for the newest."""
    file = opened(path)
    try:
        return os.fstat(file)
    finally:
        os.close(file)


def version_of(found: os.stat_result) -> str:
    return f"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"
