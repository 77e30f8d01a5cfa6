"""Mirrors a run's record to MLflow from a process of its own, so that training never waits for it nor dies with it.

The process tails the record, and what MLflow holds is the only memory of how far it got: killed and started again, by
a recovering controller, by a resubmission with the same run id or by hand (`python -m shoal.tracking RUN_DIR`), it goes
on in the same MLflow run where it stopped.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["default_uri", "finish", "start"]

LOG = "tracking.log"
END = b"end\n"  # said on the mirror's standard input, whose closing without it means that the parent died
URI_VARIABLE = "SHOAL_TRACKING_URI"  # not an argument: a URI may hold a password, and arguments show in `ps`


def start(path: Path | str, uri: str | None = None, experiment: str = "shoal") -> subprocess.Popen[bytes]:
    """Start mirroring the run directory `path`; `uri` None means SQLite in its storage folder.

    The process ends by itself when its parent does. It writes `mlflow.json` once the MLflow run exists, and its log to
    `tracking.log`, both in the run directory.
    """
    path = Path(path)
    log = os.open(path / LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "shoal.tracking", str(path), "--experiment", experiment, "--attended"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env={**os.environ, URI_VARIABLE: uri or default_uri(path)},
        )
    finally:
        os.close(log)


def default_uri(path: Path) -> str:
    """SQLite in the storage folder of the run directory `path`."""
    return f"sqlite:///{path.resolve().parent / 'mlflow.db'}"


def finish(process: subprocess.Popen[bytes], path: Path | str, seconds: float = 25.0) -> str | None:
    """Have the rest logged (report and run.json should be written before) and the process ended, within `seconds`.

    Returns None when MLflow has everything, else one sentence that says so and what to do.
    """
    try:
        process.communicate(END, seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.returncode == 0:
        return None
    return (
        f"MLflow does not have the whole record (see {Path(path) / LOG}); "
        f"send the rest later with: python -m shoal.tracking {path}"
    )
