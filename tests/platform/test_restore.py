"""A store that fails while a cell takes its state from a checkpoint."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from shoal import checkpoint
from shoal.protocol.orders import Form
from shoal.worker.world import World, damage_of, not_to_be_had
from shoal_core.ckpt.folder import Folder
from shoal_core.ckpt.together import Loaded
from shoal_core.errors import StoreError
from shoal_core.store import PAUSES, open_store

ORDER = Form(0, 1, 0, 2, restore=7)


def restored(monkeypatch: pytest.MonkeyPatch, failures: int) -> tuple[int, list[float]]:
    """What a world makes of a store that fails so often: steps that were loaded, and the pauses before."""
    pauses, left = list[float](), [StoreError("busy", "wait")] * failures

    def load(*_: Any) -> Loaded:
        if left:
            raise left.pop()
        return Loaded(7, 1)

    monkeypatch.setattr(checkpoint, "load", load)
    job = SimpleNamespace(checkpoint=SimpleNamespace(every=0))
    kit: Any = SimpleNamespace(
        groups=SimpleNamespace(pause=pauses.append), disk=None, job=job, courier=SimpleNamespace(remembered=None)
    )
    return World(ORDER, kit)._loaded(Folder(open_store("/nowhere"), "step-00000007"), {}, None), pauses


@pytest.mark.parametrize("failures", range(len(PAUSES) + 1))
def test_it_is_asked_again(monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
    assert restored(monkeypatch, failures) == (7, list(PAUSES[:failures]))


def test_one_that_fails_still_is_no_error_of_the_training_code_and_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError) as caught:
        restored(monkeypatch, len(PAUSES) + 1)
    assert not_to_be_had(caught.value)
    assert damage_of(ORDER, caught.value) is None
