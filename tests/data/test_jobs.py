"""Data jobs never succeed with nothing, never take another's folder, and end with a sentence when a part fails."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shoal_core.errors import StoreError, UserError
from shoal_core.passing import TEMP_DIR
from shoal_data.files import write_whole
from shoal_data.jobs import attempt, lock, session, tasks
from shoal_data.jobs.claim import FORMAT, check_out, claim, difference
from shoal_data.jobs.lock import held
from shoal_data.jobs.session import RaySession
from shoal_data.jobs.tasks import run_parts
from shoal_data.sources.causes import common_causes
from shoal_data.sources.parts import Part, Piece

HOLDER = """
import sys, time
from pathlib import Path
from shoal_data.jobs.lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def part(number: int) -> Part:
    return Part(number, "web", (Piece(f"in/{number}.jsonl", "jsonl", 0, 10, 0, 10),))


def parts(count: int) -> list[Part]:
    return [part(number) for number in range(count)]


# Where a job may write


@pytest.mark.parametrize("address", ["s3://bucket/corpus", "s3:/bucket/corpus", "gs://bucket/x", "file:///tmp/corpus"])
def test_out_is_a_folder_and_no_address(address: str) -> None:
    with pytest.raises(UserError, match=r"only a folder can be written to(?s:.*)aws s3 sync"):
        check_out(address)


def test_out_is_no_file_and_not_below_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "corpus"):
        with pytest.raises(UserError, match=r"file is a file"):
            check_out(out)
    assert check_out(tmp_path / "new" / "corpus") == tmp_path / "new" / "corpus"
    assert not (tmp_path / "new").exists()


def test_out_is_not_in_a_folder_that_ray_deletes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = tmp_path / "session_2026-11-29_17-00-00_1_2" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    node = tmp_path / "cluster" / "head"
    for folder, whose in ((cached, "Ray's cache"), (node.parent, "the temporary folder of cluster local")):
        folder.mkdir(parents=True)
        monkeypatch.chdir(folder)
        monkeypatch.setenv(TEMP_DIR, str(node))
        monkeypatch.delenv("SHOAL_CLUSTER", raising=False)
        with pytest.raises(UserError, match=f"lies in {whose}"):
            check_out("corpus")
        assert check_out(tmp_path / "corpus")


# Whose folder it is


def job(**changes: Any) -> dict[str, Any]:
    """What a job writes down of itself."""
    piece = {"path": "in/a.jsonl", "format": "jsonl", "first": 0, "last": 9, "row": 0, "size": 9, "stamp": "9:1"}
    whole: dict[str, Any] = {
        "format": FORMAT,
        "tokenizer": "abcdef0123456789",
        "options": {"column": "text", "recipe": {"seed": 0, "shuffle": False, "weights": None}},
        "parts": [{"id": 0, "source": "a", "pieces": [piece]}],
    }
    return {**whole, **changes}


def pieces(**stamps: str) -> list[dict[str, Any]]:
    return [{"id": 0, "source": "a", "pieces": [{"path": f"in/{name}", "stamp": stamps[name]} for name in stamps]}]


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (job(), ""),
        (job(parts=pieces(a="1"), options=job()["options"]), "in/a.jsonl: is no longer among the inputs"),
        (job(tokenizer="0123456789abcdef"), "SHA-256 abcdef012345..., this one has 0123456789ab"),
        (
            job(options={"column": "body", "recipe": {"seed": 0, "shuffle": True, "weights": None}}),
            "--column was text, is",
        ),
        (job(options={"column": "text", "recipe": {"seed": 7, "shuffle": False}}), "--seed was 0, is 7"),
        (job(options={"column": "text", "recipe": {"seed": 0, "weights": {"a": 1}}}), "--mixture was left out, is"),
    ],
)
def test_what_sets_two_jobs_apart_is_named(now: dict[str, Any], words: str) -> None:
    assert words in difference(job(), now)
    assert bool(words) == bool(difference(job(), now))


def test_changed_files_are_named_and_the_rest_counted() -> None:
    old = job(parts=pieces(a="1", b="1", c="1", d="1", e="1"))
    new = job(parts=pieces(a="1", b="2", c="2", d="2", e="2"))
    assert difference(old, new) == "in/b, in/c, in/d and 1 more: changed since it was begun"
    assert "other parts" in difference(job(), job(parts=[{**job()["parts"][0], "source": "b"}]))


def test_a_job_of_an_older_version_is_not_gone_on_with() -> None:
    old = job(parts=[{"id": 0, "source": "a", "pieces": [{"path": "in/a.jsonl", "size": 9}]}])
    del old["format"]
    assert "an older version of Shoal" in difference(old, job())


def test_a_job_that_made_nothing_gives_way_and_no_other(tmp_path: Path) -> None:
    with held(tmp_path):
        claim(tmp_path, job(), ["shards/*"])
        claim(tmp_path, job(), ["shards/*"])
        (tmp_path / "job" / "000000.json").write_text("{}")
        claim(tmp_path, job(tokenizer="other"), ["shards/*"])
        assert {path.name for path in (tmp_path / "job").iterdir()} == {"job.json", lock.LOCK}
        write_whole(tmp_path / "shards" / "0.arrow", b"work")
        with pytest.raises(UserError, match="another job: its tokenizer had"):
            claim(tmp_path, job(), ["shards/*"])
    for damage in ("{", "[" * 100_000, "null"):
        (tmp_path / "job" / "job.json").write_text(damage)
        with held(tmp_path), pytest.raises(UserError, match="damaged"):
            claim(tmp_path, job(), ["shards/*"])
    (tmp_path / "job" / "job.json").unlink()
    with held(tmp_path), pytest.raises(UserError, match="other things in it"):
        claim(tmp_path, job(), ["shards/*"])


# One job at a time


def test_a_second_job_is_told_who_is_at_work_until_that_is_killed(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=rf"process {holder.pid} on \S+, since 20"), held(tmp_path):
            pass
        assert (tmp_path / "job" / lock.LOCK).exists()
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    assert (tmp_path / "job" / lock.LOCK).exists()  # a killed holder leaves it, and it keeps nobody out
    with held(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("locks", [True, False])
def test_a_holder_on_another_machine_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], locks: bool
) -> None:
    """Whether the file system's locks hold on one machine only, or there are none."""
    monkeypatch.setattr(lock, "_BEAT", 0.02)
    monkeypatch.setattr(lock, "_WATCH", 0.5)
    if not locks:
        monkeypatch.setattr(lock, "_flock", lambda handle: None)
    path = tmp_path / "job" / lock.LOCK
    word = {"host": "elsewhere", "pid": "7", "since": "2026-11-29 12:00:00", "beats": "0"}
    write_whole(path, json.dumps(word).encode())
    over = threading.Event()

    def live() -> None:
        beats = 0
        while not over.wait(0.01):
            beats += 1
            path.write_text(json.dumps({**word, "beats": str(beats)}))

    living = threading.Thread(target=live)
    living.start()
    with pytest.raises(UserError, match="process 7 on elsewhere, since 2026-11-29 12:00:00"), held(tmp_path):
        pass
    over.set()
    living.join()
    with held(tmp_path):  # it gives no sign of life any more
        assert json.loads(path.read_bytes())["pid"] == str(os.getpid())
    assert "watching" in capsys.readouterr().err


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
