"""Parts on a real, private Ray: workers that die, parts that fail, and nothing else in a job's output."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from shoal_core.errors import StoreError, UserError
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


def test_on_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    import ray.cloudpickle

    from shoal_data.jobs.session import RaySession

    ray.cloudpickle.register_pickle_by_value(sys.modules[work.__module__])  # workers cannot import a test
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").write_text("relative")  # as the driver names it
    parts = [Part(number, "web", (Piece("in", "text", 0, 0, 0, 1),)) for number in range(6)]

    def run(**how: str) -> set[int]:
        """The parts that were done."""
        for path in [*tmp_path.glob("done-*"), *tmp_path.glob("died")]:
            path.unlink()
        settings = {"folder": str(tmp_path), **{name[1:]: way for name, way in how.items()}}
        try:
            run_parts("work", work, parts, settings, ["documents"], tmp_path)
        finally:
            done = {int(path.name[5:]) for path in tmp_path.glob("done-*")}
            assert not (tmp_path / "stopped").exists()
            results.append(done)
        return done

    results: list[set[int]] = []
    with RaySession(2) as session:
        session.wait()
        assert run() == {0, 1, 2, 3, 4, 5}
        assert run(p2="dies once") == {0, 1, 2, 3, 4, 5}
        with pytest.raises(StoreError, match=r"in: not to be had \(the first of 2 parts that failed\)"):
            run(p1="store", p4="store")
        assert results[-1] == {0, 2, 3, 5}
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            run(p3="broken")
        with pytest.raises(UserError, match=r"in: the worker that does this part died 3 times"):
            run(p0="dies")
        assert results[-1] == {1, 2, 3, 4, 5}
    said = "".join(capfd.readouterr())
    assert "constructor arguments" not in said
    assert "Deprecat" not in said
    assert "lost with a worker: done again" in said
    assert "6 documents" in said
