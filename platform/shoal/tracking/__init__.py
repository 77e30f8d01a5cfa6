"""Mirrors a run's record to MLflow from a process of its own, so that training never waits for it nor dies with it.

The process tails the record, and what MLflow holds is the only memory of how far it got: killed and started again, by
a recovering controller, by a resubmission with the same run id or by hand (`python -m shoal.tracking RUN_DIR`), it goes
on in the same MLflow run where it stopped.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

from shoal.record import layout, read
from shoal.record.jsonl import read_json
from shoal.record.masking import MASK, mask_text
from shoal.record.place import own_folder, storage_of
from shoal_core.errors import UserError
from shoal_core.store import local_folder

__all__ = [
    "END",
    "LOCK",
    "behind",
    "check_uri",
    "chosen_uri",
    "credentials",
    "default_uri",
    "finish",
    "recorded_uri",
    "send",
    "start",
]

LOG = "tracking.log"
LOCK = ".tracking.lock"  # held by the one mirror of a record, with its process id
END = b"end\n"  # said on the mirror's standard input, whose closing without it means that the parent died
URI_VARIABLE = "SHOAL_TRACKING_URI"  # not an argument: a URI may hold a password, and arguments show in `ps`
USERS_VARIABLE = "MLFLOW_TRACKING_URI"
PATIENCE = 5.0
"""Seconds that the end of a run waits for its mirror, which then goes on by itself."""
STORES = {"http", "https", "databricks", "databricks-uc", "uc", "sqlite", "postgresql", "mysql", "mssql", "file"}


def check_uri(uri: str, setting: str = "mlflow.uri") -> str:
    """`uri`, if MLflow can keep runs there as far as its form goes.

    Raises:
        UserError: no scheme that MLflow knows, or a path that is not from the root: the mirror runs elsewhere.
    """
    shown, scheme = mask_text(uri), uri.partition(":")[0].partition("+")[0].lower()
    remedy = "an http(s):// server, postgresql://, mysql://, sqlite:////from/the/root.db, or nothing: SQLite in storage"
    known = STORES | {point.name for point in importlib.metadata.entry_points(group="mlflow.tracking_store")}
    if uri != "databricks" and (":" not in uri or scheme not in known):
        raise UserError(f"{setting}: {shown!r} is no address of an MLflow store", remedy)
    if scheme == "sqlite" and not uri.startswith("sqlite:////"):
        raise UserError(
            f"{setting}: {shown!r} is a path that is not from the root", "write sqlite:////from/the/root.db"
        )
    if scheme == "file":
        remedy = "write sqlite:////from/the/root.db; `mlflow migrate-filestore` moves what is there"
        raise UserError(f"{setting}: {shown!r}: MLflow takes no more runs into plain folders", remedy)
    if scheme in ("http", "https") and not _host(uri):
        raise UserError(f"{setting}: {shown!r} names no host", "write http://HOST:PORT")
    return uri


def _host(uri: str) -> str | None:
    try:
        return urlsplit(uri).hostname
    except ValueError:
        return None


def chosen_uri(uri: str | None) -> str | None:
    """Where a job's run is mirrored to: what the job says, else the environment; None: SQLite in its storage.

    Raises:
        UserError: as `check_uri`.
    """
    if uri is not None:
        return check_uri(uri)
    found = os.environ.get(USERS_VARIABLE)
    return check_uri(found, USERS_VARIABLE) if found else None


def credentials() -> dict[str, str]:
    """What MLflow's client takes from the environment to be let in: for the process that starts the mirror."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("MLFLOW_TRACKING_", "MLFLOW_S3_", "DATABRICKS_")) and name != USERS_VARIABLE
    }


def default_uri(path: Path) -> str:
    """SQLite in the storage folder of the run directory `path`; where that is a store, in a folder of this machine that
    is the same for all runs of the storage."""
    storage = storage_of(path.resolve())
    folder = local_folder(storage)
    if folder is None:
        folder = own_folder(storage)
        folder.mkdir(parents=True, exist_ok=True)
    database = str(folder / "mlflow.db").replace("%", "%25").replace("?", "%3F")  # as SQLAlchemy reads a URL
    return f"sqlite:///{database}"


def recorded_uri(path: Path) -> str:
    """Where the run directory `path` is to be mirrored to by hand: as it was, with what the record leaves out taken
    from the environment.

    Raises:
        UserError: the record leaves out a password, and the environment has none.
    """
    if given := os.environ.get(URI_VARIABLE):
        return given
    recorded = (read.config(path).get("mlflow") or {}).get("uri")
    users = os.environ.get(USERS_VARIABLE)
    if recorded is None:
        return chosen_uri(None) or default_uri(path)
    if MASK not in str(recorded):
        return check_uri(str(recorded))
    if users is None:
        raise UserError(
            f"{path / layout.CONFIG}: mlflow.uri is {recorded}, without its password, which no record holds",
            f"give the whole address in {USERS_VARIABLE}",
        )
    return check_uri(users, USERS_VARIABLE)


def start(path: Path | str, uri: str | None = None, experiment: str = "shoal") -> subprocess.Popen[bytes]:
    """Start mirroring the run directory `path`; `uri` None means SQLite in its storage folder.

    The process ends by itself when its parent does. It writes `mlflow.json` once the MLflow run exists, and its log to
    `tracking.log`, both in the run directory.
    """
    return _start(Path(path), uri or default_uri(Path(path)), experiment, "--attended")


def _start(path: Path, uri: str, experiment: str, how: str) -> subprocess.Popen[bytes]:
    log = os.open(path / LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "shoal.tracking", str(path), "--experiment", experiment, how],
            stdin=subprocess.PIPE if how == "--attended" else subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, URI_VARIABLE: uri},
        )
    finally:
        os.close(log)


def finish(
    process: subprocess.Popen[bytes], path: Path | str, uri: str | None, experiment: str, seconds: float = PATIENCE
) -> str | None:
    """Have the rest logged (report and run.json should be written before) and the process ended, within `seconds`; if
    that is not enough, another goes on in the background, and ends by itself.

    Returns None when MLflow has everything, else one sentence that says so and what to do.
    """
    path = Path(path)
    try:
        process.communicate(END, seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        _start(path, uri or default_uri(path), experiment, "--background").wait()
    return None if process.returncode == 0 else behind(path)


def send(path: Path) -> None:
    """Send the record of an ended run in `path`, as far as MLflow lacks it; what keeps it from that is logged."""
    subprocess.run([sys.executable, "-m", "shoal.tracking", str(path)], check=False)


def behind(path: Path) -> str | None:
    """None if MLflow has the whole record of the ended run in `path` by the mirror's own word, else a sentence."""
    try:
        about = read_json(path / layout.MLFLOW) or {}
    except UserError:
        about = {}
    if about.get("complete") is True:
        return None
    how = "it is being sent in the background, or else by" if _held(path / LOCK) else "what is missing is sent by"
    return f"MLflow does not have the whole record yet (see {path / LOG}); {how}: python -m shoal.tracking {path}"


def _held(lock: Path) -> bool:
    """Whether a mirror is at work."""
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
