"""`shoal chaos`: kill, freeze and cut off parts of a run at random, and see what becomes of it."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from shoal.cli.status import Storage
from shoal.printable import printable

__all__ = ["chaos"]


def chaos(
    run: Annotated[str, typer.Argument(help="Id of a run on the cluster.")],
    faults: Annotated[str, typer.Option(help="Kinds of faults, by comma, or `all`; see below.")] = "kill-worker",
    every: Annotated[str, typer.Option(help="Average time between two faults.")] = "20s",
    seed: Annotated[int, typer.Option(help="Of what happens when, and to whom.")] = 0,
    duration: Annotated[
        str | None, typer.Option("--for", help="Stop after this time [default: the run's end].")
    ] = None,
    storage: Storage = None,
    cluster: Annotated[
        str, typer.Option("--name", help="The local cluster (`shoal cluster up`) it runs on.")
    ] = "local",
) -> None:
    """Do random faults to a run: a drill, or a test of your settings.

    kill-worker, kill-node, freeze-worker, freeze-node, partition, drain, kill-controller, slow-worker. Lost nodes are
    replaced after some seconds. The same seed gives the same faults; whom they hit depends on who is there.
    """
    from shoal.chaos.plan import parse_faults, parse_seconds, schedule
    from shoal.chaos.strike import LocalTarget, unleash
    from shoal.record.read import find_run

    plan = schedule(parse_faults(faults), parse_seconds(every), seed)
    until = parse_seconds(duration) if duration else math.inf
    path = find_run(run, storage)
    done = unleash(LocalTarget(cluster, path), plan, until, lambda line: print(printable(line), flush=True))
    print(f"{done} faults; see `shoal status {run}` and the report in {printable(path)}")
