"""What counts as a whole checkpoint, what becomes of those that are not, and what a damaged one may not do."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import metadata

from shoal import checkpoint
from shoal_core.dcp import Unpickler, described, read_index
from shoal_core.errors import UserError
from shoal_core.lane import DeviceLane, Lane
from shoal_core.marker import digest, seal, set_aside, sweep
from tests.support.late import Late

STATE = {"vector": torch.arange(6.0), "bias": torch.zeros(2, dtype=torch.bfloat16)}


def write(root: Path, steps: int, content: bytes = b"state") -> Path:
    """A checkpoint as a cell leaves it before it is committed."""
    folder = root / f".step-{steps:08d}-0"
    folder.mkdir(parents=True)
    (folder / "part.distcp").write_bytes(content)
    return folder


def commit(root: Path, steps: int, content: bytes = b"state", **about: Any) -> Path:
    final = root / f"step-{steps:08d}"
    checkpoint.commit(write(root, steps, content), final, {"steps": steps, **about})
    return final


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A world of one."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def saved(tmp_path: Path, alone: None) -> Path:
    """A real checkpoint of 7 steps."""
    saver, _ = saver_at(tmp_path / "checkpoints")
    saver.save(7, 0, STATE)
    saver.join()
    return tmp_path / "checkpoints" / "step-00000007"


def saver_at(root: Path, lane: Lane | None = None) -> tuple[checkpoint.Saver, list[tuple[Any, ...]]]:
    """A saver, and what it will have said."""
    said: list[tuple[Any, ...]] = []
    done, failed = lambda *told: said.append(("done", *told)), lambda *told: said.append(("failed", *told))
    return checkpoint.Saver(root, 0, None, lane or Lane(), 2, {"run_id": "r"}, done, failed), said


def test_only_what_is_committed_counts(tmp_path: Path) -> None:
    write(tmp_path, 30)
    (tmp_path / "step-00000040").mkdir()
    commit(tmp_path, 10)
    commit(tmp_path, 20)
    assert [one.steps for one in checkpoint.whole(tmp_path)] == [10, 20]
    last = checkpoint.last_whole(tmp_path)
    assert last is not None
    assert checkpoint.verify(last.path)["steps"] == 20
    assert checkpoint.last_whole(tmp_path / "nowhere") is None


def test_a_second_save_of_a_step_leaves_the_first_alone(tmp_path: Path) -> None:
    final = commit(tmp_path, 10, b"first")
    commit(tmp_path, 10, b"second")
    assert (final / "part.distcp").read_bytes() == b"first"
    assert [child.name for child in tmp_path.iterdir()] == ["step-00000010"]


def change(**fields: Any) -> Callable[[Path], object]:
    """Of the marker."""
    return lambda final: rewrite(final, lambda marker: marker | fields)


def rewrite(final: Path, by: Callable[[dict[str, Any]], Any]) -> None:
    """Change the marker as somebody would who knows how it is sealed."""
    marker = final / checkpoint.MARKER
    said = by(json.loads(marker.read_text()))
    marker.write_text(json.dumps({**said, "seal": seal(said)}))


def instead(final: Path, make: Callable[[Path], object]) -> None:
    """Something that is no regular file in the place of the part, of the same name."""
    (final / "part.distcp").unlink()
    make(final / "part.distcp")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flip": lambda final: (final / "part.distcp").write_bytes(b"stata"),
    "cut": lambda final: (final / "part.distcp").write_bytes(b"stat"),
    "remove": lambda final: (final / "part.distcp").unlink(),
    "one more file": lambda final: (final / "other").write_bytes(b""),
    "a fifo": lambda final: instead(final, os.mkfifo),
    "a link": lambda final: instead(final, lambda part: part.symlink_to("/dev/null")),
    "no marker": lambda final: (final / checkpoint.MARKER).unlink(),
    "half a marker": lambda final: (final / checkpoint.MARKER).write_text("{"),
    "a deep marker": lambda final: (final / checkpoint.MARKER).write_text("[" * 100_000),
    "a list": lambda final: (final / checkpoint.MARKER).write_text("[]"),
    "no files": change(files={}),
    "a list of files": change(files=["part.distcp"]),
    "a number for a file": change(files={"part.distcp": 5}),
    "a file elsewhere": change(files={"../part.distcp": {"bytes": 5, "sha256": "0"}}),
    "steps of another": change(steps=20),
    "negative steps": change(steps=-10),
    "steps in words": change(steps="10"),
}


@pytest.mark.parametrize("damage", sorted(DAMAGE))
def test_damage_is_found(tmp_path: Path, damage: str) -> None:
    final = commit(tmp_path, 10)
    DAMAGE[damage](final)
    with pytest.raises(UserError, match="step-00000010"):
        checkpoint.verify(final)


def test_a_folder_stands_for_the_steps_of_its_name(tmp_path: Path) -> None:
    final = commit(tmp_path, 10)
    shutil.copytree(final, tmp_path / "step-00000090")
    with pytest.raises(UserError, match=r"step-00000090: holds a checkpoint of 10 steps"):
        checkpoint.verify(tmp_path / "step-00000090")
    shutil.copytree(final, tmp_path / "best")
    assert checkpoint.verify(tmp_path / "best")["steps"] == 10


def test_the_newest_stay_and_half_written_ones_go(tmp_path: Path) -> None:
    for steps in (10, 20, 30):
        commit(tmp_path, steps)
    write(tmp_path, 25)
    write(tmp_path, 40)
    checkpoint.prune(tmp_path, keep=2)
    assert sorted(child.name for child in tmp_path.iterdir()) == [".step-00000040-0", "step-00000020", "step-00000030"]
    sweep(tmp_path)
    assert [one.steps for one in checkpoint.whole(tmp_path)] == [20, 30]
    assert len(list(tmp_path.iterdir())) == 2


def test_one_saved_after_a_step_that_is_no_number_takes_no_healthy_ones_place(tmp_path: Path) -> None:
    for steps in (10, 20):
        commit(tmp_path, steps)
    for steps in (30, 40):
        commit(tmp_path, steps, finite=False)
        checkpoint.prune(tmp_path, keep=2)
    assert [one.steps for one in checkpoint.whole(tmp_path)] == [10, 20, 40]
    for steps in (50, 60):
        commit(tmp_path, steps, finite=True)
        checkpoint.prune(tmp_path, keep=2)
    assert [one.steps for one in checkpoint.whole(tmp_path)] == [50, 60]


def test_one_that_is_set_aside_is_seen_no_more(tmp_path: Path) -> None:
    for _ in range(2):
        set_aside(commit(tmp_path, 10))
    assert checkpoint.whole(tmp_path) == []
    assert sorted(child.name for child in tmp_path.iterdir()) == ["aside-step-00000010", "aside-step-00000010-1"]
    commit(tmp_path, 20)
    checkpoint.prune(tmp_path, keep=1)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_bit_of_the_marker_itself_is_seen(tmp_path: Path) -> None:
    """Each may be refused or mean nothing; none may change what is read."""
    final = commit(tmp_path, 10, samples=160, workload={"origin": {"steps": 5, "samples": 60}})
    marker = final / checkpoint.MARKER
    written, said = marker.read_bytes(), checkpoint.verify(final)
    refused = 0
    for bit in range(8 * len(written)):
        flipped = bytearray(written)
        flipped[bit // 8] ^= 1 << bit % 8
        marker.write_bytes(flipped)
        try:
            assert checkpoint.verify(final) == said
        except checkpoint.Damaged:
            refused += 1
    assert refused > 4 * len(written)


def test_a_marker_of_an_earlier_version_has_no_seal(tmp_path: Path) -> None:
    final = commit(tmp_path, 10)
    marker = final / checkpoint.MARKER
    said = json.loads(marker.read_text())
    marker.write_text(json.dumps({key: said[key] for key in ("steps", "time", "files")}))
    assert checkpoint.verify(final)["steps"] == 10


def test_the_marker_says_what_was_trained(tmp_path: Path) -> None:
    final = tmp_path / "step-00000010"
    checkpoint.commit(write(tmp_path, 10), final, {"steps": 10, "run_id": "r"})
    marker = json.loads((final / checkpoint.MARKER).read_text())
    assert (marker["steps"], marker["run_id"], list(marker["files"])) == (10, "r", ["part.distcp"])


# ---- real ones


def test_there_and_back(saved: Path) -> None:
    marker = checkpoint.verify(saved)
    assert (marker["steps"], marker["run_id"]) == (7, "r")
    assert described(read_index(saved)) == {"vector": ((6,), "float32"), "bias": ((2,), "bfloat16")}
    state = {name: torch.empty_like(tensor) for name, tensor in STATE.items()}
    ours = torch.full((1,), 5)
    assert checkpoint.load(saved, {**state, "shoal.exponent.0": ours}, None) == 7
    assert all(torch.equal(state[name], STATE[name]) for name in STATE)
    assert int(ours) == 5, "what an older checkpoint lacks of the platform's own stays as it was"


def test_a_state_is_saved_as_it_was_though_training_goes_on_before_it_has_left_the_device(
    tmp_path: Path, alone: None
) -> None:
    device = Late()
    lane = DeviceLane(device)
    saver, said = saver_at(tmp_path / "checkpoints", lane)
    state = {name: tensor.clone() for name, tensor in STATE.items()}
    saver.save(7, 0, state)
    assert device.log[0] == "side waits for main"
    lane.precede()
    for tensor in state.values():
        tensor.add_(1)
    saver.join()
    assert said[0][:2] == ("done", 7)
    found = {name: torch.empty_like(tensor) for name, tensor in STATE.items()}
    checkpoint.load(tmp_path / "checkpoints" / "step-00000007", found, None)
    assert all(torch.equal(found[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize(
    ("state", "word"), [({"vector": torch.zeros(8)}, r"Size mismatch"), ({"moment": torch.zeros(6)}, "Missing key")]
)
def test_another_state_is_refused_by_an_exception(saved: Path, state: dict[str, torch.Tensor], word: str) -> None:
    """torch's own is no `Exception` and would end the process unheard."""
    with pytest.raises(checkpoint.Unfit, match=word):
        checkpoint.load(saved, state, None)


def test_a_flipped_bit_is_never_loaded(saved: Path) -> None:
    part = saved / "__0_0.distcp"
    content = bytearray(part.read_bytes())
    for place in (0, len(content) // 2, len(content) - 1):
        damaged = content.copy()
        damaged[place] ^= 1
        part.write_bytes(damaged)
        with pytest.raises(checkpoint.Damaged, match="differs"):
            checkpoint.load(saved, {"vector": torch.zeros(6)}, None)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("evil",)


def bytes_for_a_tensor() -> Any:
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

    return Metadata({"vector": BytesStorageMetadata()}, storage_data={})


def beyond() -> Any:
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

    return Metadata({}, storage_data={MetadataIndex("vector"): _StorageInfo("../other", 0, 1)})


def huge(saved: Path) -> Any:
    found = read_index(saved)
    found.state_dict_metadata["vector"].size = torch.Size([1 << 40])
    return found


@pytest.mark.parametrize(
    "make",
    [lambda _: Evil(), lambda _: bytes_for_a_tensor(), lambda _: beyond(), lambda _: 5, huge],
    ids=["a call", "bytes", "a file elsewhere", "a number", "too large"],
)
def test_an_index_that_was_made_up_runs_nothing_and_leads_nowhere(
    saved: Path, make: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(saved.parent)
    index = saved / ".metadata"
    index.write_bytes(pickle.dumps(make(saved)))
    about = {"bytes": index.stat().st_size, "sha256": digest(index)}
    rewrite(saved, lambda marker: {**marker, "files": {**marker["files"], ".metadata": about}})
    checkpoint.verify(saved)
    with pytest.raises(checkpoint.Damaged, match="no index of tensors"):
        checkpoint.load(saved, {"vector": torch.zeros(6)}, None)
    assert not (saved.parent / "evil").exists()


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


def test_a_save_that_fails_is_told_and_leaves_nothing_behind(
    tmp_path: Path, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written by torch, which raises what is no `Exception`; committed by ourselves."""
    saver, said = saver_at(tmp_path / "checkpoints")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(dcp.FileSystemWriter, "write_data", full)
        saver.save(1, 0, STATE)
        saver.join()
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        saver.save(2, 0, STATE)
        saver.join()
    assert [(word, steps) for word, steps, *_ in said] == [("failed", 1), ("failed", 2)]
    assert all("No space left" in told[2] for told in said)
    assert saver.problem is not None
    assert list((tmp_path / "checkpoints").iterdir()) == []
    saver.save(3, 0, STATE)
    saver.join()
    assert (said[-1][:2], saver.problem) == (("done", 3), None)
