"""The sitting on a GPU runs here in its tiny mode, part by part, and keeps what it found whatever ends it."""

from __future__ import annotations

import os
import select
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_session

    return gpu_session


def test_parts_share_the_time_and_what_was_found_is_kept_after_each(session: Any) -> None:
    kept: list[list[str]] = []
    asked: list[tuple[str, float]] = []

    def run(part: str, limit: float) -> dict[str, Any]:
        asked.append((part, limit))
        return {"status": "ok" if part == "versions" else "out of time", "seconds": limit}

    parts = ["versions", "commits", "products", "attention"]
    found = session.sit(parts, 250.0, run, lambda so_far: kept.append(list(so_far)))
    assert asked == [("versions", 60.0), ("commits", 120.0), ("products", 70.0)]
    assert found["attention"] == {"status": "not reached", "seconds": 0.0}
    assert kept == [parts[:count] for count in range(1, 5)]


@pytest.mark.parametrize("part", ["versions", "commits", "products", "attention", "nccl"])
def test_a_part_runs_in_tiny_mode(session: Any, part: str) -> None:
    import gpu_parts

    found = gpu_parts.PARTS[part](gpu_parts.Bench(tiny=True))
    match part:
        case "versions":
            assert found["tiny"] is True
        case "commits":
            assert {len(figures["here"]) for figures in found.values()} == {3}
        case "products":
            assert found["grouped_wgrad"] == 0.0
        case "attention":
            assert found["backward_twice_equal"] is True
        case "nccl":
            assert found["groups"] == 10
            assert found["descriptors_grew"] < 10


def test_every_part_has_its_time(session: Any) -> None:
    import gpu_parts

    assert list(gpu_parts.PARTS) == list(session.LIMITS)
    assert sum(session.LIMITS.values()) <= session.SITTING


@pytest.mark.long
@pytest.mark.parametrize("part", ["runs", "profile"])
def test_the_heavier_parts_run_in_tiny_mode(session: Any, part: str) -> None:
    found = session.in_a_process(part, 600.0, tiny=True)
    assert found["status"] == "ok", found


def test_a_part_that_fails_says_how_it_ended(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "__file__", str(BENCHMARKS / "missing.py"))
    found = session.in_a_process("versions", 60.0, tiny=True)
    assert found["status"] == "failed"
    assert "missing.py" in found["end"]
    assert sys.executable in found["end"]


def test_what_a_part_began_ends_with_it(session: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    held, script = tmp_path / "held", tmp_path / "part.sh"
    os.mkfifo(held)
    script.write_text(f"sleep 1000 > {held} 2>&1 &\n")
    monkeypatch.setattr(session.sys, "executable", "/bin/sh")
    monkeypatch.setattr(session, "__file__", str(script))
    reader = os.open(held, os.O_RDONLY | os.O_NONBLOCK)
    session.in_a_process("runs", 60.0, tiny=True)
    ended, _, _ = select.select([reader], [], [], 30.0)
    assert ended, "it lives, and holds the other end"
    os.close(reader)
