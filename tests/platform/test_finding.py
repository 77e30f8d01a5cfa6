"""Which runs there are on a store: each is read only as far as it is shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shoal.cli.main import app
from shoal.record import grip, layout
from shoal.record.finding import find, find_run, runs
from shoal.record.manifest import NAME
from shoal_core.errors import UserError
from shoal_core.store import join, open_store
from shoal_core.store.s3 import S3Store
from tests.support.published import empty_storage, publish

__all__ = ["empty_storage"]


@pytest.fixture
def storage(empty_storage: str, tmp_path: Path) -> str:
    """One with the runs `old` and `new`."""
    for name in ("old", "new"):
        publish(empty_storage, name, tmp_path / name)
    return empty_storage


def test_a_list_of_runs_reads_their_status_alone(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    get = S3Store.get

    def noted(self: S3Store, name: str, span: range | None = None) -> bytes:
        read.append(name)
        return get(self, name, span)

    monkeypatch.setattr(S3Store, "get", noted)
    said = CliRunner().invoke(app, ["runs", "--storage", storage, "--json"])
    assert said.exit_code == 0, said.output
    listed = json.loads(said.output)
    assert [(one["run"], one["status"], one["step"], one["loss"]) for one in listed] == [
        ("new", "running", 3, 1.5),
        ("old", "running", 3, 1.5),
    ]
    assert sorted(name.partition("-")[2] or name for name in read) == [NAME] * 2 + [layout.STATUS] * 2
    assert find(None, storage).address == join(storage, "new")
    assert (find_run("old", storage) / layout.EVENTS).is_file()


def test_one_whose_manifest_is_no_such_thing_is_told_beside_the_others(
    storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grip, "MOST", 1000)
    open_store(join(storage, "old")).put(NAME, b" " * 1001)
    said = CliRunner().invoke(app, ["runs", "--storage", storage])
    assert said.exit_code == 0
    assert "new" in said.stdout
    assert f"old/{NAME}: it has 1,001 bytes" in said.stderr
    with pytest.raises(UserError, match=r"old/manifest.json: it has 1,001 bytes(.|\n)*restore"):
        find("old", storage)
    with pytest.raises(UserError, match="1,001"):
        runs(storage)
