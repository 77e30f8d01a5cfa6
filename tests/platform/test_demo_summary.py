"""What the demo says a node's death cost: the record's own figures, which its sentences tell too."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from shoal.demo.run import Killed
from shoal.demo.summary import deaths


def recovery(next_commit: float, full: float | None, lost: int = 0) -> dict[str, Any]:
    figures = {"next_commit": next_commit, "full_strength": full, "steps_lost": lost, "phases": {"detect": 0.25}}
    return {"nodes": ["n1"], **figures}


def shown(recoveries: list[dict[str, Any]]) -> list[str]:
    console = Console(file=io.StringIO(), width=120)
    console.print(deaths([Killed("n1", 1.0, 24, 0, ["w"])], recoveries))
    return console.file.getvalue().splitlines()[-2].split()  # type: ignore[attr-defined]


def test_a_death_costs_what_the_record_says() -> None:
    row = [word for word in shown([recovery(1.43, 2.5, 1)]) if word not in "│┃"]
    assert row == ["n1", "24", "0.25", "s", "1.43", "s", "2.50", "s", "1"]


def test_a_cell_that_goes_on_smaller_first_has_lost_its_steps_once() -> None:
    row = [word for word in shown([recovery(1.43, None, 2), recovery(1.43, 9.0, 2)]) if word not in "│┃"]
    assert row == ["n1", "24", "0.25", "s", "1.43", "s", "9.00", "s", "2"]


def test_one_that_the_record_has_no_recovery_of_has_no_figures() -> None:
    assert [word for word in shown([]) if word not in "│┃"] == ["n1", "24", "-", "-", "-", "0"]
