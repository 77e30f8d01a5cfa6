"""Stores of pyarrow's that fail: what it says is told by name, with the remedy, and nothing is left."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyarrow import ArrowInvalid, fs

from shoal_core.errors import StoreError
from shoal_core.store import open_store
from shoal_core.store.arrow import ArrowStore, Place

WORK: dict[str, Callable[[ArrowStore], Any]] = {
    "get": lambda store: store.get("old"),
    "stat": lambda store: store.stat("old"),
    "list": lambda store: list(store.list()),
    "put": lambda store: store.put("new", b"x"),
    "delete": lambda store: store.delete(["old"]),
}


class _Failing:
    """A file system of pyarrow's on this machine, of which one method fails."""

    def __init__(self, method: str, error: Exception) -> None:
        self._method, self._error, self._real = method, error, fs.LocalFileSystem()

    def __getattr__(self, name: str) -> Any:
        return self._fail if name == self._method else getattr(self._real, name)

    def _fail(self, *_: Any, **__: Any) -> Any:
        raise self._error


@pytest.mark.parametrize(
    ("method", "folders", "work"),
    [
        ("open_output_stream", True, "put"),
        ("move", True, "put"),
        ("copy_file", False, "put"),
        ("open_input_file", True, "get"),
        ("get_file_info", True, "list"),
        ("get_file_info", False, "stat"),
        ("delete_file", True, "delete"),
    ],
)
@pytest.mark.parametrize("error", [PermissionError(13, "no right\nDetail: much more"), ArrowInvalid("no right")])
def test_what_pyarrow_says_is_told_by_name_with_the_remedy(
    tmp_path: Path, method: str, folders: bool, work: str, error: Exception
) -> None:
    place = Place(f"{tmp_path}/a", lambda: _Failing(method, error), "gs://", folders, "mend it")
    open_store(tmp_path / "a").put("old", b"content")
    with pytest.raises(StoreError, match=rf"gs://{tmp_path}/a/.*: no right\n") as found:
        WORK[work](ArrowStore("gs://x", place))
    assert found.value.remedy == "mend it"
    assert os.listdir(tmp_path / "a") == ["old"]


def test_a_missing_bucket_of_pyarrows_is_no_missing_object(tmp_path: Path) -> None:
    local = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    store = ArrowStore("gs://b", Place("b/p", lambda: local, "gs://", False, "mend it"))
    for work in (store.get, store.stat, lambda name: store.put(name, b""), lambda name: list(store.list(name))):
        with pytest.raises(StoreError, match=r"gs://b/p/a: there is no such bucket"):
            work("a")
    local.create_dir("b")
    assert list(store.list()) == []
    with pytest.raises(FileNotFoundError):
        store.get("a")


def test_a_file_system_that_cannot_be_made_is_told() -> None:
    def fail() -> Any:
        raise OSError("Unable to load libjvm\nand much more")

    with pytest.raises(StoreError, match=r"hdfs://h/p/: Unable to load libjvm\n"):
        ArrowStore("hdfs://h", Place("/p", fail, "hdfs://h", True, "set JAVA_HOME")).get("a")
