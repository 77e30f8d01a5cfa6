"""`shoal ckpt`: every command on what a run leaves, for people and for programs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from shoal.cli.ckpt import mesh, tier
from shoal.cli.main import app
from shoal.record.rundir import RunDir
from shoal_core.ckpt import alone, earlier
from shoal_core.ckpt.errors import Earlier
from shoal_core.ckpt.folder import Folder, name_of
from shoal_core.ckpt.marker import MARKER, seal
from shoal_core.ckpt.whole import Checkpoint
from shoal_core.errors import UserError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with checkpoints of 10 and 20 steps."""
    for steps in (20, 10):
        about: dict[str, Any] = {"steps": steps, "run_id": "r", "samples": 8 * steps, "workers": 2}
        about |= {"mesh": {"pp": 1, "ep": 2}, "tokens": 128 * steps, "bpb": 1.25 if steps == 10 else None}
        alone.write(Folder.at(tmp_path / "r" / "checkpoints" / name_of(steps)), {"w": torch.ones(500)}, about)
    return tmp_path / "r"


def shoal(*words: object, fails: bool = False) -> str:
    result = CliRunner().invoke(app, ["ckpt", *map(str, words)])
    if fails:
        assert isinstance(result.exception, UserError), result.output
        return f"{result.exception}\n{result.output}"
    assert result.exception is None, result.exception
    return result.output


def told(*words: object) -> Any:
    return json.loads(shoal(*words, "--json"))


def flip(folder: Path) -> None:
    (part,) = folder.glob("*.safetensors")
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)


def test_they_are_listed_wherever_one_looks(run: Path) -> None:
    found = told("list", run)
    assert [one["steps"] for one in found] == [10, 20]
    assert found == told("list", run / "checkpoints") == [*told("list", run / "checkpoints" / name_of(10)), found[1]]
    assert (found[0]["samples"], found[0]["mesh"], found[0]["state"]) == (80, {"pp": 1, "ep": 2}, "whole")
    assert [(one["tokens"], one["bpb"]) for one in found] == [(1280, 1.25), (2560, None)]
    assert found[0]["bytes"] > 2000
    assert "whole" in shoal("list", run)
    assert "there is no checkpoint" in shoal("list", run.parent, fails=True)


def test_a_run_is_named_as_status_takes_it(run: Path) -> None:
    RunDir(run).append_event("run_started", run_id="r")
    assert told("list", "r", "--storage", run.parent) == told("list", run)
    assert len(told("verify", "r", "--storage", run.parent)) == 2
    assert "no run 'q'" in shoal("list", "q", "--storage", run.parent, fails=True)
    RunDir.create(run.parent, "empty", {}, resume=False).append_event("run_started", run_id="empty")
    assert "this run has no checkpoint" in shoal("list", "empty", "--storage", run.parent, fails=True)


def test_one_is_shown(run: Path) -> None:
    found = told("show", run / "checkpoints" / name_of(10))
    assert (found["run_id"], found["types"]) == ("r", {"float32": {"tensors": 1, "bytes": 2000}})
    assert "float32" in shoal("show", run / "checkpoints" / name_of(10))


def test_damage_is_told_and_ends_with_an_error(run: Path) -> None:
    assert [one["problem"] for one in told("verify", run)] == [None, None]
    flip(run / "checkpoints" / name_of(20))
    said = shoal("verify", run, fails=True)
    assert "1 of 2 checkpoints cannot be used" in said
    assert f"{name_of(10)}: " in said
    assert "all as committed" in said
    (run / "checkpoints" / name_of(10) / MARKER).write_text("{")
    assert [one["state"] == "whole" for one in told("list", run)] == [False, True], (
        "sizes and index alone are looked at"
    )


def test_where_the_files_are_is_told(run: Path, tmp_path: Path) -> None:
    """In the storage, and on this node's disk, by the run's own settings or by what is asked for."""
    first, second = (run / "checkpoints" / name_of(steps) for steps in (10, 20))
    near = tmp_path / "a disk" / "r" / "node-1" / name_of(10)
    near.mkdir(parents=True)
    (part,) = first.glob("*.safetensors")
    shutil.copy(part, near)
    size = part.stat().st_size
    whole = {"files": 1, "of": 1, "bytes": size}
    assert [one["tiers"] for one in told("list", run)] == [{"storage": whole}] * 2
    on_disk = [{"storage": whole, "disk": whole}, {"storage": whole, "disk": {"files": 0, "of": 1, "bytes": 0}}]
    assert [one["tiers"] for one in told("list", run, "--local", tmp_path / "a disk")] == on_disk
    (run / "config.yaml").write_text(json.dumps({"checkpoint": {"local": str(tmp_path / "a disk")}}))
    assert [one["tiers"] for one in told("list", run)] == on_disk
    part.write_bytes(b"cut")
    (second / MARKER).write_text("{")
    found = told("list", run)
    assert found[0]["tiers"] == {"storage": {"files": 0, "of": 1, "bytes": 0}, "disk": whole}
    assert (found[0]["tokens"], "has 3 bytes" in found[0]["state"]) == (1280, True)
    (run / "config.yaml").write_text("{")
    assert [sorted(one["tiers"]) for one in told("list", run)] == [["storage"], ["storage"]]


def test_a_mesh_is_told_in_words() -> None:
    assert mesh({"pp": 2, "fsdp": 1, "ep": 4, "ep_node": 1}) == "pp 2, ep 4"
    assert (mesh({"pp": 1}), mesh(None), mesh("x")) == ("1", "", "")
    assert tier("disk", {"files": 1, "of": 2, "bytes": 5}) == "disk 1 of 2 files"
    assert tier("storage", {"files": 2, "of": 2, "bytes": 5}) == "storage"


def test_a_marker_of_somebody_else_acts_on_nothing(run: Path) -> None:
    """Terminal escapes and markup in its words, figures that are none."""
    marker = run / "checkpoints" / name_of(10) / MARKER
    said = json.loads(marker.read_text()) | {"workers": "\x1b[2J", "samples": "[/b]"}
    marker.write_text(json.dumps(said | {"seal": seal(said)}))
    assert "\x1b[2J" not in shoal("list", run)
    for field in ({"time": 1e300}, {"time": "now"}, {"time": None}, {"bpb": "low"}, {"bpb": 10**400}):
        marker.write_text(json.dumps((said | field) | {"seal": seal(said | field)}))
        assert "is no finished checkpoint" in told("list", run)[0]["state"]
        assert "whole" in shoal("list", run)


def test_the_folder_that_one_is_in_is_looked_at(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    assert [one["steps"] for one in told("list", ".")] == [10, 20]
    monkeypatch.chdir("checkpoints")
    assert told("list", name_of(10))[0]["steps"] == 10
    monkeypatch.chdir(name_of(10))
    assert told("list", ".")[0]["steps"] == 10


def test_one_is_copied_and_deleted(run: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept" / name_of(10)
    source = run / "checkpoints" / name_of(10)
    assert told("copy", source, kept)["steps"] == 10
    (source / "notes.txt").write_text("mine")
    assert told("delete", source)["bytes"] > 2000
    assert [path.name for path in source.iterdir()] == ["notes.txt"]
    assert [one["steps"] for one in told("list", run)] == [20]
    Checkpoint.open(Folder.at(kept)).verify()
    assert "is no checkpoint" in shoal("delete", source, fails=True)
    assert "is no checkpoint" in shoal("delete", tmp_path, fails=True)


def test_torchs_format_is_given_and_taken(run: Path, tmp_path: Path) -> None:
    """As a run of an earlier version has it."""
    whole = run / "checkpoints" / name_of(10)
    assert told("to-dcp", whole, tmp_path / "torch")["tensors"] == 1
    old = run / "checkpoints" / name_of(30)
    (tmp_path / "torch").rename(old)
    files = {file.name: {"bytes": file.stat().st_size, "sha256": earlier.digest(file)} for file in old.iterdir()}
    said = {"steps": 30, "version": 2, "files": files}
    (old / MARKER).write_text(json.dumps({**said, "seal": seal(said)}))
    assert told("list", run)[-1]["state"] == "earlier format"
    verified = shoal("verify", run, fails=True)
    assert f"remedy: convert it, once: shoal ckpt convert {old}" in verified
    assert verified.count("all as committed") == 2
    with pytest.raises(Earlier):
        Checkpoint.open(Folder.at(old))
    assert [one["out"] for one in told("convert", run)["converted"]] == [str(old)]
    assert told("list", run)[-1]["state"] == "whole"
    assert told("convert", run) == {"converted": []}
