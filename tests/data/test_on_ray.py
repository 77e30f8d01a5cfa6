"""Parts on a real, private Ray: workers that die, parts that fail, nothing else in the output; training, too."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from shoal_core.errors import StoreError, UserError
from shoal_data.bpe import count_job
from shoal_data.bpe.train import TrainOptions, train
from shoal_data.jobs import pool
from shoal_data.jobs.session import RaySession
from shoal_data.jobs.tasks import run_parts
from shoal_data.sources.parts import Part, Piece

pytestmark = pytest.mark.cluster


def work(part: Part, settings: dict[str, Any]) -> dict[str, int]:
    """Leaves a file with the part's name, or fails as `settings` has it."""
    folder = Path(settings["folder"])
    how = settings.get(str(part.id), "")
    if how == "dies" or (how == "dies once" and not (folder / "died").exists()):
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "store":
        raise StoreError(f"{part.pieces[0].path}: not to be had", "wait")
    if how == "broken":
        raise ZeroDivisionError("division by zero")
    (folder / f"done-{part.id}").write_text(Path(part.pieces[0].path).read_text())
    return {"bytes": 1, "documents": 1}


@pytest.fixture(scope="module", autouse=True)
def private_ray(tokenizer: Path) -> Iterator[None]:
    """One private Ray for the tests of this file: where it runs, parts go to its actors and not to threads, as those
    that `tokenizer` was trained with did before."""
    import ray.cloudpickle

    with pytest.MonkeyPatch.context() as patch, RaySession(2) as session:
        patch.delenv("RAY_ADDRESS", raising=False)
        session.wait()
        ray.cloudpickle.register_pickle_by_value(sys.modules[work.__module__])  # workers cannot import a test
        yield


Run = Callable[..., set[int]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Does six parts as told, expects what is raised, and gives those that were done."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").write_text("relative")  # as the driver names it
    parts = [Part(number, "web", (Piece("in", "text", 0, 0, 0, 1),)) for number in range(6)]

    def run_six(expected: AbstractContextManager[Any], **how: str) -> set[int]:
        settings = {"folder": str(tmp_path), **{name[1:]: way for name, way in how.items()}}
        with expected:
            run_parts("work", work, parts, settings, ["documents"], tmp_path)
        assert not (tmp_path / "stopped").exists()
        return {int(path.name[5:]) for path in tmp_path.glob("done-*")}

    return run_six


def test_a_worker_dies_and_a_store_fails(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    lost = pytest.raises(StoreError, match=r"in: not to be had \(the first of 2 parts that failed\)")
    assert run(lost, p1="store", p2="dies once", p4="store") == {0, 2, 3, 5}
    said = "".join(capfd.readouterr())
    assert "constructor arguments" not in said
    assert "Deprecat" not in said
    assert "4 documents" in said


def test_a_fault_of_this_software_ends_the_run(run: Run) -> None:
    run(pytest.raises(RuntimeError, match="ZeroDivisionError"), p3="broken")


def test_a_part_whose_worker_dies_each_time(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_RETRIES", 0)  # each round loses the worker once, not three times
    assert 0 not in run(pytest.raises(UserError, match=r"in: the worker that does this part died 1 times"), p0="dies")


def test_lost_parts_are_done_again_while_a_round_does_any(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    rounds: list[list[int]] = []

    def one_round(work: object, parts: Sequence[Part], settings: object, stopped: object) -> Iterator[dict[str, Any]]:
        """The later half of the parts is done, as long as there are more than one."""
        rounds.append([part.id for part in parts])
        for part in parts[max(1, len(parts) // 2) :]:
            yield {"part": part.id, "failure": ""}

    monkeypatch.setattr(pool, "_round", one_round)
    parts = [Part(number, "web", (Piece(f"in-{number}", "text", 0, 0, 0, 1),)) for number in range(4)]
    done: list[int] = []
    with pytest.raises(UserError, match=r"in-0: the worker that does this part died 3 times"):
        done.extend(row["part"] for row in pool.in_actors(work, parts, {}, Path("stopped")))
    assert rounds == [[0, 1, 2, 3], [0, 1], [0]]
    assert done == [2, 3, 1]
    said = capfd.readouterr().err
    assert "2 parts lost with a worker: done again" in said
    assert "1 part lost with a worker: done again" in said


def test_a_tokenizer_counted_and_reduced_in_parts_is_the_same(
    raw: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(count_job, "_PARTITION_BYTES", 60_000)
    path = train([str(raw / "*.parquet")], tmp_path / "out", TrainOptions(600, part_bytes=60_000))
    assert path.read_bytes() == tokenizer.read_bytes()
