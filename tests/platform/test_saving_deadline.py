"""What is done before nodes go that nobody can take over from: by bytes, speeds and seconds."""

from __future__ import annotations

import math

import pytest

from shoal.record.sentences import sentence
from shoal.saving.deadline import CAREFUL, CLOSING, SPEED, Notice, Speed, choose, steps_until_last, weights
from shoal.saving.pace import Pace

GB = 10**9
STAYS, UNKNOWN = Notice(going=False, copies=GB), Notice(going=True)


def goes(left: float, speed: float = GB, copies: float = 0.0) -> Notice:
    return Notice(True, left, speed, copies)


def test_a_process_writes_as_fast_as_in_the_slowest_of_its_last_saves() -> None:
    speed = Speed()
    assert speed.bytes == SPEED
    found = []
    for size, seconds in ((100, 1.0), (0, 9.0), (300, 1.0), (200, 1.0), (400, 1.0)):
        speed.took(size, seconds)
        found.append(speed.bytes)
    assert found == [100, 100, 100, 100, 200]


@pytest.mark.parametrize(
    ("notices", "written", "way", "fits"),
    [
        ([goes(28.0, GB / 8), STAYS], [2 * GB, 3 * GB], "save", 2 * GB),
        ([goes(CLOSING + CAREFUL * 2), STAYS], [2 * GB, 0], "save", 2 * GB),
        ([goes(CLOSING + CAREFUL), STAYS], [2 * GB, 0], "checkpoint", GB),
        ([goes(CLOSING + CAREFUL, copies=3 * GB), STAYS], [2 * GB, 0], "copies", GB),
        ([goes(CLOSING + CAREFUL, copies=2 * GB), STAYS], [2 * GB, 0], "checkpoint", GB),
        ([goes(CLOSING + CAREFUL, copies=3 * GB), Notice(False)], [2 * GB, 0], "checkpoint", GB),
        ([goes(0.5, copies=3 * GB), STAYS], [0, 9 * GB], "save", 0),
        ([goes(0.5), STAYS], [1, 9 * GB], "checkpoint", 0),
        ([goes(60.0), goes(CLOSING)], [9 * GB, 2 * GB], "checkpoint", 9 * GB),
        ([UNKNOWN, STAYS], [10**15, 0], "save", 10**15),
    ],
)
def test_what_fits_is_saved_and_else_what_is_left_counts(
    notices: list[Notice], written: list[int], way: str, fits: int
) -> None:
    """The last rank of the first case stays: what it writes needs no plan; copies are of all that a rank has, 3 GB."""
    choice = choose(notices, written, [3 * GB for _ in notices])
    assert (choice.way, choice.fits) == (way, fits)
    assert choice.alone == sum(size for one, size in zip(notices, written, strict=True) if one.going)


def test_those_that_go_share_what_only_they_hold_by_what_fits() -> None:
    fits = weights([goes(CLOSING + CAREFUL), STAYS, goes(CLOSING + CAREFUL, 3 * GB), goes(0.0)])
    assert fits == {0: GB, 2: 3 * GB, 3: 0.0}
    assert weights([UNKNOWN, goes(5.0)]) == {0: 1.0, 1: 1.0}
    assert weights([STAYS]) == {}


@pytest.mark.parametrize(
    ("left", "written", "step", "steps"),
    [
        (120.0, 10.0, 1.0, 103),
        (120.0, 10.0, 50.0, 1),
        (30.0, 10.0, 1.0, 13),
        (27.0, 10.0, 1.0, None),
        (5.0, 9.0, 1.0, None),
    ],
)
def test_the_last_save_is_as_late_as_it_surely_fits(
    left: float, written: float, step: float, steps: int | None
) -> None:
    found = steps_until_last(left, written, step)
    assert found == steps
    if found is not None:
        assert found * step + step + CAREFUL * written + CLOSING <= left


@pytest.mark.parametrize(("every", "first"), [(50, 50), (1000, 59)])
def test_ranks_save_once_more_before_the_first_of_them_goes(every: int, first: int) -> None:
    pace = Pace(every)
    pace.entered(7, 100.0)
    pace.began(7)
    pace.stepped(1.0)
    word = pace.told(60.0)
    assert word == {"step": 1.0, "mean": 100.0, "left": 60.0}
    others = {"step": 0.5, "mean": 100.0, "left": math.inf}
    words = [{**one, "lost": 0.1, "written": 4.0} for one in (word, others)]
    for _ in range(2):
        pace.heard(words)
    assert 7 + (steps_until_last(60.0, 4.0, 1.0) or 0) == 59
    assert [steps for steps in range(8, 110) if pace.due(steps)] == list(range(first, 110)), "until it is begun"
    pace.began(first)
    pace.heard([{**word, "lost": 0.1, "written": 4.0, "left": 8.0} for word in words])
    assert next(steps for steps in range(first, 2000) if pace.due(steps)) == (100 if every == 50 else 1000)


def test_the_choice_is_told_with_its_figures() -> None:
    left = CLOSING + CAREFUL * 5
    said = []
    for notices, checkpoint in (
        ([goes(28.0, GB / 3), STAYS], 40),
        ([goes(left, copies=9 * GB), STAYS], 40),
        ([goes(left), STAYS], 40),
        ([goes(left), STAYS], None),
    ):
        size = int(3.2 * GB) if notices[0].left == 28.0 else 9 * GB
        choice = choose(notices, [size, 0], [size, 0])
        said.append(sentence({"kind": "last_save", "step": 60, "cell": 0, **choice.told(), "checkpoint": checkpoint}))
    lack = "Before nodes go, 4.0 GB of 9.0 GB that only nodes which go hold do not fit into the 8 s that are left"
    assert said == [
        "Before nodes go, of 3.2 GB that only nodes which go hold, 3.2 GB fit into the 28 s that are left: "
        "the state of step 60 is saved (about 9.6 s).",
        f"{lack}: the copies in the memory of nodes that stay count; without them the checkpoint of step 40 counts.",
        f"{lack}, and nobody who stays has copies: the checkpoint of step 40 counts.",
        f"{lack}, and nobody who stays has copies: nothing is saved.",
    ]
