"""Checkpoints copied, and converted from torch's format, whose index is a pickle, and to it."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from pyarrow import fs
from torch.distributed.checkpoint import metadata
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex

from shoal_core.ckpt import alone, earlier
from shoal_core.ckpt.boxes import Box
from shoal_core.ckpt.earlier_index import Unpickler, read_index
from shoal_core.ckpt.errors import Damaged, Earlier
from shoal_core.ckpt.folder import Folder, name_of
from shoal_core.ckpt.marker import MARKER, seal
from shoal_core.ckpt.moving import convert, copy, to_dcp
from shoal_core.ckpt.whole import Checkpoint
from shoal_core.errors import StoreError, UserError
from shoal_core.store import open_store, send
from shoal_core.store.arrow import ArrowStore, Place
from shoal_core.store.local import LocalStore
from tests.support import ranks

STATE = {"vector": torch.arange(600.0).view(6, 100), "bias": torch.zeros(2, dtype=torch.bfloat16), "n": torch.tensor(3)}


@pytest.fixture
def saved(tmp_path: Path) -> Checkpoint:
    """By two ranks."""
    held: dict[str, list[Box | None]] = {
        "vector": [Box((0, 0), (3, 100)), Box((3, 0), (3, 100))],
        "bias": [Box((0,), (2,))] * 2,
        "n": [Box((), ())] * 2,
    }
    folder = Folder.at(tmp_path / "here" / name_of(7))
    ranks.save(folder, STATE, held, 2, 7, run_id="r")
    return Checkpoint.open(folder)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """One of the format before this."""
    path = tmp_path / "old" / name_of(7)
    earlier.write(STATE, path)
    mark(path, {"steps": 7, "run_id": "r", "samples": 56, "finite": True})
    return path


def mark(path: Path, about: dict[str, Any]) -> None:
    """As that format marked what is whole."""
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": earlier.digest(file)}
        for file in path.iterdir()
        if file.name != MARKER
    }
    said = {**about, "time": 5.0, "version": 2, "files": files}
    (path / MARKER).write_text(json.dumps({**said, "seal": seal(said)}))


def same(checkpoint: Checkpoint) -> bool:
    found = alone.read(checkpoint)
    return found.keys() == STATE.keys() and all(torch.equal(found[name], STATE[name]) for name in STATE)


def test_a_copy_is_whole_and_the_same(saved: Checkpoint, tmp_path: Path) -> None:
    target = Folder.at(tmp_path / "there" / name_of(7))
    assert copy(saved, target) == saved.bytes
    found = Checkpoint.open(target)
    found.verify()
    assert (found.marker, found.index, same(found)) == (saved.marker, saved.index, True)
    with pytest.raises(UserError, match="is not empty"):
        copy(saved, target)
    with pytest.raises(UserError, match="another step's"):
        copy(saved, Folder.at(tmp_path / "there" / name_of(8)))


def test_a_copy_goes_to_a_store_without_conditional_writes(saved: Checkpoint, tmp_path: Path) -> None:
    """As Google's, Azure's and Hadoop's are through pyarrow."""
    place = Place(str(tmp_path / "far"), fs.LocalFileSystem, "hdfs://h", True, "mend it")
    target = Folder(ArrowStore("x", place), name_of(7))
    assert copy(saved, target) == saved.bytes
    found = Checkpoint.open(target)
    found.verify()
    assert same(found)
    with pytest.raises(UserError, match="is not empty"):
        copy(saved, target)


def test_what_fails_first_is_told_where_nothing_can_be_removed_either(
    saved: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(store: LocalStore, *given: object) -> None:
        raise StoreError("full" if given and isinstance(given[0], str) else "gone")

    target = Folder.at(tmp_path / "there" / name_of(7))
    monkeypatch.setattr(LocalStore, "put", fails)
    monkeypatch.setattr(LocalStore, "delete", fails)
    with pytest.raises(StoreError, match="full"):
        copy(saved, target)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a").write_bytes(b"a")
    monkeypatch.setattr(LocalStore, "writer", fails)
    with pytest.raises(StoreError, match="full"):
        send(tmp_path / "files", open_store(tmp_path / "sent"), last="a")


@pytest.mark.parametrize("place", [20, -1])
def test_damage_is_not_copied(saved: Checkpoint, tmp_path: Path, place: int) -> None:
    """Of a header or a tensor."""
    part = sorted(Path(saved.folder.address).glob("*.safetensors"))[1]
    content = bytearray(part.read_bytes())
    content[place] ^= 1
    part.write_bytes(content)
    target = tmp_path / "there" / name_of(7)
    with pytest.raises(Damaged, match=f"{part.name}: (its header )?differs"):
        copy(saved, Folder.at(target))
    assert not target.exists()


def test_the_earlier_format_is_read_by_nobody_until_it_is_converted(old: Path) -> None:
    folder = Folder.at(old)
    with pytest.raises(Earlier, match="format before this one") as error:
        Checkpoint.open(folder)
    assert error.value.remedy.endswith(f"shoal ckpt convert {old}")
    convert(folder)
    found = Checkpoint.open(folder)
    found.verify()
    assert same(found)
    assert {name: found.marker[name] for name in ("steps", "run_id", "samples")} == {
        "steps": 7,
        "run_id": "r",
        "samples": 56,
    }
    assert sorted(path.suffix for path in old.iterdir()) == [".json", ".json", ".safetensors"]
    with pytest.raises(Damaged, match="it is of version 3"):
        convert(folder)


def test_a_damaged_one_is_not_converted(old: Path) -> None:
    (part,) = old.glob("*.distcp")
    before = part.read_bytes()
    part.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(Damaged, match="differs from what was committed"):
        convert(Folder.at(old))
    part.write_bytes(before[:-1])
    with pytest.raises(Damaged, match="is not the file of"):
        convert(Folder.at(old))
    part.unlink()
    with pytest.raises(Damaged, match="is missing"):
        convert(Folder.at(old))


def test_a_marker_of_the_first_version_has_no_seal(old: Path) -> None:
    said = json.loads((old / MARKER).read_text())
    (old / MARKER).write_text(json.dumps({key: said[key] for key in ("steps", "time", "files")}))
    convert(Folder.at(old))
    assert same(Checkpoint.open(Folder.at(old)))


def test_torch_reads_what_is_given_to_it(saved: Checkpoint, tmp_path: Path) -> None:
    to_dcp(saved, tmp_path / "torch")
    state = {name: torch.empty_like(tensor) for name, tensor in STATE.items()}
    dcp.load(state, checkpoint_id=tmp_path / "torch", no_dist=True)
    assert all(torch.equal(state[name], STATE[name]) for name in STATE)
    with pytest.raises(UserError, match="exists"):
        to_dcp(saved, tmp_path / "torch")


# ---- an index that was made up


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("evil",)


def huge(path: Path) -> Any:
    found = read_index(path)
    found.state_dict_metadata["vector"].size = torch.Size([1 << 40])
    return found


BEYOND = Metadata({}, storage_data={MetadataIndex("vector"): _StorageInfo("../other", 0, 1)})


@pytest.mark.parametrize(
    "make",
    [
        lambda _: Evil(),
        lambda _: Metadata({"vector": BytesStorageMetadata()}, storage_data={}),
        lambda _: BEYOND,
        lambda _: 5,
        huge,
    ],
    ids=["a call", "bytes", "a file elsewhere", "a number", "too large"],
)
def test_an_index_that_was_made_up_runs_nothing_and_leads_nowhere(
    old: Path, make: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(old.parent)
    (old / ".metadata").write_bytes(pickle.dumps(make(old)))
    mark(old, {"steps": 7})
    with pytest.raises(Damaged, match="no index of tensors"):
        convert(Folder.at(old))
    assert not (old.parent / "evil").exists()


def by_getattr(kind: type, name: str) -> Any:
    """What is pickled as `getattr(kind, name)`."""

    class Member:
        def __reduce__(self) -> Any:
            return getattr, (kind, name)

    return Member()


def test_an_index_written_by_an_older_python_is_read() -> None:
    """Debian 12 has Python 3.11.2, which pickles the members of torch's nested enumerations by `getattr`."""
    way = metadata._MEM_FORMAT_ENCODING.TORCH_CONTIGUOUS_FORMAT
    found = Unpickler(io.BytesIO(pickle.dumps(by_getattr(type(way), way.name)))).load()
    assert found is way
    with pytest.raises(pickle.UnpicklingError, match="has no place in it"):
        Unpickler(io.BytesIO(pickle.dumps(by_getattr(metadata.Metadata, "__init__")))).load()
