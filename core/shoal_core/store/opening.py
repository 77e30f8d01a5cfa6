"""From an address to the store that it names."""

from __future__ import annotations

import os
from pathlib import Path

from shoal_core.errors import UserError
from shoal_core.store.base import Store
from shoal_core.store.local import LocalStore

__all__ = ["open_store"]

_KNOWN = "a path, file://, s3://, gs://, abfss:// or hdfs://"


def open_store(address: str | os.PathLike[str]) -> Store:
    """The store at `address`: a path (`~` is the home folder) or a URL. Nothing after `://` is decoded. Nothing is
    asked of it yet, so that a store which does not answer shows at its first use.

    Raises:
        UserError: the address makes no sense, or its kind of store is not known.
    """
    text = os.fspath(address)
    if not text:
        raise UserError("the address of a store is empty", f"write {_KNOWN}")
    scheme, separator, rest = text.partition("://")
    if not separator:
        return LocalStore(text, Path(text).expanduser().absolute())
    if scheme == "file":
        if not rest.startswith("/"):
            raise UserError(f"{text}: names no path from the root", "write file:///folder, or the path alone")
        return LocalStore(text, Path(rest))
    raise UserError(f"{text}: this kind of store is not known", f"write {_KNOWN}")
