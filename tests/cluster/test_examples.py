"""The examples as their users run them: as scripts, on this machine and on several nodes; and beside Ray Train."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.train import read_result

pytestmark = [pytest.mark.cluster, pytest.mark.long]
ROOT = Path(__file__).parents[2]
SHOAL = str(Path(sys.executable).with_name("shoal"))


@pytest.mark.parametrize("name", ["gpt", "causal_lm", "digits", "ray_train_after"])
def test_an_example_is_a_script(tmp_path: Path, name: str) -> None:
    """It starts Ray itself, and learns."""
    shape = ["qwen"] if name == "causal_lm" else []
    argv = [sys.executable, str(ROOT / f"docs/examples/{name}.py"), *shape, str(tmp_path)]
    told = subprocess.run(argv, env={**os.environ, "RAY_ADDRESS": "local"}, capture_output=True, text=True, timeout=900)
    assert told.returncode == 0, told.stdout + told.stderr
    (run,) = [path.parent for path in tmp_path.glob("*/run.json")]
    lines = read_result(str(run)).metrics_dataframe
    assert lines is not None
    assert list(lines["step"]) == list(range(len(lines)))
    assert len(lines) >= 200
    assert lines["loss"].iloc[-10:].mean() < 0.8 * lines["loss"].iloc[:10].mean()


def test_from_nothing_to_a_job_on_several_nodes_it_is_two_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))  # where Ray Train puts its results, if it is not told

    def shoal(*words: str) -> str:
        told = subprocess.run([SHOAL, "cluster", *words], cwd=ROOT, capture_output=True, text=True, timeout=900)
        assert told.returncode == 0, told.stdout + told.stderr
        return told.stdout

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    try:
        shoal("up", "--nodes", "2", "--slots", "1", "--name", "two", "--dashboard-port", port)
        said = shoal("exec", "--name", "two", "--", sys.executable, "docs/examples/first_model.py")
    finally:
        shoal("down", "--name", "two")
    (run,) = [path.parent for path in tmp_path.glob("ray_results/*/run.json")]
    starts = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines() if '"worker_ready"' in line]
    assert {start["node"] for start in starts} == {"node1", "node2"}, said
    lines = read_result(str(run)).metrics_dataframe
    assert lines is not None
    assert lines["loss"].iloc[-1] < 0.01 * lines["loss"].iloc[0]


def test_a_killed_worker_costs_shoal_no_step_and_ray_train_some(tmp_path: Path) -> None:
    """Both go on. Ray Train's worker is killed before its first checkpoint; how long each takes is printed."""
    file = tmp_path / "found.json"
    argv = [sys.executable, str(ROOT / "benchmarks/side_by_side.py"), "--kills", "1", "--json", str(file)]
    told = subprocess.run(argv, env={**os.environ}, capture_output=True, text=True, timeout=900)
    assert told.returncode == 0, told.stdout + told.stderr
    found = json.loads(file.read_text())
    (ours,), (theirs,) = found["kills"]["shoal"], found["kills"]["ray_train"]
    print(f"Shoal {ours}, Ray Train {theirs}: {found['ratio']} times sooner")
    assert ours["steps_lost"] == 0
    assert theirs["steps_lost"] > 0
    assert (ours["step"] >= 12, theirs["step"] >= 12) == (True, True)
