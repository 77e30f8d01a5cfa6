"""A controller that came back looks for the workers."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import cast

import pytest

from shoal.control import takeover
from shoal.control.run import Run
from shoal.protocol.greeting import Phase


def test_a_worker_that_dies_before_it_speaks_is_waited_for_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three that were asked one speaks, one has died, and one is there and speaks when it was looked for again."""
    killed: list[str] = []
    spoken = SimpleNamespace(greeting=SimpleNamespace(phase=next(p for p in Phase if p is not Phase.UNBORN)))
    lines = {"a": spoken}

    def living() -> list[str]:
        lines["c"] = spoken
        return ["a", "c"]

    spawner = SimpleNamespace(adopt=lambda meeting: ["a", "b", "c"], living=living, kill=killed.append)
    patient = SimpleNamespace(meet=3600.0)
    one = SimpleNamespace(spawner=spawner, lifelines=SimpleNamespace(lines=lines), meeting=None, timeouts=patient)
    monkeypatch.setattr(takeover, "LOOK", 0.0)
    found = asyncio.run(asyncio.wait_for(takeover.find_workers(cast(Run, one), time.monotonic()), 60.0))
    assert set(found) == {"a", "c"}
    assert killed == ["b"]
