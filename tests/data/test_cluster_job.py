"""A job under `ray job submit` loses a node, then its driver, is run again, and ends byte for byte the same."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shoal.cluster import connect, local
from shoal.cluster.processes import pids_of
from shoal.cluster.state import load
from shoal_data.writing.options import Recipe, TokenizeOptions
from shoal_data.writing.tokenize import tokenize

pytestmark = [pytest.mark.cluster, pytest.mark.long]
BIN = Path(sys.executable).parent
CLUSTER = "test-data"
PARTS, PART = 12, 1 << 20


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    local.up(CLUSTER, nodes=2, slots=1)
    yield CLUSTER
    local.down(CLUSTER)


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    """Twelve parts: enough work that a kill falls in the middle of it."""
    library = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    texts = [path.read_text(errors="replace") for path in library]
    folder = tmp_path / "raw"
    folder.mkdir()
    for number in range(PARTS):
        pq.write_table(
            pa.table({"text": [f"# copy {number}\n{text}" for text in texts]}), folder / f"code-{number}.parquet"
        )
    return folder


def submit(raw: Path, tokenizer: Path, out: Path) -> subprocess.Popen[bytes]:
    """`ray job submit -- shoal data tokenize ...`"""
    env = {**os.environ, **connect.environment(CLUSTER)}
    words = ["data", "tokenize", "--input", f"{raw}/*.parquet", "--tokenizer", str(tokenizer), "--out", str(out)]
    options = ["--seed", "1", "--shuffle", "--fim-rate", "0.1", "--deduplicate", "--part-bytes", str(PART)]
    return subprocess.Popen([str(BIN / "ray"), "job", "submit", "--", str(BIN / "shoal"), *words, *options], env=env)


def done(out: Path) -> int:
    return len(list((out / "job").glob("0*.json")))


def wait(reached: Callable[[], bool], job: subprocess.Popen[bytes], seconds: float = 900) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert job.poll() is None, "the job ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def at_work(node: str) -> list[int]:
    """Processes of a node that have a part in hand."""
    state = load(CLUSTER)
    return [pid for pid in pids_of(state, state.node(node)) if b"MapBatches" in _command(pid)]


def drivers(out: Path) -> list[int]:
    """Processes of the job's driver, on the head."""
    state = load(CLUSTER)
    found = [pid for pid in pids_of(state, state.node("head")) if str(out).encode() in _command(pid)]
    return [pid for pid in found if b"tokenize" in _command(pid)]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_node_and_the_driver_are_killed(cluster: str, copies: Path, tokenizer: Path, tmp_path: Path) -> None:
    recipe = Recipe(seed=1, shuffle=True, fim_rate=0.1, deduplicate=True)
    tokenize([f"{copies}/*.parquet"], tokenizer, tmp_path / "calm", TokenizeOptions(part_bytes=PART, recipe=recipe))
    expected = digests(tmp_path / "calm")
    assert sum(name.startswith("shards/") for name in expected) >= PARTS

    out = tmp_path / "killed"
    job = submit(copies, tokenizer, out)
    wait(lambda: done(out) >= 1 and bool(at_work("node2")), job)
    local.kill_node(CLUSTER, "node2")
    reached = done(out)
    wait(lambda: done(out) >= reached + 2, job)  # it goes on without the node
    assert done(out) < PARTS
    for pid in drivers(out):
        os.kill(pid, signal.SIGKILL)
    assert job.wait(600) != 0
    assert not (out / "manifest.json").exists()
    records = {path: path.stat().st_mtime_ns for path in (out / "job").glob("0*.json")}
    assert len(records) >= 3

    assert submit(copies, tokenizer, out).wait(1500) == 0
    assert digests(out) == expected
    assert {path: path.stat().st_mtime_ns for path in records} == records
