"""Which shapes a run's cells had when: from its journal, in `shoal status` and in the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from shoal.cli.status import status
from shoal.control.reshaping import Reshaping
from shoal.decisions.actions import Reshaped
from shoal.record.rundir import RunDir
from shoal.record.shapes import shapes
from shoal.report.history import History
from shoal.report.page import page
from shoal.report.timeline import timeline_figure

START = 1_700_000_000.0
app = typer.Typer()
app.command()(status)


def named(cell: int, workers: int) -> list[str]:
    return [f"job/cell{cell}/stage0/shard{rank}@n{cell}{rank}" for rank in range(workers)]


def crews(cells: int, workers: int) -> dict[str, list[str]]:
    return {str(cell): named(cell, workers) for cell in range(cells)}


THREE = {"number": 2, "cells": 2, "pp": 1, "fsdp": 3, "ep": 1, "ep_node": 1}
TWO = {"number": 4, "cells": 3, "pp": 2, "fsdp": 1, "ep": 1, "ep_node": 1}


def lines() -> list[dict[str, Any]]:
    """2 x 4, of which a worker dies; 2 x 3; and cells of two stages."""
    change = Reshaping(Reshaped((1, 4), (2, 3), "more train", (3, 1), 2, (1.5, 0.5, None)), 12.0, 12.2, 11.8, 12.9, 0.3)
    return [
        {"kind": "run_started", "time": START, "run_id": "job", "steps": 9, "cells": 2, "workers_per_cell": 4},
        {"kind": "generation", "time": START + 1, "generation": 0, "cells": crews(2, 4)},
        {"kind": "generation", "time": START + 5, "generation": 1, "cells": crews(1, 4)},
        {"kind": "generation", "time": START + 6, "generation": 2, "cells": crews(2, 3), "shape": THREE},
        {"kind": "reshaped", "time": START + 7, **change.record(13.4)},
        {"kind": "generation", "time": START + 8, "generation": 3, "cells": crews(2, 3), "shape": THREE},
        {"kind": "generation", "time": START + 9, "generation": 4, "cells": crews(3, 2), "shape": TWO},
    ]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir.create(tmp_path, "job", {}, resume=False)
    for line in lines():
        made.append_event(line["kind"], **{name: value for name, value in line.items() if name != "kind"})
    step = {"loss": 1.0, "lm_loss": 1.0, "mtp_loss": None, "grad_norm": 1.0, "lr": 0.1, "tokens": 8, "seconds": 1.0}
    for number in range(2):
        where = {"time": START + 2 + number, "samples": [8 * number, 8 * number + 8], "cells": 2, "generation": 0}
        made.append_step({"step": number, **step, **where})
    return made


def test_a_journal_tells_which_shapes_the_cells_had() -> None:
    found = shapes(lines())
    assert list(map(str, found)) == ["2 x 4", "1 x 4", "2 x 3 (fsdp 3)", "3 x 2 (pp 2)"]
    assert [shape.reshaped for shape in found] == [False, False, True, True]
    assert [shape.time - START for shape in found] == [1, 5, 6, 9]
    again = shapes([*lines(), lines()[0], lines()[1]])
    assert (str(again[-1]), again[-1].reshaped) == ("2 x 4", False)  # another session


def test_status_shows_them(run: RunDir) -> None:
    told = CliRunner(env={"COLUMNS": "160"}).invoke(app, [str(run.path)], catch_exceptions=False).output
    assert "cells x workers, since when" in told
    assert next(line for line in told.splitlines() if " > " in line).count(" > ") == 3
    sentence = "1 x 4 workers became 2 x 3 (more train): noticed 0.20 s, paused 0.20 s, formed 0.70 s"
    assert sentence in " ".join(told.split())


def test_the_report_shows_them(run: RunDir) -> None:
    history = History.read(run.path)
    texts = [text.get_text() for ax in timeline_figure(history).axes for text in ax.texts]
    assert [text for text in texts if " x " in text] == ["2 x 4", "1 x 4", "2 x 3"]  # the last lasted for no time
    told = page(history)
    assert "2 cells of 4 workers (at last 3 of 2)" in told
    assert "cells of another shape from here on" in told
    assert "1 x 4 workers became 2 x 3 (more train): " in told
    assert "seconds: notice 0.20; pause 0.20; form 0.40; fill 0.30; first step 0.50" in told
