"""A record on a store in this machine's hands: what a folder here is, when it is taken, and what its address says."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.config import Job, parse
from shoal.record import index, read
from shoal.record.grip import check
from shoal.record.hold import hold
from shoal.record.lease import LeaseLost
from shoal.record.place import address_of, checkpoints_of, sign, storage_of
from shoal.record.publish import Publisher
from shoal.record.rundir import RunDir
from shoal.storage import settle
from shoal_core.errors import UserError
from shoal_core.store import open_store


def taken(tmp_path: Path, folder: str, *kinds: str) -> Publisher:
    """The record, taken by the same session into a folder; `kinds`: events that are written there."""
    publisher = hold(str(tmp_path / "store"), "me", tmp_path / folder / "run")
    run = RunDir.create(tmp_path / folder, "run", {}, resume=True)
    for kind in kinds:
        run.append_event(kind)
    run.close()
    return publisher


def kinds(folder: Path) -> list[str]:
    return [event["kind"] for event in read.events(folder / "run")]


def test_what_was_not_published_is_there_still_if_nobody_else_wrote(tmp_path: Path) -> None:
    taken(tmp_path, "one", "first").round()
    taken(tmp_path, "one", "second")  # and dies
    again = taken(tmp_path, "one")
    assert kinds(tmp_path / "one") == ["first", "second"]
    again.round()
    taken(tmp_path, "two")
    assert kinds(tmp_path / "two") == ["first", "second"]


def test_a_folder_whose_record_went_on_elsewhere_becomes_what_it_is_there(tmp_path: Path) -> None:
    taken(tmp_path, "one", "first").round()
    taken(tmp_path, "one", "lost")  # and dies
    taken(tmp_path, "two", "second").round()
    taken(tmp_path, "one")
    assert kinds(tmp_path / "one") == ["first", "second"]


def test_a_run_that_is_there_is_not_begun_again(tmp_path: Path) -> None:
    taken(tmp_path, "one", "first").round()
    with pytest.raises(UserError, match="there is a run already"):
        hold(str(tmp_path / "store"), "me", tmp_path / "two" / "run", fresh=True)
    assert kinds(tmp_path / "one") == ["first"]


def test_what_an_earlier_run_of_the_name_left_here_is_none_of_a_new_one(tmp_path: Path) -> None:
    taken(tmp_path, "one", "first").round()
    (tmp_path / "store" / "manifest.json").unlink()
    taken(tmp_path, "one", "new")
    assert kinds(tmp_path / "one") == ["new"]


def test_who_writes_for_a_session_asks_whether_it_has_the_run_still(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    check(store, "me")  # there is none yet
    taken(tmp_path, "one", "first").round()
    check(store, "me")
    with pytest.raises(LeaseLost, match="taken by another session"):
        check(store, "another")


def test_an_address_is_kept_as_it_was_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path))
    storage = "s3://bucket/my runs?region=eu-north-1"
    job = Job.model_validate({"run_id": "a", "storage": storage, "steps": 1, "workload": {"path": "a:B"}})
    assert job.place == "s3://bucket/my runs/a?region=eu-north-1"
    assert settle(storage, Path("job.yaml")) == storage
    assert settle("~/runs", Path("job.yaml")) == str(tmp_path / "runs")
    sign(tmp_path, job.place)
    assert (address_of(tmp_path), storage_of(tmp_path)) == (job.place, storage)
    assert checkpoints_of(tmp_path) == "s3://bucket/my runs/a/checkpoints?region=eu-north-1"
    index.note("a", job.place)
    assert (index.find("a"), index.known()) == (job.place, [job.place])


@pytest.mark.parametrize("storage", ["s3://", "s3://key:secret@bucket/runs", "ftp://host/runs", "s3://bucket/runs?x=1"])
def test_an_address_of_no_store_is_refused_by_the_name_of_its_setting(storage: str) -> None:
    with pytest.raises(UserError, match="'storage'") as refused:
        parse(Job, {"run_id": "a", "storage": storage, "steps": 1, "workload": {"path": "a:B"}}, source="the job file")
    assert "secret@" not in str(refused.value)
