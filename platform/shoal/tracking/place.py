"""Where MLflow keeps files of runs whose database has no server: in the storage of the runs."""

from __future__ import annotations

import os
from pathlib import Path

from shoal.record.place import storage_of
from shoal_core.store import join, local_folder
from shoal_core.store.address import parsed

__all__ = ["artifacts_of"]

_FOLDER = "mlartifacts"


def artifacts_of(path: Path) -> str:
    """The URI for the artifacts of a new experiment: `mlartifacts` in the storage of the run directory `path`.

    MLflow's client for S3 finds credentials as boto3 does; endpoint and region that the address names are set for it
    in this process, where the environment has none.
    """
    storage = storage_of(path.resolve())
    if (folder := local_folder(storage)) is not None:
        return (folder / _FOLDER).as_uri()
    found = parsed(storage)
    for variable, value in (
        ("MLFLOW_S3_ENDPOINT_URL", found.endpoint),
        ("AWS_DEFAULT_REGION", found.options.get("region")),
    ):
        if value:
            os.environ.setdefault(variable, value)
    return join(storage, _FOLDER).partition("?")[0].replace("#", "%23")  # which MLflow takes for a URL's fragment
