"""What says whether a run may have lost steps, on journals of a few lines."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.lived import undue

BOTH = {"kind": "generation", "step": 0, "cells": {"0": ["a", "b"], "1": ["c", "d"]}}
RESHAPE = {"kind": "decision", "rung": "reshape"}
ALONE = {"kind": "generation", "step": 4, "cells": {"0": ["a"], "1": ["b"], "2": ["c"]}}


def dies(worker: str, step: int) -> dict[str, Any]:
    return {"kind": "death", "actor": worker, "step": step}


def back(lost: int, to: int = 0) -> dict[str, Any]:
    return {"kind": "rewound", "to": to, "lost": lost}


@pytest.mark.parametrize(
    ("journal", "lived"),
    [
        pytest.param([BOTH, dies("a", 3), back(3)], True, id="the other cell is whole"),
        pytest.param([BOTH, dies("a", 3), dies("d", 3), back(3)], True, id="both ranks live, in different cells"),
        pytest.param([BOTH, dies("a", 3), dies("c", 3), back(3)], False, id="nobody has the first rank"),
        pytest.param([BOTH, dies("a", 0), back(0)], False, id="nothing was lost"),
        pytest.param([BOTH, dies("a", 0), back(2)], True, id="committed meanwhile"),
        pytest.param([back(3)], False, id="nobody is known"),
        pytest.param(
            [BOTH, dies("d", 3), {**BOTH, "step": 3, "cells": {"0": ["a", "b"]}}, dies("a", 3), back(3)],
            True,
            id="who is in no cell any more has it until the next commit",
        ),
        pytest.param(
            [BOTH, dies("d", 3), {**BOTH, "step": 3, "cells": {"0": ["a", "b"]}}, dies("a", 4), back(4)],
            False,
            id="and not after it",
        ),
        pytest.param([BOTH, RESHAPE, dies("d", 4), back(4)], True, id="the former shape is whole on the way"),
        pytest.param([BOTH, RESHAPE, ALONE, dies("a", 4), back(4)], True, id="and the new one is"),
        pytest.param([BOTH, RESHAPE, ALONE, *map(dies, "abc", [5] * 3), back(5)], False, id="then only that counts"),
        pytest.param([BOTH, RESHAPE, ALONE, dies("a", 5), dies("b", 5), back(5)], True, id="one of three cells"),
        pytest.param([BOTH, dies("a", 3), dies("c", 3), back(3), back(0)], False, id="nothing is known after a loss"),
    ],
)
def test_what_lived_may_not_be_lost(journal: list[dict[str, Any]], lived: bool) -> None:
    assert bool(undue(journal)) == lived
