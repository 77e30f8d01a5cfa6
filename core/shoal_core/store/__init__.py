"""One place for every byte: an address becomes a `Store`, a folder-like space of named objects, wherever it lies."""

from shoal_core.store.address import join, split
from shoal_core.store.base import Entry, Stat, Store, Writer
from shoal_core.store.copying import bring, send
from shoal_core.store.opening import (
    PAUSES,
    create_alone,
    exists,
    get_small,
    local_folder,
    open_store,
    open_under,
    unmounted,
)
from shoal_core.store.patiently import patiently

__all__ = [
    "PAUSES",
    "Entry",
    "Stat",
    "Store",
    "Writer",
    "bring",
    "create_alone",
    "exists",
    "get_small",
    "join",
    "local_folder",
    "open_store",
    "open_under",
    "patiently",
    "send",
    "split",
    "unmounted",
]
