"""What saves of an earlier session left half-written, when a session begins."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

from shoal.control.orders import sweep
from shoal_core.ckpt import alone, among
from shoal_core.ckpt.folder import Folder, name_of
from shoal_core.errors import StoreError
from shoal_core.store import open_store


def run(rundir: Path) -> Any:
    return SimpleNamespace(rundir=rundir, scribe=mock.Mock())


def test_it_is_removed_and_told_in_one_line(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    alone.write(Folder.at(root / name_of(10)), {"w": torch.ones(3)}, {"steps": 10})
    for steps in (10, 20, 30):
        (root / name_of(steps)).mkdir(exist_ok=True)
        (root / name_of(steps) / "g0-ab-00000.safetensors").write_bytes(b"half")
    one = run(tmp_path)
    asyncio.run(sweep(one))
    one.scribe.event.assert_called_once_with("checkpoints_swept", folders=[name_of(10), name_of(20), name_of(30)])
    assert [whole.steps for whole in among.whole(open_store(root))] == [10]
    again = run(tmp_path)
    asyncio.run(sweep(again))
    again.scribe.event.assert_not_called()


def test_a_store_that_keeps_it_keeps_no_run_from_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(among, "sweep", mock.Mock(side_effect=StoreError("read-only", "mount it again")))
    one = run(tmp_path)
    asyncio.run(sweep(one))
    one.scribe.event.assert_not_called()
