"""`--json`: the figures of a command alone on standard output, for programs."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

__all__ = ["AsJson", "alone", "give"]

AsJson = Annotated[bool, typer.Option("--json", help="Print the figures as one line of JSON.")]


@contextlib.contextmanager
def alone(as_json: bool) -> Iterator[None]:
    """What is printed within goes to standard error where JSON is asked for, which then stands alone."""
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        yield


def give(figures: Any) -> None:
    """Print `figures` as one line of JSON."""
    print(json.dumps(figures), flush=True)
