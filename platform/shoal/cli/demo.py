"""`shoal demo`: the whole of Shoal in a few minutes, on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from shoal.cli.figures import AsJson, alone, give
from shoal.printable import printable

__all__ = ["demo"]


def demo(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings of its job.", metavar="[KEY.SUB=VALUE]...")
    ] = None,
    storage: Annotated[
        str, typer.Option(help="Where the run, its corpus and MLflow lie: a folder, or s3://BUCKET/PREFIX.")
    ] = "runs",
    kill: Annotated[bool, typer.Option(help="Kill a node at a third of the run, and another at two thirds.")] = True,
    keep: Annotated[bool, typer.Option(help="Leave the cluster up at the end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start five Ray nodes here, build a corpus, train on it, kill two nodes on the way, and say what that cost.

    Takes under five minutes on two cores. Example: shoal demo steps=60 --keep
    """
    import time

    from rich.console import Console

    from shoal.demo.run import demo as run
    from shoal.demo.summary import figures, show

    console = Console(highlight=False, soft_wrap=True)
    start = time.monotonic()

    def say(line: str) -> None:
        console.print(f"[dim]{time.monotonic() - start:6.1f} s[/dim]  ", end="")
        console.print(printable(line), markup=False)

    with alone(as_json):
        outcome = run(storage, overrides or [], kill=kill, keep=keep, say=say)
        show(outcome, console, keep)
        console.print(f"\nThe demo took {time.monotonic() - start:.0f} s.")
    if as_json:
        give(figures(outcome))
