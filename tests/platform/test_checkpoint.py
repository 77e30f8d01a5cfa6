"""What counts as a whole checkpoint, and what becomes of those that are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shoal import checkpoint
from shoal.errors import UserError


def write(root: Path, steps: int, content: bytes = b"state") -> Path:
    """A checkpoint as a cell leaves it before it is committed."""
    folder = root / f".step-{steps:08d}-0"
    folder.mkdir(parents=True)
    (folder / "part.distcp").write_bytes(content)
    return folder


def commit(root: Path, steps: int, content: bytes = b"state") -> Path:
    final = root / f"step-{steps:08d}"
    checkpoint.commit(write(root, steps, content), final, {"steps": steps})
    return final


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


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "marker"])
def test_damage_is_found(tmp_path: Path, damage: str) -> None:
    final = commit(tmp_path, 10)
    part = final / "part.distcp"
    match damage:
        case "flip":
            part.write_bytes(b"stata")
        case "cut":
            part.write_bytes(b"stat")
        case "remove":
            part.unlink()
        case "marker":
            (final / checkpoint.MARKER).write_text("{")
    with pytest.raises(UserError, match="step-00000010"):
        checkpoint.verify(final)


def test_the_newest_stay_and_half_written_ones_go(tmp_path: Path) -> None:
    for steps in (10, 20, 30):
        commit(tmp_path, steps)
    write(tmp_path, 25)
    write(tmp_path, 40)
    checkpoint.prune(tmp_path, keep=2)
    assert sorted(child.name for child in tmp_path.iterdir()) == [".step-00000040-0", "step-00000020", "step-00000030"]


def test_the_marker_says_what_was_trained(tmp_path: Path) -> None:
    final = tmp_path / "step-00000010"
    checkpoint.commit(write(tmp_path, 10), final, {"steps": 10, "run_id": "r"})
    marker = json.loads((final / checkpoint.MARKER).read_text())
    assert (marker["steps"], marker["run_id"], list(marker["files"])) == (10, "r", ["part.distcp"])
