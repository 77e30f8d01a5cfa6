"""Where a cell's state comes from when it is formed, so that nobody draws values that are then written over."""

from __future__ import annotations

import pytest

from shoal.protocol.orders import Form
from shoal.worker.world import state_follows


@pytest.mark.parametrize(
    ("order", "origin", "follows"),
    [
        (Form(0, 1, 0, 2, restore=0), {}, False),
        (Form(0, 1, 0, 2, restore=0), {"start": 0}, True),  # an imported model
        (Form(0, 1, 0, 2, restore=0), {"start": 7}, False),
        (Form(0, 1, 0, 2, restore=7), {}, True),
        (Form(0, 1, 0, 2, keep=True), {}, True),
        (Form(0, 1, 0, 2), {}, True),  # a cell that heals: a peer's
    ],
)
def test_only_the_state_of_no_steps_is_drawn(order: Form, origin: dict[str, int], follows: bool) -> None:
    assert state_follows(order, origin) == follows
