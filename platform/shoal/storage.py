"""Where runs lie: a store, or a folder that outlives the job that made it, named so that the submitter's shell finds
it too."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.cluster.state import known_clusters, load
from shoal_core.errors import UserError
from shoal_core.passing import TEMP_DIR, own_cluster, passing
from shoal_core.store import local_folder, open_store
from shoal_core.store.address import parsed

if TYPE_CHECKING:
    import pyarrow.fs

__all__ = ["arrow_filesystem", "check_writable", "lasting", "own_folder", "settle"]

DEFAULT = "runs"
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
"""Variables by which AWS's own tools find another S3, and pyarrow does not."""
VARIABLE = "SHOAL_STORAGE"
"""Names the storage in the environment of commands and jobs that name none."""


def settle(storage: str | None, job_file: Path) -> str:
    """The storage of runs that a job names, a folder from the root; None: it names none.

    A relative folder is taken from the folder that the command runs in or, if that one passes, from the job file's. If
    that passes too, runs of a cluster on this machine go to a folder of the user's own.

    Raises:
        UserError: it would lie where it is deleted, or is the address of no store.
    """
    said = None if storage is not None else os.environ.get(VARIABLE)
    setting, address = (VARIABLE, said) if said else ("storage", storage or DEFAULT)
    try:
        wanted = local_folder(address)
        if wanted is None:
            open_store(address)
            return address
    except UserError as error:
        raise UserError(f"{setting}: {error.problem}", error.remedy) from error
    if wanted.is_absolute():
        return str(lasting(wanted, setting))
    clusters = temporary_folders()
    for base in (Path.cwd(), job_file.absolute().parent):
        if not passing(base, clusters):
            return str(lasting(base / wanted, setting))
    if os.environ.get(TEMP_DIR):  # all nodes are this machine
        return str(lasting(own_folder() / wanted, "storage"))
    raise UserError(
        f"{setting}: {str(wanted)!r} would lie in {Path.cwd()}, {passing(Path.cwd(), clusters)}",
        "name a folder that all nodes share, from the root: storage=/shared/runs, or SHOAL_STORAGE in the job's "
        "environment",
    )


def own_folder() -> Path:
    """This user's own data: `$XDG_DATA_HOME/shoal`."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "shoal"


def lasting(path: Path, setting: str) -> Path:
    """`path` from the root, if what is written there stays. `setting`: what named it.

    Raises:
        UserError: it is deleted sooner or later.
    """
    path = path.absolute()
    if why := passing(path, temporary_folders()):
        raise UserError(f"{setting}: {path} lies in {why}", "name a folder that stays, from the root")
    return path


def temporary_folders() -> dict[str, Path]:
    """Of local clusters: of the one that this process belongs to, and of those that this user has."""
    found = own_cluster()
    for name in known_clusters():
        try:
            found[name] = Path(load(name).temp_dir)
        except UserError:  # a state that cannot be read: its commands say so
            continue
    return found


def check_writable(storage: str) -> None:
    """Whether runs can be written into `storage`, as far as that can be known without writing. A store's first write
    says it of a store.

    Raises:
        UserError: it is, or lies under, something that is no folder or may not be written.
    """
    there = local_folder(storage)
    if there is None:
        return
    while not os.path.exists(there) and there != there.parent:  # False too where one may not look
        there = there.parent
    remedy = "name another storage"
    if not there.is_dir():
        raise UserError(f"storage: {there} is no folder", remedy)
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"storage: {there} cannot be written", remedy)


def arrow_filesystem(place: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """Where pyarrow finds a run, or what lies in it: folders and S3 are all that holds records. Nothing of a path is
    decoded."""
    import pyarrow.fs

    folder = local_folder(place)
    if folder is not None:
        return pyarrow.fs.LocalFileSystem(), str(folder)
    found = parsed(place)
    endpoint = found.endpoint or next(filter(None, map(os.environ.get, ENDPOINTS)), None)
    scheme, _, host = endpoint.rpartition("://") if endpoint else ("", "", None)
    region = found.options.get("region")
    files = pyarrow.fs.S3FileSystem(endpoint_override=host, scheme=scheme or None, region=region)
    return files, f"{found.root}/{found.path.strip('/')}"
