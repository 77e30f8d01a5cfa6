"""Whose folder `--out` is: no job writes where it may not, or where another one is at work or has been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from shoal_core.errors import UserError
from shoal_core.passing import TEMP_DIR
from shoal_data.files import write_whole
from shoal_data.jobs import lease, lock
from shoal_data.jobs.claim import FORMAT, check_out, claim, difference
from shoal_data.jobs.lock import held
from shoal_data.sources import sample
from shoal_data.sources.gather import check_apart
from shoal_data.sources.sample import write_sample

HOLDER = """
import sys, time
from pathlib import Path
from shoal_data.jobs.lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_sample_written_again_leaves_the_inputs_of_a_job_as_they_were(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A second `shoal demo` into the same storage goes on with the corpus of the first."""
    monkeypatch.setattr(sample, "_LIMIT", 100_000)
    write_sample(tmp_path)
    before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    (tmp_path / "heldout.parquet").write_bytes(b"cut short")
    write_sample(tmp_path)
    after = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    assert [name for name in sorted(before) if before[name] != after[name]] == ["heldout.parquet"]
    assert after.keys() == before.keys()


def test_who_holds_a_lock_acts_on_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    lease.watched("corpus", {"pid": "7\x1b[2J", "host": "a" * 500})
    said = capsys.readouterr().err
    assert "process 7\\x1b[2J on aaa" in said
    assert len(said) < 300
    assert "process 7 on b, since" in str(lease.refusal("corpus", {"pid": "7", "host": "b"}))


# Where a job may write


@pytest.mark.parametrize("address", ["s3:/bucket/corpus", "http://bucket/x", "file:///tmp/corpus", "s3:///corpus"])
def test_out_that_names_no_store_is_refused(address: str) -> None:
    with pytest.raises(UserError, match=r"names no store|store is not known|names no bucket"):
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


@pytest.mark.parametrize(
    ("pattern", "out"),
    [
        ("in/**", "in/out"),
        ("in/**/*.jsonl", "in/out"),
        ("web=in/**", "./in/out"),
        ("in/out/*", "in/out"),
        ("s3://b/in/**", "s3://b/in/out?region=x"),
    ],
)
def test_out_is_not_among_the_inputs(pattern: str, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"what is written there matches --input (?s:.*)lies elsewhere") as error:
        check_apart(["other/*.txt", pattern], out)
    assert repr(pattern) in error.value.problem
    for apart in ("out", "inner/out", "s3://b/out", "in.out"):
        check_apart([pattern, "in/*"], apart)
    check_apart(["in/*.jsonl", "in/**/*.parquet"], "in/out")


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
    monkeypatch.setattr(lock, "BEAT", 0.02)
    monkeypatch.setattr(lock, "WATCH", 0.5)
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
