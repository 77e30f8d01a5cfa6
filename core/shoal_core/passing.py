"""Folders that are deleted sooner or later, told by their paths: what is to stay is not written there.

`ray job submit` starts a job in a folder that is not the submitter's: a cluster's temporary one, or Ray's copy of
`--working-dir`. Both are deleted, and what was written there by a relative path with them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

__all__ = ["TEMP_DIR", "own_cluster", "passing"]

TEMP_DIR = "SHOAL_RAY_TEMP_DIR"
"""Environment variable with the folder that a local cluster keeps, while it is up, for the node of this process."""
SESSION = re.compile(r"session_(latest|\d{4}-\d{2}-\d{2}_[\d_-]+)")
"""The name of a folder that Ray makes each time it starts."""


def passing(path: Path, clusters: Mapping[str, Path]) -> str:
    """Whose folder `path` lies in, links followed, that does not stay; empty if it stays.

    `clusters`: the temporary folders of local clusters by their names.
    """
    path = path.resolve()
    if {"runtime_resources", "working_dir_files"} <= set(path.parts):
        return "Ray's cache of working directories, which Ray deletes"
    if any(SESSION.fullmatch(part) for part in path.parts):
        return "the folder of a Ray session, which is deleted with it"
    for name, folder in clusters.items():
        if path.is_relative_to(folder.resolve()):
            return f"the temporary folder of cluster {name}, which `shoal cluster down` deletes"
    return ""


def own_cluster() -> dict[str, Path]:
    """The temporary folder of the local cluster that this process belongs to, by the cluster's name; empty if it
    belongs to none."""
    own = os.environ.get(TEMP_DIR)
    return {os.environ.get("SHOAL_CLUSTER", "local"): Path(own).parent} if own else {}
