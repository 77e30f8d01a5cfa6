"""What befalls a store while checkpoints are saved there: it is told with its remedy, nothing is half-believed, and the
next save is whole."""

from __future__ import annotations

import contextlib
import resource
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from shoal_core.ckpt import alone, among, together
from shoal_core.ckpt.errors import Damaged
from shoal_core.ckpt.folder import Folder, name_of
from shoal_core.ckpt.index import INDEX
from shoal_core.ckpt.together import Uncommitted
from shoal_core.ckpt.whole import Checkpoint
from shoal_core.store import open_store
from shoal_core.store.base import Entry
from shoal_core.store.local import LocalStore
from tests.support import ranks
from tests.support.s3_server import account
from tests.support.saving_process import HALVES, save, state


def answers(address: str, steps: int) -> list[Any]:
    """What two ranks learn of a save, of which each writes half."""
    return ranks.save(Folder.at(f"{address}/{name_of(steps)}"), state(steps), HALVES, 2, steps)


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Of this process, by its limits: the system itself refuses more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_takes_no_more_bytes(tmp_path: Path) -> None:
    root = str(tmp_path)
    save(root, 10)
    with files_of_at_most(900):  # a header, and a part of the tensors behind it
        found = answers(root, 20)
    assert [type(one) for one in found] == [Uncommitted] * 2
    assert "File too large" in found[0].problem
    assert "ulimit -f" in found[0].remedy
    assert [one.steps for one in among.whole(open_store(root))] == [10]
    assert list(tmp_path.rglob("*00000020/*")) == []
    save(root, 20)
    Checkpoint.open(Folder.at(tmp_path / name_of(20))).verify()


def test_a_bucket_that_is_deleted_and_made_anew(
    s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account(monkeypatch, s3_endpoint, tmp_path)
    bucket = f"gone-{secrets.token_hex(4)}"
    client = boto3.client("s3")
    client.create_bucket(Bucket=bucket)
    root = f"s3://{bucket}/runs"
    save(root, 10)
    everything = boto3.resource("s3").Bucket(bucket)
    everything.objects.all().delete()
    client.delete_bucket(Bucket=bucket)
    found = answers(root, 20)
    assert [type(one) for one in found] == [Uncommitted] * 2
    assert all("there is no such bucket" in one.problem for one in found)
    assert all("check the address" in one.remedy for one in found)
    client.create_bucket(Bucket=bucket)
    save(root, 20)
    assert [one.steps for one in among.whole(open_store(root))] == [20]
    Checkpoint.open(Folder.at(f"{root}/{name_of(20)}")).verify()


def test_what_is_listed_a_while_later_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name. What is not there by its name is not there."""
    listed = LocalStore.list

    def late(self: LocalStore, prefix: str = "") -> Iterator[Entry]:
        return (entry for entry in listed(self, prefix) if not entry.name.endswith(("-00001.safetensors", INDEX)))

    monkeypatch.setattr(LocalStore, "list", late)
    found = Checkpoint.open(Folder.at(save(str(tmp_path), 10)))
    found.verify()
    (part,) = (tmp_path / name_of(10)).glob("*-00001.safetensors")
    part.unlink()
    with pytest.raises(Damaged, match=r"-00001\.safetensors: is missing"):
        Checkpoint.open(found.folder)


def test_no_two_ranks_load_two_checkpoints(tmp_path: Path) -> None:
    """One takes the place of another, as whole, while ranks load: some have read the one, some the other."""
    folder = Folder.at(save(str(tmp_path), 10))

    def load(peer: ranks.Peer) -> Any:
        if peer.rank == 1:
            while not peer.waited_for():
                time.sleep(0.001)
            alone.write(folder, state(11), {"steps": 10}, replace=True)
        return together.load(folder, state(12), peer, lambda _: False)

    found = ranks.on_ranks(2, load)
    assert [type(one) for one in found] == [Damaged] * 2
    assert all("was replaced while it was read" in one.problem for one in found)
    assert ranks.on_ranks(2, lambda peer: together.load(folder, state(12), peer, lambda _: False).steps) == [10, 10]
