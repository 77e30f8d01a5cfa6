"""A tokenizing job that is killed and run again ends with the bytes of an undisturbed run.

Cut off after every single write, in this process; and killed in earnest, with real processes on a real Ray.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shoal_core.files import replace_file
from shoal_data import files
from shoal_data.tokenizer.encoder import load_encoder
from shoal_data.writing import tokenize as tokenizing
from shoal_data.writing.options import Recipe, TokenizeOptions

JOB = """
import sys
from shoal_data.jobs.session import RaySession
from shoal_data.writing.options import Recipe, TokenizeOptions
from shoal_data.writing.tokenize import tokenize
recipe = Recipe(seed=1, shuffle=True, fim_rate=0.1)
with RaySession() as session:
    session.wait()
    tokenize([sys.argv[1] + "/*.parquet"], sys.argv[2], sys.argv[3], TokenizeOptions(part_bytes=1 << 20, recipe=recipe))
"""


def start(raw: Path, tokenizer: Path, out: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-c", JOB, str(raw), str(tokenizer), str(out)]
    return subprocess.Popen(command, env=environment, start_new_session=True)


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def workers(job: subprocess.Popen[bytes]) -> list[int]:
    """The processes of this job's own private cluster that are at work on a part."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            ours = entry.name.isdigit() and os.getsid(int(entry.name)) == job.pid
            if ours and b"MapBatches" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


class Killed(BaseException):
    """Stands for a SIGKILL: nothing that expects errors of a job catches it."""


class Disk:
    """Writes files until it is cut off.

    Attributes:
        made: the files, in order.
        last: the number of the write after which the job is killed; 0: never.
    """

    def __init__(self) -> None:
        self.made: list[Path] = []
        self.last = 0

    def write(self, path: Path, content: bytes | memoryview) -> None:
        replace_file(path, content, durable=False)
        self.made.append(path)
        if len(self.made) == self.last:
            raise Killed


def test_killed_after_any_write_and_run_again_it_ends_the_same(
    raw: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, disk = load_encoder(tokenizer), Disk()
    monkeypatch.setattr(tokenizing, "load_encoder", lambda path: encoder)  # to load it takes longer than the job
    monkeypatch.setattr(files, "replace_file", disk.write)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # of two threads, one would go on
    options = TokenizeOptions(part_bytes=30_000, recipe=Recipe(seed=1, shuffle=True, fim_rate=0.1, deduplicate=True))

    def job(name: str, last: int = 0) -> list[str]:
        """The files it wrote."""
        disk.made, disk.last = [], last
        try:
            tokenizing.tokenize([f"{raw}/*.parquet"], tokenizer, tmp_path / name, options)
        finally:
            made = [str(path.relative_to(tmp_path / name)) for path in disk.made]
        return made

    calm = job("calm")
    expected = digests(tmp_path / "calm")
    assert calm[-1] == "manifest.json"
    records = {name: at for at, name in enumerate(calm, start=1) if re.fullmatch(r"job/\d+\.json", name)}
    assert len(records) >= 3
    for last in range(1, len(calm) + 1):
        with pytest.raises(Killed):
            job(str(last), last)
        again = job(str(last))
        assert digests(tmp_path / str(last)) == expected
        finished = {name for name, at in records.items() if at <= last}
        assert not finished & {*again}, "a part that has a record is not done again"


@pytest.mark.cluster
@pytest.mark.long
def test_killed_and_run_again_it_ends_the_same(texts: list[str], tokenizer: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for number in range(6):
        rows = [f"{number} {copy} {text}" for copy in range(10) for text in texts]
        pq.write_table(pa.table({"text": rows}), raw / f"file-{number}.parquet")
    assert start(raw, tokenizer, tmp_path / "calm").wait(1500) == 0
    expected = digests(tmp_path / "calm")

    job = start(raw, tokenizer, tmp_path / "killed")
    records = tmp_path / "killed" / "job"
    killed_worker = False
    deadline = time.monotonic() + 1500
    while time.monotonic() < deadline and job.poll() is None:
        if not killed_worker:
            for worker in workers(job):
                os.kill(worker, signal.SIGKILL)
                killed_worker = True
        if len(list(records.glob("0*.json"))) >= 2:
            break
        time.sleep(0.02)
    os.killpg(job.pid, signal.SIGKILL)  # the driver and every Ray process of its session
    job.wait(300)
    assert killed_worker
    done = {path: path.stat().st_mtime_ns for path in records.glob("0*.json")}
    assert len(done) >= 2

    assert start(raw, tokenizer, tmp_path / "killed").wait(1500) == 0
    assert digests(tmp_path / "killed") == expected
    assert {path: path.stat().st_mtime_ns for path in done} == done
