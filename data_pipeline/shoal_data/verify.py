"""Checks that a corpus is what its manifest says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from shoal_data.errors import InputError
from shoal_data.files import sha256_file
from shoal_data.manifest import Manifest, Shards

__all__ = ["check_shard", "verify"]

_REMEDY = "delete this file and run the same `shoal data tokenize` again, which writes it anew"


def check_shard(corpus: Path, shards: Shards, index: int) -> Path:
    """The path of shard `index`, after a look at its size.

    Raises:
        InputError: missing, or of another size than the manifest says.
    """
    path = corpus / shards.file[index].decode()
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise InputError(f"{path}: this shard is missing", _REMEDY) from error
    if size != shards.size[index]:
        raise InputError(f"{path}: {size} bytes, the manifest says {shards.size[index]}", _REMEDY)
    return path


def verify(path: str | Path, *, full: bool, progress: Callable[[int, int], None] | None = None) -> Manifest:
    """Check the corpus at `path`: every file is there with the size (and, if `full`, the SHA-256) of the manifest.

    Args:
        full: read every byte; without it, only sizes are compared, which takes milliseconds.
        progress: called with (bytes checked, bytes in all) as shards are done.

    Raises:
        InputError: the first file that is missing or different, and what to do.
    """
    corpus = Path(path)
    manifest, _ = Manifest.load(corpus)
    for entry in manifest.files.values():
        _check_digest(corpus / entry["file"], entry["sha256"])
    total, done = int(manifest.shards.size.sum()), 0
    for index in range(len(manifest.shards)):
        shard = check_shard(corpus, manifest.shards, index)
        if full:
            _check_digest(shard, manifest.shards.sha256[index].decode())
            done += int(manifest.shards.size[index])
            if progress is not None:
                progress(done, total)
    return manifest


def _check_digest(path: Path, expected: str) -> None:
    if not path.exists():
        raise InputError(f"{path}: missing", _REMEDY)
    found = sha256_file(path)
    if found != expected:
        raise InputError(f"{path}: SHA-256 is {found}, the manifest says {expected}", _REMEDY)
