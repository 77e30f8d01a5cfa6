"""A run on one screen: it fits, it tells what there is without colour, and it ends in order."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.cells import cell_len
from typer.testing import CliRunner

from shoal.cli.top import top
from shoal.record import layout, read
from shoal.record.jsonl import last_lines
from shoal.record.rundir import RunDir
from shoal.top.frame import frame, sparkline
from shoal.top.grid import grid, troubles
from shoal.top.view import Eye, Seat, Stand, View, seconds_left
from shoal_core.errors import UserError
from tests.support.mirrored import a_step
from tests.support.published import empty_storage, publish

__all__ = ["empty_storage"]

SIZES = [(80, 24), (200, 50)]
app = typer.Typer()
app.command()(top)


def seats(cells: int, stages: int, shards: int, **other: list[tuple[int, int, int]]) -> list[Seat]:
    """Of a run whose workers stand eight to a node, all alive but `other` ones."""
    stands = {at: Stand(name) for name, places in other.items() for at in places}
    places = list(itertools.product(range(cells), range(stages), range(shards)))
    return [Seat(*at, f"node{rank // 8}", stands.get(at, Stand.ALIVE)) for rank, at in enumerate(places)]


def a_view(crew: list[Seat], **more: Any) -> View:
    fields: dict[str, Any] = {
        "run": "amber-cod", "status": "running", "step": 1234, "steps": 5000, "generation": 3, "loss": 3.25,
        "losses": [4 - 0.001 * step for step in range(750)], "tokens_per_second": 8123.4,
        "gpu": {"mfu": 0.412, "tokens_per_second_per_gpu": 2030.0}, "step_seconds": 0.21, "left": 790.0,
        "behind": 1.2, "behind_most": 2.3, "seats": crew, "spares": ["node9", "node9"],
        "events": [(float(n), f"Worker {n} died. {'x' * 300}") for n in range(99)],
    }  # fmt: skip
    return View(**fields | more)


def lines_of(view: View, width: int, height: int, **how: Any) -> list[str]:
    found = [line.plain for line in frame(view, width, height, **how)]
    assert len(found) <= height
    assert max(map(cell_len, found)) <= width
    return found


# ---- the screen


@pytest.mark.parametrize(("width", "height"), [*SIZES, (40, 10), (20, 4), (300, 100)])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 2), (12, 4, 8), (64, 2, 4), (2048, 1, 8), (3, 16, 128)])
def test_it_fits_whatever_the_run(width: int, height: int, shape: tuple[int, int, int]) -> None:
    view = a_view(seats(*shape, gone=[(0, 0, 0)]))
    for plain in (False, True):
        found = lines_of(view, width, height, plain=plain, keys="q ends this")
        assert found[0].startswith("amber-cod  running"[: width - 1])
        assert found[-1] == "q ends this"
        assert "".join(found).isascii() or not plain


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_all_that_is_known_is_on_it(width: int, height: int) -> None:
    text = "\n".join(lines_of(a_view(seats(2, 2, 2, gone=[(1, 1, 0)], healing=[(1, 1, 1)])), width, height))
    for words in ("step 1,234 of 5,000 (24.7%)", "generation 3", "13 min 10 s left at 0.21 s a step", "loss 3.2500",
                  "8,123 tokens/s", "MFU 41.2%", "█▇", "to 4.0000 in 750 steps",
                  "+ 6 alive, ~ 1 healing, x 1 gone, o 2 spare", "cell 1  + node0  + node0 | x node0  ~ node0",
                  "x gone on node0 (1)", "~ healing on node0 (1)", "Worker 98 died."):  # fmt: skip
        assert words in text, words
    assert "store 1.2 s behind" in "\n".join(lines_of(a_view([]), 200, 50))


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_2048_cells_of_8_are_summed_up_and_one_bad_worker_shows(width: int, height: int) -> None:
    crew = seats(2048, 1, 8, gone=[(900, 0, 3)], silent=[(1500, 0, 0)])
    text = lines_of(a_view(crew), width, height)
    assert "+ 16,382 alive, ? 1 silent, x 1 gone" in "\n".join(text)
    assert "x gone on node900 (1)" in text
    assert "? silent on node1500 (1)" in text
    found = grid(crew, width, height - 14)
    marks = [re.sub(r"^cell +\d+  | ", "", line) for line in found.lines]
    each = 1 if found.unit == "the worst of a cell" else int(found.unit.split()[-2])
    joined = "".join(marks)
    assert len(joined) == -(-2048 // each)
    assert [place for place, mark in enumerate(joined) if mark != "+"] == [900 // each, 1500 // each]
    assert [joined[900 // each], joined[1500 // each]] == ["x", "?"]
    assert all(int(line.split()[1]) == sum(map(len, marks[:row])) * each for row, line in enumerate(found.lines))


def test_the_map_is_as_detailed_as_there_is_room_for() -> None:
    crew = seats(4, 2, 2, gone=[(2, 1, 1)])
    assert grid(crew, 80, 4).lines[2] == "cell 2  + node1  + node1 | + node1  x node1"
    assert grid(crew, 20, 4).lines == ["cell 0  ++ ++", "cell 1  ++ ++", "cell 2  ++ +x", "cell 3  ++ ++"]
    assert grid(crew, 40, 2).lines == ["cell 0  ++ ++   cell 2  ++ +x", "cell 1  ++ ++   cell 3  ++ ++"]
    assert grid(crew, 20, 1).lines == ["cell 0  ++x+"]
    assert grid(crew, 10, 1).lines == ["cell 0  +x"]
    assert grid([], 80, 4).lines == []
    assert troubles(seats(9, 1, 8, gone=[(cell, 0, 0) for cell in range(9)]))[0].endswith("and 5 more nodes"[4:])


def test_a_line_of_blocks_falls_with_the_loss() -> None:
    assert sparkline([8, 7, 6, 5, 4, 3, 2, 1], 8) == "█▇▆▅▄▃▂▁"
    assert sparkline([1.0] * 50, 5) == "▁▁▁▁▁"
    assert sparkline([3.0, 1.0], 40) == "█▁"
    assert sparkline([5, 5, 1, 1], 2, plain=True) == "#_"


def test_time_left_counts_what_recoveries_took_and_no_clock_that_is_set_back() -> None:
    steps = [a_step(step, seconds=0.1) for step in range(9)] + [a_step(9, seconds=1.1), a_step(10, seconds=-5.0)]
    each, left = seconds_left(steps[:10], 30)
    assert (each, left) == (pytest.approx(0.2), pytest.approx(4.0))
    assert seconds_left(steps, 11)[1] == 0.0
    assert seconds_left([], 10) == (None, None)
    assert seconds_left(steps, None)[1] is None


# ---- the record


CONFIG = {"cells": 2, "workers_per_cell": 4, "workload": {"path": "a:B"}}


def worker(cell: int | None, stage: int, shard: int, node: str, **more: Any) -> dict[str, Any]:
    coords = None if cell is None else {"stage": stage, "shard": shard}
    name = f"job/spare0@{node}" if cell is None else f"job/cell{cell}/stage{stage}/shard{shard}@{node}"
    return {"actor": name, "pid": 1, "node": node, "cell": cell, "coords": coords, "step": 5, "phase": "inside",
            "heartbeat_age": 0.1, **more}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Of 2 cells x 2 stages x 2 shards: one is dead, one heals, one says nothing, and a spare is there."""
    made = RunDir.create(tmp_path, "job", CONFIG, resume=False)
    made.append_event("run_started", run_id="job", steps=20, cells=2, workers_per_cell=4)
    for step in range(6):
        made.append_step(a_step(step, mfu=0.4))
    gone = {"actor": "job/cell1/stage1/shard0@n[3]\x1b", "node": "n[3]\x1b", "pid": 1, "how": "closed", "step": 5}
    made.append_event("death", cell=1, coords={"stage": 1, "shard": 0}, **gone)
    places = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 0, 1), (1, 1, 1)]
    crew = [worker(*at, f"n{at[0]}") for at in places]
    crew[5]["phase"], crew[6]["heartbeat_age"] = "joining", 9.0
    made.write_status({"run_id": "job", "status": "recovering", "step": 6, "steps": 20, "behind": 1.5,
                       "behind_most": 4.0, "workers": [*crew, worker(None, 0, 0, "n9", phase="spare")]})  # fmt: skip
    return made


def test_a_live_run_is_seen_as_its_record_has_it(run: RunDir) -> None:
    view = Eye(run.path).look()
    assert view.counts == {"alive": 5, "healing": 1, "silent": 1, "gone": 1, "spare": 1}
    assert [(seat.cell, seat.stage, seat.shard, seat.node) for seat in view.seats if seat.stand is Stand.GONE] == [
        (1, 1, 0, "n[3]\\x1b")
    ]
    assert (view.step, view.steps, view.loss, view.gpu, view.behind) == (6, 20, 0.5, {"mfu": 0.4}, 1.5)
    assert view.losses == pytest.approx([3.0 / n for n in range(1, 7)])
    assert view.tokens_per_second == pytest.approx(640.0)
    assert view.left == pytest.approx(1.4)
    text = "\n".join(lines_of(view, 80, 24))
    assert "cell 1  + n1        ~ n1       | x n[3]\\x1b  ? n1" in text
    assert "died on n[3]\\x1b during step 5 (closed)" in " ".join(text.split())
    (lost,) = [seat for seat in Eye(run.path).look(now=2e9).seats if seat.stand is Stand.SILENT]
    assert lost.stage == 1  # a controller that says nothing makes no worker silent
    assert "has written nothing for" in "\n".join(lines_of(Eye(run.path).look(now=2e9), 80, 24))


def test_an_ended_run_shows_its_end(run: RunDir) -> None:
    crews = {str(cell): [f"job/spare{rank}@n{cell}" for rank in range(4)] for cell in range(2)}
    saving = {"generation": 1, "time": 2.0, "assignment": {"0": crews["0"]}}  # one more, in which nobody trained
    run.replace_plan([{"generation": 0, "time": 1.0, "assignment": crews}, saving])
    run.append_event("run_ended", status="done", reason="every step is committed")
    run.write_status({"run_id": "job", "status": "done", "step": 20, "steps": 20})
    view = Eye(run.path).look()
    text = "\n".join(lines_of(view, 80, 24))
    for words in (
        "job  done  step 20 of 20 (100.0%)",
        "over",
        ". 8 workers",
        "cell 1  . n1  . n1",
        "The run ended (done)",
    ):
        assert words in text, words
    assert view.left is None


def test_other_shapes_and_runs_that_have_just_begun(tmp_path: Path) -> None:
    made = RunDir.create(tmp_path, "young", CONFIG, resume=False)
    assert "young  starting  step 0" in "\n".join(lines_of(Eye(made.path).look(), 80, 24))
    made.append_event(
        "generation", generation=4, step=3, live=1, cells={}, shape={"cells": 1, "pp": 2, "fsdp": 1, "ep": 3}
    )
    made.write_status(
        {"run_id": "young", "status": "running", "step": 3, "steps": 9, "workers": [worker(0, 0, 0, "n")]}
    )
    view = Eye(made.path).look()
    assert [(seat.stage, seat.shard) for seat in view.seats] == list(itertools.product(range(2), range(3)))
    assert view.counts == {"alive": 1, "gone": 5}


def test_a_damaged_record_is_one_sentence(run: RunDir) -> None:
    with open(run.path / layout.STEPS, "ab") as file:
        file.write(b"{}\n")
    with pytest.raises(UserError, match=r"steps\.jsonl: the line at byte \d+ has no step number"):
        Eye(run.path).look()


def test_only_the_end_of_a_long_record_is_read(tmp_path: Path) -> None:
    """What lies before would be refused if anybody looked at it; and what did not change is not read again."""
    made = RunDir.create(tmp_path, "job", CONFIG, resume=False)
    made.close()
    with open(made.path / layout.STEPS, "wb") as file:
        file.write(b"garbage\n" * (1 << 18))
        for step in range(9000):
            file.write(json.dumps({"time": 1.0, **a_step(step)}).encode() + b"\n")
    eye = Eye(made.path)
    first = eye._end_of(layout.STEPS, lambda: read.last_steps(made.path, 1 << 20))
    assert first[-1]["step"] == 8999
    assert 1000 < len(first) < 9000
    assert eye._end_of(layout.STEPS, lambda: pytest.fail("read again")) is first


@pytest.mark.parametrize("size", [1, 7, 12, 13, 14, 1000])
def test_last_lines_are_whole_and_at_least_one(tmp_path: Path, size: int) -> None:
    path = tmp_path / "lines"
    assert last_lines(path, size) == []
    path.write_bytes(b'{"a": 1')
    assert last_lines(path, size) == []
    whole = [{"a": 1}, {"a": 2, "b": "x" * 500}, {"c": 3}]
    path.write_text("".join(json.dumps(line) + "\n" for line in whole) + '{"d": ')
    found = last_lines(path, size)
    assert found
    assert found == whole[-len(found) :]
    assert len(found) == (3 if size == 1000 else 1)


# ---- the command


def call(*words: object) -> str:
    result = CliRunner(env={"COLUMNS": "100", "LINES": "30"}).invoke(app, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_one_screen_and_its_figures(run: RunDir) -> None:
    text = call("job", "--storage", run.path.parent, "--once")
    assert "job  recovering  step 6 of 20" in text
    assert text.count("\n") <= 30
    assert call(run.path) == text  # the output is no terminal
    found = json.loads(call(run.path, "--json"))
    assert (found["run"], found["status"], found["step"], found["counts"]["gone"]) == ("job", "recovering", 6, 1)
    assert found["seats"][-1] == {"cell": 1, "stage": 1, "shard": 1, "node": "n1", "stand": "silent"}
    assert found["events"][-1]["sentence"].startswith("Worker cell1/stage1/shard0")


def test_a_run_on_a_store_is_brought_and_shown(empty_storage: str, tmp_path: Path) -> None:
    publish(empty_storage, "far", tmp_path / "controller")
    assert "far  running  step 3 of 9" in call("far", "--storage", empty_storage, "--once")


def as_a_terminal_does() -> None:
    """In a process that is about to begin: the terminal is its own, and interrupts are heard, which tests that run in
    the background are deaf to."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("key", [b"q", b"\x03"])
def test_it_follows_the_terminals_size_and_ends_in_order(run: RunDir, key: bytes) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    before = termios.tcgetattr(theirs)
    code = "import typer; from shoal.cli.top import top; app = typer.Typer(); app.command()(top); app()"
    environment = {**os.environ, "TERM": "xterm-256color"}
    environment.pop("COLUMNS", None)
    environment.pop("LINES", None)
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(run.path)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        start_new_session=True,
        preexec_fn=as_a_terminal_does,
    )
    shown = b""

    def until(words: bytes) -> None:
        nonlocal shown
        deadline = time.monotonic() + 120
        while words not in shown:
            assert time.monotonic() < deadline, shown
            assert select.select([ours], [], [], 120.0)[0], shown
            shown += os.read(ours, 65536)

    until(b"q ends this")
    assert b"\x1b[?1049h" in shown  # a screen of its own
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 140, 0, 0))
    assert ("░" * 41).encode() not in shown
    until(("░" * 41).encode() + b"]")  # the bar has become longer
    os.write(ours, key)
    until(b"\x1b[?1049l")
    with contextlib.suppress(OSError):
        while select.select([ours], [], [], 0.5)[0]:
            shown += os.read(ours, 65536)
    assert process.wait(120) == 0
    assert b"Traceback" not in shown
    assert "job" in shown.partition(b"\x1b[?1049l")[2].decode()  # its last screen stays
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)
