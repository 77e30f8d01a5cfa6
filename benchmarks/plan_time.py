"""How right `shoal plan` is about the time of a step on this machine: calibrate, predict, measure.

    python benchmarks/plan_time.py [--rounds 3] [--models dense,...] [--layouts 'fsdp 2',...] [--state FILE]

Each round calibrates this machine as `shoal plan --calibrate` does and then trains every model in every layout of
`tests/support/plan_cells.py` for a few steps, in real processes of one thread, joined by gloo; none of these models is
used to calibrate. What a round predicts is compared with what it measured, since the speed of a machine that is shared
drifts; of a cell's rounds the median counts.

    predicted, measured   seconds of a step
    error                 predicted over measured, less one

and by part, predicted/measured: `compute` (forward and backward, with what is said meanwhile), of a pipeline `actions`
and the `rest` (its bubble, gathering and reducing); `end` (the sum across cells, the vote, the commit). `--profile`
says which operators take the time. `--state` keeps what is done, for the next call to go on from; `--seconds` ends a
call early; `--record` writes the last round for `shoal plan --validate`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from shoal.testing import World, world
from shoal_workloads.estimate import Cluster, Estimate, Hardware, estimate
from shoal_workloads.estimate.calibrate import calibrate
from shoal_workloads.estimate.recorded import Cells, Recorded
from tests.support.plan_cells import LAYOUTS, MODELS, Layout, Measured, job, measured, profiled, wall

END = ("sum across cells", "optimizer")
"""Parts of an estimate that come after the gradients of a cell."""


@dataclass(frozen=True)
class Row:
    """Of a cell in a round."""

    model: str
    layout: str
    round: int
    predicted: float
    measured: float
    parts: dict[str, tuple[float, float]]
    step: dict[str, float]
    load: float

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


def say(line: str) -> None:
    print(line, flush=True)


def predicted(model: dict[str, Any], layout: Layout, hardware: Hardware) -> Estimate:
    slots = layout.workers * layout.cells
    cluster = Cluster(1, slots, "here", hardware)
    return estimate(job(model, layout), cluster, layout.workers, layout.cells)


def compared(found: Estimate, ranks: list[Measured | None]) -> dict[str, tuple[float, float]]:
    """By part, seconds: predicted and measured, of a rank on average."""
    there = [rank for rank in ranks if rank is not None]
    phases = {name: statistics.mean(statistics.median(rank.phases[name]) for rank in there) for name in there[0].phases}
    late = sum(found.step.get(name, 0.0) for name in END)
    parts = {"end": (late, sum(seconds for name, seconds in phases.items() if name not in ("accumulate", "sums")))}
    before = phases["accumulate"] + phases["sums"]
    if found.pipeline is None:
        return parts | {"compute": (found.seconds - late, before)}
    busy = statistics.mean(sum(seconds for seconds, _ in rank.actions.values()) for rank in there)
    wait = found.step["bubble"] + found.step["gather and reduce"]
    return parts | {"actions": (found.seconds - late - wait, busy), "rest": (wait, before - busy)}


def rounds(options: argparse.Namespace, state: dict[str, Any]) -> Iterator[Row]:
    """What is left to do of all rounds."""
    end = time.monotonic() + options.seconds
    done = {(row["model"], row["layout"], row["round"]) for row in state["rows"]}
    with ExitStack() as stack:
        worlds = {size: stack.enter_context(world(size)) for size in (1, 2)}
        for number in range(options.rounds):
            cells = [(m, name) for m in options.models for name in options.layouts if (m, name, number) not in done]
            if not cells:
                continue
            if time.monotonic() > end:
                return
            if str(number) not in state["hardware"]:
                state["hardware"][str(number)] = calibrate(
                    "cpu", workers=2, seconds=40, precisions=("fp32",), tell=say
                ).model_dump()
            hardware = Hardware.model_validate(state["hardware"][str(number)])
            for model, name in cells:
                if time.monotonic() > end:
                    return
                yield one(model, name, number, hardware, worlds, options.steps)


def one(model: str, name: str, number: int, hardware: Hardware, worlds: dict[int, World], steps: int) -> Row:
    layout = LAYOUTS[name]
    with tempfile.TemporaryDirectory() as folder:
        ranks = worlds[layout.workers * layout.cells].run(measured, job(MODELS[model], layout), layout, steps, folder)
    found = predicted(MODELS[model], layout, hardware)
    return Row(
        model, name, number, found.seconds, wall(ranks), compared(found, ranks), dict(found.step), os.getloadavg()[0]
    )


def said(row: Row) -> str:
    parts = ", ".join(f"{name} {mine:.3f}/{theirs:.3f}" for name, (mine, theirs) in row.parts.items())
    return (
        f"{row.round} {row.model:8} {row.layout:17} {row.predicted:6.3f} {row.measured:6.3f} {row.error:+7.1%}  {parts}"
    )


def summary(rows: list[Row]) -> dict[str, Any]:
    """The median over rounds of each cell, and over cells."""
    cells = dict.fromkeys((row.model, row.layout) for row in rows)
    each = {}
    for model, layout in cells:
        of = [row for row in rows if (row.model, row.layout) == (model, layout)]
        each[f"{model}, {layout}"] = {
            "predicted": statistics.median(row.predicted for row in of),
            "measured": statistics.median(row.measured for row in of),
            "error": statistics.median(row.error for row in of),
            "rounds": len(of),
        }
    errors = sorted(abs(one["error"]) for one in each.values())
    return {"cells": each, "median": statistics.median(errors), "worst": errors[-1]}


def record(state: dict[str, Any]) -> Recorded:
    """The last round, as `shoal plan --validate` reads it."""
    number = max(row["round"] for row in state["rows"])
    rows = [row for row in state["rows"] if row["round"] == number]
    seconds: dict[str, dict[str, float]] = {}
    for row in rows:
        seconds.setdefault(row["model"], {})[row["layout"]] = round(row["measured"], 4)
    hardware = Hardware.model_validate(state["hardware"][str(number)])
    load = statistics.median(row["load"] for row in rows)
    cells = {name: LAYOUTS[name] for name in dict.fromkeys(row["layout"] for row in rows)}
    return Recorded(
        of=f"{date.today().isoformat()}, {hardware.device}, load {load:.0f}",
        hardware=hardware,
        models={
            name: job(MODELS[name], Layout()).model_dump(exclude={"parallel"}, exclude_unset=True, mode="json")
            for name in seconds
        },
        layouts={name: Cells(workers=of.workers, cells=of.cells, parallel=of.parallel) for name, of in cells.items()},
        seconds=seconds,
    )


def plain(kept: Recorded) -> dict[str, Any]:
    """As YAML holds it."""
    return kept.model_dump(mode="json", exclude_defaults=True)


def profile(options: argparse.Namespace) -> None:
    """The operators of one rank."""
    for model in options.models:
        for name in options.layouts:
            layout = LAYOUTS[name]
            with world(layout.workers * layout.cells) as ranks, tempfile.TemporaryDirectory() as folder:
                (found, *_) = ranks.run(profiled, job(MODELS[model], layout), layout, folder)
            print(f"{model}, {name}: {sum(found.values()):.3f} s with the profiler's own")
            for key, seconds in sorted(found.items(), key=lambda item: -item[1])[:25]:
                print(f"    {seconds * 1e3:8.1f} ms  {key}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="of a cell in a round, after one that does not count")
    parser.add_argument("--models", default=",".join(MODELS), help="by comma")
    parser.add_argument("--layouts", default=",".join(LAYOUTS), help="by comma")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no cell after so many")
    parser.add_argument("--profile", action="store_true", help="operators of a step instead")
    parser.add_argument("--state", type=Path, help="what is done, to go on from")
    parser.add_argument("--record", type=Path, help="write the last round to this file")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    for what, known in (("models", MODELS), ("layouts", LAYOUTS)):
        chosen = getattr(options, what).split(",")
        if unknown := set(chosen) - set(known):
            parser.error(f"--{what}: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
        setattr(options, what, chosen)
    torch.set_num_threads(1)
    if options.profile:
        profile(options)
        return
    state: dict[str, Any] = {"hardware": {}, "rows": []}
    if options.state and options.state.exists():
        state = json.loads(options.state.read_text())
    for row in rounds(options, state):
        print(said(row), flush=True)
        state["rows"].append(asdict(row))
        if options.state:
            options.state.write_text(json.dumps(state))
    found = summary([Row(**row) for row in state["rows"]])
    for name, cell in found["cells"].items():
        print(f"{name:28} {cell['predicted']:.3f} s, measured {cell['measured']:.3f}: {cell['error']:+.1%}")
    print(f"median {found['median']:.1%}, worst {found['worst']:.1%} of {len(found['cells'])} cells")
    if options.record:
        options.record.write_text(yaml.safe_dump(plain(record(state)), sort_keys=False, width=120))
    if options.json:
        options.json.write_text(json.dumps({"date": date.today().isoformat(), **found, **state}, indent=2) + "\n")


if __name__ == "__main__":
    main()
