"""What `shoal plan` says beside one run's estimate: which models a cluster could train, and how a model would scale."""

from __future__ import annotations

import json
from dataclasses import replace

from shoal.cli.bill import Trainable
from shoal.cli.bill_tables import scaling_table, trainable_table
from shoal.cli.estimate import Asked, checked, config_of, paid, parse_gpus, searched, wanted
from shoal.cli.failing import under_a_step
from shoal.printable import printable
from shoal_core.errors import UserError

__all__ = ["scaling", "trainable"]

EXPERT_NODES = 8
"""Nodes that share a layer's experts, where `--ep` does not say it: DeepSeek-V3's (report, section 3.2)."""


def trainable(asked: Asked, *, as_json: bool) -> None:
    """Print what the money or the days of `asked` are enough for, model by model, each in its best layout."""
    from rich.console import Console
    from rich.progress import Progress

    from shoal_workloads.estimate import bill
    from shoal_workloads.model.presets import PRESETS

    cluster = parse_gpus(asked.cluster, asked.hardware)
    each, _ = paid(asked, cluster)
    rows = list[Trainable]()
    console = Console(markup=False, highlight=False)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for model in progress.track(PRESETS, description="models"):
            try:
                found, reasons = searched(config_of(replace(asked, model=model)), cluster)
            except UserError as error:
                rows.append(Trainable(model, None, None, error.problem))
                continue
            length = wanted(asked, found, each) or 0.0
            why = under_a_step(found, length, each) if found.fits else reasons[0]
            rows.append(Trainable(model, found, None if why else bill(found, length, each), why))
    if as_json:
        print(json.dumps([one.values() for one in rows], indent=2))
        return
    console.print(trainable_table(rows))
    for one in rows:
        if one.why:
            console.print(f"- {one.model}: {printable(one.why)}")


def scaling(asked: Asked, *, as_json: bool) -> None:
    """Print, and draw, what the exchange of rows takes beside computing as model and cluster grow together."""
    from rich.console import Console

    from shoal_workloads.estimate.scaling import scaled

    cluster, config = parse_gpus(asked.cluster, asked.hardware), config_of(asked)
    ep = asked.ep or min(EXPERT_NODES * cluster.slots, config.model.n_experts)
    checked(config.model_copy(update={"parallel": config.parallel.model_copy(update={"pp": 1, "ep": ep})}), ep)
    rows = list(scaled(config, cluster, ep))
    if asked.picture is not None:
        from shoal.report.planned import Ratio, scaling_figure
        from shoal.report.style import draw

        drawn = [Ratio(one.way, one.nodes, one.flat, one.hierarchical) for one in rows]
        draw(scaling_figure(drawn), "Exchange beside computing", asked.picture)
    if as_json:
        print(json.dumps([vars(one) for one in rows], indent=2))
    else:
        Console().print(scaling_table(rows))
