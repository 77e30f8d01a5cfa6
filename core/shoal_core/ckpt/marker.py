"""`COMMITTED.json`, written last: it names the index and the files, and says what the state is of."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping
from typing import Any

from shoal_core.ckpt.errors import Earlier
from shoal_core.ckpt.index import digest, is_name, number

__all__ = ["MARKER", "VERSION", "made", "parse", "seal"]

MARKER = "COMMITTED.json"
VERSION = 3
"""Since 3 the files are safetensors with an index in JSON; before they were those of torch's distributed checkpoint."""
LATEST = 1e11
"""Seconds since 1970 that nobody will live to see."""
INDEX_NAME = re.compile(r"g\d+-[0-9a-f]+\.index\.json")


def seal(said: Mapping[str, Any]) -> str:
    """SHA-256 of what a marker says but for the seal itself: a bit that flips in it is seen too."""
    rest = {key: value for key, value in said.items() if key != "seal"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def made(about: Mapping[str, Any], index: Mapping[str, Any], files: Mapping[str, int]) -> bytes:
    """The marker of a checkpoint. about: what else it says, `steps` and `generation` among it; index: its `file`,
    `bytes` and `sha256`; files: bytes of each."""
    said = {**about, "time": time.time(), "version": VERSION, "index": dict(index), "files": dict(files)}
    return json.dumps({**said, "seal": seal(said)}, indent=1).encode()


def parse(content: bytes, where: str) -> dict[str, Any]:
    """What a marker says. where: its address.

    Raises:
        ValueError: it is none that `made` could have made.
        Earlier: it is one of an earlier version.
    """
    try:
        said = json.loads(content)
        if said.get("version", 1) in (1, 2) and isinstance(said["files"], dict) and "index" not in said:
            raise Earlier(
                f"{where}: is of the format before this one (version {said.get('version', 1)})",
                f"convert it, once: shoal ckpt convert {where.rpartition('/')[0]}",
            )
        if said["version"] != VERSION:
            raise ValueError(f"it is of version {said['version']!r}")
        if said["seal"] != seal(said):
            raise ValueError("it is not as it was written")
        number(said["steps"])
        if not 0 <= said["time"] < LATEST:
            raise ValueError(f"{str(said['time'])[:80]} is no time")
        if not isinstance(said.get("bpb"), float | None):
            number(said["bpb"])
        if not isinstance(said["index"]["file"], str) or not INDEX_NAME.fullmatch(said["index"]["file"]):
            raise ValueError(f"{said['index']['file']!r} is no index of a checkpoint")
        number(said["index"]["bytes"])
        digest(said["index"]["sha256"])
        for name, size in said["files"].items():
            number(size)
            if not is_name(name):
                raise ValueError(f"{name!r} is no file of a checkpoint")
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"it is not of the form of one ({type(error).__name__}: {error})") from error
    return dict(said)
