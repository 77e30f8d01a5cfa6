"""What a simulation found, as values, a table and a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from shoal.simulate.ledger import PHASES
from shoal.simulate.rules import Hours
from shoal.simulate.settings import Settings
from shoal.simulate.simulation import Simulation

__all__ = ["draw", "draw_rules", "figures_of", "render", "render_rules", "result"]


def result(simulation: Simulation) -> dict[str, Any]:
    """All figures of a run that was simulated; seconds unless the name says otherwise.

    `ettr`: effective training time ratio: committed steps times the time of a step at full strength, over all the time.
    """
    ledger = simulation.ledger
    by_cause: dict[str, dict[str, float]] = {}
    for (cause, phase), seconds in sorted(ledger.lost.items()):
        by_cause.setdefault(cause, {})[phase] = seconds
    phases = {phase: sum(row.get(phase, 0.0) for row in by_cause.values()) for phase in PHASES}
    decisions = {}
    for kind, spent in sorted(simulation.spent.items()):
        ms = np.frombuffer(spent, dtype=np.float32) * 1e3
        figures = {"mean_ms": ms.mean(), "p99_ms": np.quantile(ms, 0.99), "max_ms": ms.max()}
        decisions[kind] = {"calls": len(spent), **{key: float(value) for key, value in figures.items()}}
    return {
        "settings": {**asdict(simulation.settings), "cells": simulation.settings.cells},
        "outcome": simulation.outcome or "runs on",
        "seconds": simulation.clock.now,
        "steps": ledger.useful,
        "ettr": ledger.useful * ledger.step / simulation.clock.now,
        "failures": dict(Counter(failure.cause.name for failure in simulation.cluster.failures).most_common()),
        "interrupted_steps": ledger.interruptions,
        "generations": simulation.state.generation,
        "lost": phases,
        "lost_by_cause": by_cause,
        "unfinished": simulation.clock.now - ledger.last,
        "decisions": decisions,
    }


def render(found: dict[str, Any]) -> Group:
    """The same for a terminal."""
    settings = found["settings"]
    head = (
        f"{settings['nodes']}x{settings['slots']} workers in {settings['cells']} cells of {settings['workers']}, "
        f"{settings['spare_nodes']} spare nodes, {settings['days']:g} days, seed {settings['seed']}: "
        f"{found['outcome']}\n"
        f"{sum(found['failures'].values())} failures, {found['interrupted_steps']} steps interrupted, "
        f"{found['generations']} generations, {found['steps']} steps committed\n"
        f"effective training time ratio (ETTR): {found['ettr']:.3%}\n"
    )
    lost = Table(title="seconds lost", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    lost.add_column("cause", no_wrap=True)
    for name in ("hits", *PHASES, "sum"):
        lost.add_column(name, justify="right")
    rows = sorted(found["lost_by_cause"].items(), key=lambda item: -sum(item[1].values()))
    for cause, phases in rows:
        if not any(phases.values()):
            continue
        cells = [f"{phases.get(phase, 0.0):,.0f}" for phase in PHASES]
        lost.add_row(cause, str(found["failures"].get(cause, "")), *cells, f"{sum(phases.values()):,.0f}")
    sums = [f"{found['lost'][phase]:,.0f}" for phase in PHASES]
    lost.add_row("all", str(sum(found["failures"].values())), *sums, f"{sum(found['lost'].values()):,.0f}")
    calls = Table(title="the controller's decisions, CPU time", title_justify="left", box=SIMPLE_HEAD)
    calls.add_column("event")
    for name in ("calls", "mean ms", "p99 ms", "max ms"):
        calls.add_column(name, justify="right")
    for kind, figures in found["decisions"].items():
        calls.add_row(
            kind, f"{figures['calls']:,}", *(f"{figures[key]:.3f}" for key in ("mean_ms", "p99_ms", "max_ms"))
        )
    return Group(head, lost, calls)


def draw(simulation: Simulation, path: Path) -> None:
    """Live cells over time, with every failure, as an SVG picture."""
    from shoal.report.style import LOSS, TROUBLE, axes, figure, svg

    day = 86400.0
    fig = figure(10.5, 3.0)
    (ax,) = axes(fig)
    times = [time / day for time, _ in simulation.strength] + [simulation.clock.now / day]
    live = [cells for _, cells in simulation.strength]
    ax.step(times, [*live, live[-1]], where="post", color=LOSS[0])
    failed = [failure.time / day for failure in simulation.cluster.failures]
    ax.plot(failed, [0.0] * len(failed), linestyle="none", marker="x", color=TROUBLE, markersize=4)
    ax.set_ylim(bottom=-0.02 * simulation.settings.cells)
    ax.set_xlabel("days; crosses are failures")
    ax.set_title("Live cells", loc="left")
    path.write_text(svg(fig, "Live cells of a simulated run"))


# ---- rules beside each other


def figures_of(settings: Settings, found: Mapping[str, Hours]) -> dict[str, Any]:
    """What `rules.compared` found: of each rule shares of all worker hours, and how often cells changed."""
    total = settings.nodes * settings.slots * settings.days * 86400
    shares = {
        name: {what: getattr(hours, what) / total for what in ("trained", "idle", "changing", "dead")}
        | {"changes": hours.changes}
        for name, hours in found.items()
    }
    return {"settings": {**asdict(settings), "cells": settings.cells}, "rules": shares}


def render_rules(figures: Mapping[str, Any]) -> Table:
    """The same for a terminal."""
    settings = figures["settings"]
    shown = Table(
        title=f"{settings['nodes']}x{settings['slots']} workers in {settings['cells']} cells of {settings['workers']}, "
        f"no spares, {settings['days']:g} days, seed {settings['seed']}: share of worker hours",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    shown.add_column("rule", no_wrap=True)
    for name in ("trained", "idle", "changing", "dead", "changes"):
        shown.add_column(name, justify="right")
    for name, shares in figures["rules"].items():
        parts = [f"{shares[what]:.2%}" for what in ("trained", "idle", "changing", "dead")]
        shown.add_row(name, *parts, str(shares["changes"]))
    return shown


def draw_rules(settings: Settings, found: Mapping[str, Hours], path: Path) -> None:
    """Workers that train over time, by rule, as an SVG picture; the seconds of changes are not seen."""
    from shoal.report.style import CELLS, axes, figure, svg

    fig = figure(10.5, 3.0)
    (ax,) = axes(fig)
    for place, (colour, (name, hours)) in enumerate(zip(CELLS, found.items(), strict=False)):
        times, workers = zip(*hours.line, (settings.days * 86400, hours.line[-1][1]), strict=True)
        ax.step([time / 86400 for time in times], workers, where="post", color=colour, label=name, zorder=9 - place)
    most = settings.nodes * settings.slots
    ax.set_ylim(0.7 * most, 1.01 * most)
    ax.set_xlabel("days")
    ax.set_title("Workers that train", loc="left")
    ax.legend(loc="lower left", ncols=len(found), frameon=False)
    path.write_text(svg(fig, "Workers that train, by rule"))
