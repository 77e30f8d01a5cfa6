"""`shoal top`: a run on one screen, live."""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli.status import Storage, told

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from shoal.top.view import Eye, View

__all__ = ["top"]

PERIOD, TICK = 1.0, 0.1
"""Seconds between two looks at the record, and at the keyboard and the size of the terminal."""
KEYS = "q ends this; the run goes on"


def top(
    run: Annotated[str | None, typer.Argument(help="Run id or directory; the last active run if left out.")] = None,
    storage: Storage = None,
    once: Annotated[bool, typer.Option("--once", help="Print one screen and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and end.")] = False,
) -> None:
    """Watch a run on one screen: its cells x stages x shards and their nodes, its speed, its loss, its last events, and
    the time that is left.

    `+` is a worker that trains, `~` one that heals, `?` one that is silent, `x` a seat that is empty, `o` a spare. `q`
    or Ctrl-C ends it, and so does the end of the run; it only reads the run's record. Where the output is no terminal
    it prints one screen.
    """
    from rich.console import Console

    from shoal.record.finding import find_run
    from shoal.record.place import followed
    from shoal.top.view import Eye

    path = find_run(run, storage)
    eye, console = Eye(path), Console()
    if as_json:
        print(json.dumps(facts(eye.look())))
        return
    if once or not console.is_terminal:
        console.print(screen(eye.look(), console))
        return
    with followed(path, told):
        live(eye, console)


def facts(view: View) -> dict[str, Any]:
    """A view as JSON has it."""
    seats = [asdict(seat) for seat in view.seats]
    events = [{"time": when, "sentence": text} for when, text in view.events]
    return {**asdict(view), "seats": seats, "events": events, "counts": view.counts}


def screen(view: View, console: Console, keys: str = "", height: int | None = None) -> RenderableType:
    """A view as one screen of a terminal."""
    from rich.console import Group

    from shoal.top.frame import frame

    size = console.size
    lines = frame(view, size.width, height or size.height, plain=console.options.ascii_only, keys=keys)
    return Group(*lines)


def live(eye: Eye, console: Console) -> None:
    """Show the run until it has ended or somebody says so; its last screen stays."""
    from rich.live import Live

    view, looked, size = eye.look(), time.monotonic(), console.size
    if not view.over:
        shown = Live(screen(view, console, KEYS), console=console, screen=True, auto_refresh=False)
        with keyboard() as pressed, shown as on:
            on.refresh()
            while not view.over and not pressed():
                if time.monotonic() - looked < PERIOD and console.size == size:
                    continue
                view, looked, size = eye.look(), time.monotonic(), console.size
                on.update(screen(view, console, KEYS), refresh=True)
    console.print(screen(view, console, height=max(1, console.size.height - 1)))


@contextlib.contextmanager
def keyboard() -> Iterator[Callable[[], bool]]:
    """A function that waits a moment and says whether `q` or Ctrl-C was pressed."""
    import termios
    import tty

    def nothing() -> bool:
        time.sleep(TICK)
        return False

    try:
        number = sys.stdin.fileno()
        before = termios.tcgetattr(number)
    except (OSError, ValueError, termios.error):  # no keyboard
        with contextlib.suppress(KeyboardInterrupt):
            yield nothing
        return

    def pressed() -> bool:
        ready, _, _ = select.select([number], [], [], TICK)
        if not ready:
            return False
        said = os.read(number, 64)
        return not said or any(key in said for key in (b"q", b"Q", b"\x03"))

    tty.setcbreak(number)
    try:
        with contextlib.suppress(KeyboardInterrupt):  # a way to end it too
            yield pressed
    finally:
        termios.tcsetattr(number, termios.TCSADRAIN, before)
