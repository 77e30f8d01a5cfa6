"""Checkpoints on real processes: damaged ones, ones that cannot be written, and those of a run that has diverged.
Where somebody dies, the imitation of NCCL carries the tensors too; the others form no cell again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from shoal_core.ckpt import among
from shoal_core.ckpt.whole import Checkpoint, read_marker
from shoal_core.store import open_store
from tests.support.backends import BOTH_LONG
from tests.support.diverging import DIVERGES
from tests.support.lab import alone, hurry, lab

NODES = {"n0": 2, "n1": 2}
DIVERGING = {"path": "tests.support.diverging:Diverging"}


@BOTH_LONG
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, backend: str) -> None:
    settings = {"every": 20, "keep": 10}
    with lab(tmp_path, NODES, cells=1, steps=100, checkpoint=settings, audit={"samples": True}, backend=backend) as one:
        one.until(lambda: len(one.events("checkpoint")) >= 2)
        newest = among.whole(open_store(one.path / "checkpoints"))[-1]
        part = next(Path(newest.folder.address).glob("*.safetensors"))
        content = bytearray(part.read_bytes())
        content[len(content) // 2] ^= 1
        part.write_bytes(content)
        one.kill(one.members(0)[0])
        one.until(lambda: one.events("checkpoint_passed_over"))
        hurry(one)
        run = one.finished()
        assert (run["status"], run["steps"]) == ("done", 100), one.story()
        assert run["steps_lost"] >= 20
        assert (run["samples_repeated"], run["samples_skipped"]) == (0, 0)
        assert [line["loss"] for line in one.steps()] == pytest.approx(alone(100).losses, rel=1e-4)
        (passed,) = one.events("checkpoint_passed_over")
        assert passed["step"] == newest.steps
        assert "differs from what was committed" in passed["reason"]
        assert Path(passed["path"]).parent == Path(newest.folder.address), "it stays where it was"
        Checkpoint.open(newest.folder).verify()  # saved again, whole


def test_a_run_is_not_done_without_its_last_state(tmp_path: Path) -> None:
    with lab(tmp_path, NODES, cells=1, steps=60, checkpoint={"every": 25}) as one:
        shutil.rmtree(one.path / "checkpoints")
        (one.path / "checkpoints").write_text("no folder")
        hurry(one)
        run = one.finished()
        assert (run["status"], run["steps"]) == ("failed", 60), one.story()
        assert "the last state could not be saved (rank 0" in run["reason"]
        (failed,) = one.events("checkpoint_failed")
        assert (failed["step"], failed["remedy"]) == (25, "remove the file that stands where a folder is wanted")


def test_a_run_that_has_diverged_ends_and_keeps_its_healthy_checkpoint(tmp_path: Path) -> None:
    settings = {"steps": 200, "checkpoint": {"every": 4, "keep": 1}, "not_finite": 10}
    with lab(tmp_path, NODES, cells=1, workload=DIVERGING, **settings) as one:
        run = one.finished()
        assert run["status"] == "failed", one.story()
        assert "the last 11 steps were not finite" in run["reason"]
        assert run["steps"] >= DIVERGES + 11
        kept = among.whole(open_store(one.path / "checkpoints"))
        assert [read_marker(whole.folder)["finite"] for whole in kept] == [True, False]
        assert kept[0].steps == DIVERGES


def test_a_run_whose_last_step_is_no_number_is_not_done(tmp_path: Path) -> None:
    with lab(tmp_path, NODES, cells=1, workload=DIVERGING, steps=DIVERGES + 1) as one:
        run = one.finished()
        assert (run["status"], run["steps"]) == ("failed", DIVERGES + 1), one.story()
        assert "the last step was not finite" in run["reason"]


def test_a_worker_that_is_alone_saves_when_it_is_stopped(tmp_path: Path) -> None:
    with lab(tmp_path, {"n0": 1}, cells=1, workers_per_cell=1, steps=100_000) as one:
        one.until(lambda: len(one.steps()) >= 10)
        one.stop(save=True)
        run = one.finished()
        assert run["status"] == "stopped", one.story()
        assert one.events("fenced") == []
        assert one.events("death") == []
        assert f"saved up to step {run['steps']} of {run['steps']} committed" in run["reason"]


def test_a_run_goes_on_from_its_nodes_disk_where_the_storage_is_damaged(tmp_path: Path) -> None:
    settings = {"every": 20, "local": str(tmp_path / "disks")}
    with lab(tmp_path, {"n0": 2}, cells=1, workers_per_cell=1, steps=80, checkpoint=settings) as one:
        one.until(lambda: one.events("checkpoint"))
        newest = among.whole(open_store(one.path / "checkpoints"))[-1]
        (part,) = Path(newest.folder.address).glob("*.safetensors")
        (near,) = (tmp_path / "disks").glob(f"*/n0/{newest.folder.name}/*.safetensors")
        assert part.read_bytes() == near.read_bytes()
        part.write_bytes(bytes(part.stat().st_size))
        one.kill(one.members(0)[0])
        hurry(one)
        run = one.finished()
        assert (run["status"], run["steps"]) == ("done", 80), one.story()
        assert one.events("checkpoint_passed_over") == []
        assert run["steps_lost"] < 40, "back to the newest, of which the storage has no block"
        assert [line["loss"] for line in one.steps()] == pytest.approx(alone(80).losses, rel=1e-4)


def test_a_disk_that_takes_nothing_is_passed_by(tmp_path: Path) -> None:
    (tmp_path / "disks").write_text("no folder")
    settings = {"every": 0, "local": str(tmp_path / "disks")}
    with lab(tmp_path, {"n0": 2}, cells=1, steps=20, checkpoint=settings) as one:
        hurry(one)
        run = one.finished()
        assert (run["status"], run["steps"]) == ("done", 20), one.story()
        assert one.events("checkpoint_failed") == []
        (newest,) = among.whole(open_store(one.path / "checkpoints"))
        Checkpoint.open(newest.folder).verify()


def test_a_run_saves_when_it_is_worth_it(tmp_path: Path) -> None:
    """At the tenth step, to see what it costs; then, since nothing fails, seldom."""
    with lab(tmp_path, NODES, cells=1, steps=60, checkpoint={"every": "auto"}) as one:
        hurry(one)
        run = one.finished()
        assert (run["status"], run["steps"]) == ("done", 60), one.story()
        steps = [event["step"] for event in one.events("checkpoint")]
        assert steps[0] == 10
        assert steps[-1] == 60
        assert steps == sorted(set(steps))


def test_the_only_cell_saves_before_its_node_goes(tmp_path: Path) -> None:
    """Straight to the storage, though there is a disk: that goes too."""
    settings = {"every": 0, "local": str(tmp_path / "disks")}
    with lab(tmp_path, {"n0": 2}, cells=1, steps=60, checkpoint=settings) as one:
        one.until(lambda: len(one.steps()) >= 5)
        one.drain("n0")
        one.until(lambda: one.events("checkpoint"))
        assert list((tmp_path / "disks").rglob("*.safetensors")) == []
        hurry(one)
        run = one.finished()
        assert (run["status"], run["steps"]) == ("done", 60), one.story()
        assert one.events("checkpoint")[0]["step"] < 60
        Checkpoint.open(among.whole(open_store(one.path / "checkpoints"))[-1].folder).verify()
