"""Whatever becomes of a checkpoint's objects, nothing else than what was saved is ever loaded."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal_core.ckpt import alone, pieces
from shoal_core.ckpt.errors import Damaged
from shoal_core.ckpt.folder import Folder, name_of
from shoal_core.ckpt.index import INDEX
from shoal_core.ckpt.marker import MARKER, seal
from shoal_core.ckpt.whole import Checkpoint
from tests.support.saving_process import save, state


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two checkpoints, of 10 and 20 steps."""
    monkeypatch.setattr(pieces, "SMALLEST", 256)
    for steps in (10, 20):
        save(str(tmp_path / "saved"), steps)
    return tmp_path / "saved"


def load(folder: Path) -> dict[str, torch.Tensor]:
    return alone.read(Checkpoint.open(Folder.at(folder)))


def rewrite(folder: Path, by: Callable[[dict[str, Any]], Any]) -> None:
    """Change the marker as somebody would who knows how it is sealed."""
    said = by(json.loads((folder / MARKER).read_text()))
    (folder / MARKER).write_text(json.dumps({**said, "seal": seal(said)}) if isinstance(said, dict) else str(said))


def change(**fields: Any) -> Callable[[Path], object]:
    return lambda folder: rewrite(folder, lambda said: said | fields)


def reindexed(by: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Change the index as somebody would who knows how the marker vouches for it."""

    def work(folder: Path) -> None:
        (path,) = folder.glob(f"*{INDEX}")
        said = json.loads(path.read_text())
        by(said)
        content = json.dumps(said).encode()
        path.write_bytes(content)
        about = {"file": path.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        rewrite(folder, lambda marker: marker | {"index": about})

    return work


def first(said: dict[str, Any]) -> dict[str, Any]:
    return said["tensors"]["w"]["blocks"][0]


def a_part(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[0]


def instead(make: Callable[[Path], object]) -> Callable[[Path], object]:
    """Something that is no file in the place of one."""

    def work(folder: Path) -> None:
        part = a_part(folder)
        part.unlink()
        make(part)

    return work


MADE_UP: dict[str, Callable[[Path], object]] = {
    "no marker": lambda folder: (folder / MARKER).unlink(),
    "half a marker": lambda folder: (folder / MARKER).write_text("{"),
    "a deep marker": lambda folder: (folder / MARKER).write_text("[" * 100_000),
    "a list": lambda folder: (folder / MARKER).write_text("[]"),
    "a marker that is not sealed": lambda folder: (folder / MARKER).write_text('{"version": 3, "steps": 10}'),
    "a part less": lambda folder: a_part(folder).unlink(),
    "a fifo": instead(os.mkfifo),
    "a link": instead(lambda part: part.symlink_to("/dev/null")),
    "no files": change(files={}),
    "a list of files": change(files=["part"]),
    "a file elsewhere": change(files={"../g0-ab-00000.safetensors": 5}),
    "steps of another": change(steps=20),
    "negative steps": change(steps=-10),
    "steps in words": change(steps="10"),
    "an index elsewhere": change(index={"file": "../index.json", "bytes": 1, "sha256": "0" * 64}),
    "a version to come": change(version=4),
    "no index": lambda folder: next(folder.glob(f"*{INDEX}")).unlink(),
    "a block outside of its file": reindexed(lambda said: first(said).update(at=1 << 40)),
    "a block of the header": reindexed(lambda said: first(said).update(at=0)),
    "a block of another place": reindexed(lambda said: first(said).update(at=first(said)["at"] + 4)),
    "a block of no file": reindexed(lambda said: first(said).update(file="other")),
    "a block beyond the tensor": reindexed(lambda said: first(said).update(offsets=[63, 0])),
    "a block of other bytes": reindexed(lambda said: first(said).update(bytes=5)),
    "a block less": reindexed(lambda said: said["tensors"]["w"]["blocks"].pop()),
    "a block twice": reindexed(lambda said: said["tensors"]["w"]["blocks"].append(first(said))),
    "a hash in words": reindexed(lambda said: first(said).update(sha256="none")),
    "a huge tensor": reindexed(lambda said: said["tensors"]["w"].update(shape=[1 << 60, 9])),
    "a tensor larger than any": reindexed(
        lambda said: said["tensors"].update(e={"dtype": "int8", "shape": [1 << 70, 0], "blocks": []})
    ),
    "an unknown type": reindexed(lambda said: said["tensors"]["w"].update(dtype="object")),
    "another type": reindexed(lambda said: said["tensors"]["w"].update(dtype="float64")),
    "tensors in a list": reindexed(lambda said: said.update(tensors=[])),
    "a file it does not need": reindexed(lambda said: said["files"].popitem()),
    "an index of another version": reindexed(lambda said: said.update(version=2)),
}


@pytest.mark.parametrize("made_up", sorted(MADE_UP))
def test_what_was_made_up_is_refused(saved: Path, made_up: str) -> None:
    folder = saved / name_of(10)
    MADE_UP[made_up](folder)
    with pytest.raises(Damaged, match="step-00000010"):
        load(folder)


def test_a_bit_of_the_marker_itself_is_seen(saved: Path) -> None:
    """Each may be refused or mean nothing; none may change what is read."""
    folder = Folder.at(saved / name_of(10))
    path = saved / name_of(10) / MARKER
    written, said = path.read_bytes(), Checkpoint.open(folder).marker
    refused = 0
    for bit in range(0, 8 * len(written), 5):
        flipped = bytearray(written)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            assert Checkpoint.open(folder).marker == said
        except Damaged:
            refused += 1
    assert refused > 4 * len(written) / 5


def test_a_folder_stands_for_the_steps_of_its_name(saved: Path) -> None:
    shutil.copytree(saved / name_of(10), saved / name_of(90))
    with pytest.raises(Damaged, match=r"step-00000090: holds a checkpoint of 10 steps"):
        load(saved / name_of(90))
    shutil.copytree(saved / name_of(10), saved / "best")
    assert Checkpoint.open(Folder.at(saved / "best")).steps == 10


def test_what_else_lies_there_is_not_looked_at(saved: Path) -> None:
    """Files of attempts that came to nothing."""
    (saved / name_of(10) / "g7-00ff-00000.safetensors").write_bytes(b"half")
    assert torch.equal(load(saved / name_of(10))["w"], state(10)["w"])
