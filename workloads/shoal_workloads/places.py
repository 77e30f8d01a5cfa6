"""Addresses of a workload's settings, which every worker opens on its own node, in a folder of its own."""

from __future__ import annotations

import os
from pathlib import Path

from shoal_core.errors import UserError
from shoal_core.passing import own_cluster, passing
from shoal_core.store import local_folder

__all__ = ["check_from_root"]


def check_from_root(setting: str, address: str) -> None:
    """Whether workers find what this process finds at an address: a store's, or a path from the root. A path from
    where the command runs is one from where workers run only in a copy of the working directory that Ray gives both.

    Raises:
        UserError: it is another path for workers.
    """
    folder = local_folder(address)
    if folder is None or folder.is_absolute() or passing(Path.cwd(), own_cluster()):
        return
    raise UserError(
        f"{setting}: {address!r} is a path from {Path.cwd()}, and workers run elsewhere",
        f"name it from the root, on a disk that all nodes share: {os.path.abspath(folder)}",
    )
