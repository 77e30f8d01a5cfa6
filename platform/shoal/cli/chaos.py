"""`shoal chaos`: kill, freeze and cut off parts of a run at random, and see what becomes of it."""

from __future__ import annotations

import math
import signal
import sys
from typing import Annotated

import typer

from shoal.chaos.plan import FAULTS
from shoal.cli.figures import AsJson, alone, give
from shoal.cli.status import Storage, told
from shoal.printable import printable

__all__ = ["EPILOG", "chaos"]

EPILOG = "\n\n".join(f"{kind}: {what}." for kind, what in FAULTS.items())


def chaos(
    run: Annotated[str, typer.Argument(help="Id of a run on the cluster.")],
    faults: Annotated[str, typer.Option(help="Kinds of faults, by comma, or `all`; see below.")] = "kill-worker",
    every: Annotated[str, typer.Option(help="Average time between two faults.")] = "20s",
    seed: Annotated[int, typer.Option(help="Of what happens when, and to whom.")] = 0,
    duration: Annotated[
        str | None, typer.Option("--for", help="Stop after this time; by default at the run's end.")
    ] = None,
    lasting: Annotated[str, typer.Option(help="How long a fault lasts that passes by itself.")] = "10s",
    storage: Storage = None,
    cluster: Annotated[
        str, typer.Option("--name", help="The local cluster (`shoal cluster up`) it runs on.")
    ] = "local",
    as_json: AsJson = False,
) -> None:
    """Do random faults to a run: a drill, or a test of your settings.

    Lost nodes are replaced after some seconds. The same seed gives the same faults; whom they hit depends on who is
    there. What lasts still when the drill ends is undone.
    """
    from shoal.chaos.plan import parse_faults, parse_seconds, schedule
    from shoal.chaos.strike import LocalTarget, unleash
    from shoal.record.finding import find_run
    from shoal.record.place import followed

    kinds = parse_faults(faults)
    plan = schedule(kinds, parse_seconds(every), seed)
    until = parse_seconds(duration) if duration else math.inf
    path = find_run(run, storage)
    target = LocalTarget(cluster, path, lasting=parse_seconds(lasting))
    target.check(kinds)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # which undoes what lasts
    with followed(path, told), alone(as_json):
        done = unleash(target, plan, until, lambda line: print(printable(line), flush=True))
    if as_json:
        give({"run": run, "faults": done, "record": str(path)})
        return
    print(f"{done} faults; see `shoal status {run}` and the report in {printable(path)}")
