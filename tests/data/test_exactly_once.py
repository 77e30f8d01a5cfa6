"""A tokenizing job that is killed and run again ends with the bytes of an undisturbed run. Real processes, real Ray."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

JOB = """
import sys
from shoal_data.jobs.session import ray_session
from shoal_data.writing.options import Recipe, TokenizeOptions
from shoal_data.writing.tokenize import tokenize
recipe = Recipe(seed=1, shuffle=True, fim_rate=0.1)
with ray_session():
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


@pytest.mark.cluster
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
