"""Jobs in parts: what becomes of one that fails, disks that take nothing, and Ray beside other work."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from shoal_core.errors import StoreError, UserError
from shoal_data.files import write_whole
from shoal_data.jobs import attempt, session, tasks
from shoal_data.jobs.session import RaySession
from shoal_data.jobs.tasks import run_parts
from shoal_data.sources.causes import common_causes
from shoal_data.sources.parts import Part, Piece
from shoal_data.writing.shards import write_shard


def part(number: int) -> Part:
    return Part(number, "web", (Piece(f"in/{number}.jsonl", "jsonl", 0, 10, 0, 10),))


def parts(count: int) -> list[Part]:
    return [part(number) for number in range(count)]


# What becomes of a part


@pytest.mark.parametrize(
    ("raised", "kind", "words"),
    [
        (StoreError("s3://b/a: SlowDown"), attempt.STORE, "s3://b/a: SlowDown"),
        (UserError("in/0.jsonl: odd"), attempt.INPUT, "in/0.jsonl: odd"),
        (OSError(errno.ENOSPC, "No space left on device"), attempt.INPUT, "in/0.jsonl: No space left"),
        (PermissionError(errno.EACCES, "Permission denied", "in/x"), attempt.INPUT, "in/x: Permission denied"),
        (MemoryError(), attempt.INPUT, "does not fit in memory"),
        (ZeroDivisionError("division by zero"), attempt.BUG, "ZeroDivisionError"),
    ],
)
def test_each_way_to_fail_is_told_apart(raised: Exception, kind: str, words: str) -> None:
    def work(part: Part, settings: dict[str, Any]) -> dict[str, int]:
        raise raised

    row = attempt.attempt(work, part(0), {})
    assert (row["part"], row["failure"]) == (0, kind)
    assert words in row["problem"]
    failures = attempt.Failures()
    failures.add(row)
    assert failures.enough == (kind != attempt.STORE)
    with pytest.raises(RuntimeError if kind == attempt.BUG else type(raised) if kind == attempt.STORE else UserError):
        failures.check()


def run(
    folder: Path, count: int, fails: Callable[[Part], None], monkeypatch: pytest.MonkeyPatch, threads: int = 1
) -> list[int]:
    """Parts that were done, in a run of `count` of them by so many threads."""
    monkeypatch.setattr(os, "cpu_count", lambda: threads)
    done = []

    def work(part: Part, settings: dict[str, Any]) -> dict[str, int]:
        fails(part)
        done.append(part.id)
        return {"bytes": 1, "documents": 1}

    try:
        run_parts("work", work, parts(count), {}, ["documents"], folder)
    finally:
        assert not (folder / "stopped").exists()
        done.sort()
    return done


def test_a_store_costs_its_own_parts_and_all_others_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []

    def fails(part: Part) -> None:
        if part.id in (1, 3):
            raise StoreError(f"{part.pieces[0].path}: not to be had", "wait")
        done.append(part.id)

    with pytest.raises(StoreError, match=r"in/1\.jsonl: not to be had \(the first of 2 parts that failed\)"):
        run(tmp_path, 9, fails, monkeypatch)
    assert done == [0, 2, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("kind", [StoreError, UserError])
def test_a_run_that_cannot_succeed_ends_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[UserError]
) -> None:
    begun: list[int] = []

    def fails(part: Part) -> None:
        begun.append(part.id)
        if part.id >= 2:
            raise kind("it is all gone")

    with pytest.raises(kind, match="it is all gone"):
        run(tmp_path, 2000, fails, monkeypatch)
    assert {0, 1, 2} <= set(begun)
    assert len(begun) < 2000


def test_a_part_that_has_begun_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed, finished = threading.Event(), threading.Event()

    def fails(part: Part) -> None:
        if part.id == 0:
            assert failed.wait(60)
            finished.set()
        if part.id == 1:
            failed.set()
            raise UserError("broken")

    with pytest.raises(UserError, match="broken"):
        run(tmp_path, 2, fails, monkeypatch, threads=2)
    assert finished.is_set()


def test_a_store_is_told_before_other_failures() -> None:
    failures = attempt.Failures()
    for number, kind in ((0, attempt.INPUT), (2, attempt.STORE), (1, attempt.STORE)):
        failures.add({"part": number, "failure": kind, "problem": f"part {number}", "remedy": "mend it"})
    with pytest.raises(StoreError, match=r"part 1 \(the first of 3 parts that failed\)\n  remedy: mend it"):
        failures.check()


def test_what_was_left_out_is_counted_by_cause() -> None:
    rows = [{"file": f"in/{at % 2}", "row": at, "rows": 2, "cause": f"bad byte {at}"} for at in range(4)]
    files = [{"file": f"in/{at}", "row": None, "rows": None, "cause": "no column 'text'"} for at in range(3)]
    assert common_causes(rows + files) == "bad byte 0: 8 rows in 2 files; no column 'text': 3 files"
    assert common_causes([]) == ""
    several = [{"file": "a", "row": 0, "rows": 1, "cause": cause} for cause in "vwxyz"]
    assert common_causes(several).endswith("; 2 other causes")
    assert common_causes([{"file": "a", "row": 5, "cause": "old"}]) == "old: 1 row in 1 file"  # before `rows` was kept


# Disks


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EMFILE, errno.EIO])
def test_a_file_that_cannot_be_written_is_named_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=rf"shard\.arrow: {os.strerror(code)}\n  remedy: "):
        write_whole(tmp_path / "shard.arrow", b"content")
    assert list(tmp_path.iterdir()) == []


def test_a_shard_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def work(part: Part, settings: dict[str, Any]) -> dict[str, int]:
        columns = {"bytes": pa.array([3])}
        write_shard(tmp_path, "000000", "web", columns, np.array([0, 1]), np.array([7], np.uint16))
        return {"bytes": 3}

    monkeypatch.setattr(os, "fsync", fail)
    row = attempt.attempt(work, part(0), {})
    assert f"{tmp_path}/shards/000000.arrow: {os.strerror(errno.ENOSPC)}" in row["problem"]
    assert list((tmp_path / "shards").iterdir()) == []


# Ray beside other work


def test_ray_starts_beside_other_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The start ends only after what the main thread does meanwhile: one after the other, they would wait for ever."""
    meanwhile, events = threading.Event(), []

    def start(cpus: int | None) -> None:
        assert meanwhile.wait(60)
        events.append("started")

    monkeypatch.setattr(session, "_start", start)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with RaySession() as ray:  # a cluster that is named is joined at once
        events.append("planned")
        meanwhile.set()
        tasks.use_ray(ray, parts(1), wait=True)
        events.append("needed")
    assert events == ["planned", "started", "needed"]


def test_a_private_ray_is_begun_for_much_text_only(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = threading.Event()
    monkeypatch.setattr(session, "_start", lambda cpus: begun.set())
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with RaySession() as ray:
        tasks.use_ray(ray, parts(3), wait=True)
        assert not begun.is_set()
        monkeypatch.setattr(tasks, "_WORTH_STARTING_RAY", 30)
        tasks.use_ray(ray, [], wait=True)
        assert not begun.is_set()
        tasks.use_ray(ray, parts(3), wait=False)
        assert begun.wait(60)


@pytest.mark.parametrize(("address", "words"), [("", "could not be started"), ("10.0.0.1:6379", "10.0.0.1:6379")])
def test_a_ray_that_does_not_start_is_one_sentence(monkeypatch: pytest.MonkeyPatch, address: str, words: str) -> None:
    def start(cpus: int | None) -> None:
        raise ConnectionError("nobody there\nand forty lines")

    monkeypatch.setattr(session, "_start", start)
    monkeypatch.setenv("RAY_ADDRESS", address or "local")
    with pytest.raises(UserError, match=rf"{words}.*nobody there\n  remedy: "), RaySession() as ray:
        ray.wait()


def test_a_cluster_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_PATIENCE", 0.01)
    monkeypatch.setattr(session, "_start", lambda cpus: threading.Event().wait(5))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(UserError, match="no answer within"), RaySession() as ray:
        ray.wait()
