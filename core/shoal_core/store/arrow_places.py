"""From an address to a file system of pyarrow's. Credentials are found as each one's own tools find them."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from shoal_core.errors import UserError
from shoal_core.store.address import Address
from shoal_core.store.arrow import Place

__all__ = ["PLACES"]

#: for which Google's client makes a request again that fails
_PATIENCE = timedelta(seconds=30)


def _google(found: Address) -> Place:
    """`gs://bucket/path`; `gs://anonymous@bucket/path` asks without credentials."""
    name, _, bucket = found.root.rpartition("@")

    def files() -> Any:
        from pyarrow.fs import GcsFileSystem

        return GcsFileSystem(
            anonymous=bool(name),
            scheme=found.options.get("scheme"),
            endpoint_override=found.options.get("endpoint_override"),
            retry_time_limit=_PATIENCE,
        )

    remedy = (
        "check the bucket and the rights to it, and Google's credentials: GOOGLE_APPLICATION_CREDENTIALS, `gcloud auth "
        "application-default login`, or this machine's service account"
    )
    return Place(f"{bucket}/{found.path.strip('/')}", files, "gs://", False, remedy)


def _azure(found: Address) -> Place:
    """`abfss://container@account.dfs.core.windows.net/path`."""
    container, _, host = found.root.partition("@")
    account = host.partition(".")[0]
    if not container or not account:
        raise UserError(
            f"abfss://{found.root}: names no container or no account", "write abfss://container@account/path"
        )
    options: dict[str, str] = {}
    for option in ("endpoint_override", "scheme"):
        name = "authority" if option == "endpoint_override" else option
        if value := found.options.get(option):
            options |= {f"blob_storage_{name}": value, f"dfs_storage_{name}": value}

    def files() -> Any:
        from pyarrow.fs import AzureFileSystem

        return AzureFileSystem(account, account_key=os.environ.get("AZURE_STORAGE_KEY"), **options)

    remedy = (
        "check the container and the rights to it, and Azure's credentials: AZURE_CLIENT_ID, AZURE_TENANT_ID and "
        "AZURE_CLIENT_SECRET, AZURE_STORAGE_KEY, `az login`, or this machine's identity"
    )
    return Place(f"{container}/{found.path.strip('/')}", files, "abfss://", False, remedy)


def _hadoop(found: Address) -> Place:
    """`hdfs://host:port/path`."""
    host, _, port = found.root.partition(":")
    if port and not port.isdigit():
        raise UserError(f"hdfs://{found.root}: {port!r} is no port", "write hdfs://host:8020/path")

    def files() -> Any:
        from pyarrow.fs import HadoopFileSystem

        return HadoopFileSystem(host, int(port or 8020), user=found.options.get("user"))

    remedy = (
        "check that the name node answers, the rights there, and that JAVA_HOME, HADOOP_HOME and CLASSPATH (`hadoop "
        "classpath --glob`) are set"
    )
    return Place(f"/{found.path.strip('/')}", files, f"hdfs://{found.root}", True, remedy)


PLACES: dict[str, Callable[[Address], Place]] = {"gs": _google, "abfss": _azure, "hdfs": _hadoop}
"""For each scheme: what an address with it names. Nothing is asked of it. Raises UserError: the address is none."""
