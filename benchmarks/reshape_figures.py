"""What `reshape.py` measured: medians and the worst, and the tables of docs/reshape.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

__all__ = ["summary", "tables"]

SHAPES = {"any": "every shape allowed", "two": "two cells only"}
LOSSES = {
    "loss_difference": "loss of a step from the undisturbed run's, the greatest difference",
    "loss_difference_model": "the same of a small model with experts, MTP and averages",
}
SPENT = ("noticed", "told", "pause", "form", "fill", "first_step")

VERDICTS = {True: "met", False: "missed", None: ""}

Row = tuple[str, str, str, bool | None]
"""Figure, goal, what was measured, whether that is met."""


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """Medians of the times, the worst of the rest."""
    each, audits, throughput = result["time"], result["audits"], result["throughput"]
    found = spread(each)
    found["bytes_ratio"] = max((one["bytes_ratio"] for one in each), default=None)
    for name, rows in throughput.items():
        found[f"throughput_share_min_{name}"] = min(row["share"] for row in rows[1:])
    found["throughput_share_min"] = found.get("throughput_share_min_any")
    for name in SHAPES if "dropped" in throughput else ():
        alone = throughput["dropped"][-1]
        alive = (row for row in throughput[name][1:] if row["survivors"] >= alone["workers"])
        found[f"over_dropping_{name}"] = {
            str(row["survivors"]): row["throughput"] / alone["throughput"] for row in alive
        }
    shoal, ray_train = (result.get("cluster", {}).get(whose, []) for whose in ("shoal", "ray_train"))
    found |= {f"cluster_{name}": value for name, value in spread(shoal).items()}
    found |= {f"ray_train_{name}": value for name, value in spread(ray_train).items()}
    if shoal and ray_train:
        found["sooner_than_ray_train"] = found["ray_train_first_step_median"] / found["cluster_reshaped_median"]
    return found | result["loss"] | {name: sum(one[name] for one in audits) for name in (audits[0] if audits else ())}


def spread(each: list[dict[str, float]]) -> dict[str, Any]:
    """Median and maximum of every figure."""
    of = {"median": median, "max": max}
    return {f"{name}_{how}": of[how](one[name] for one in each) for name in (each[0] if each else ()) for how in of}


def tables(result: dict[str, Any]) -> str:
    """Markdown of what FILE has; a part that was not measured has no row."""
    loads = ", ".join(f"{result[when][0]:.1f}" for when in ("load", "load_after") if when in result)
    lines = [f"{len(result['time'])} repeats, {result['date']}, load before and after {loads}", ""]
    lines += ["| figure | goal | measured | |", "|---|---|---|---|"]
    rows = [*of_time(result), *of_losses(result), *of_throughput(result), *of_cluster(result)]
    lines += [f"| {what} | {goal} | {found} | {VERDICTS[met]} |" for what, goal, found, met in rows]
    if result["time"]:
        lines += ["", "Seconds, medians: " + ", ".join(f"{name} {result[f'{name}_median']:.2f}" for name in SPENT)]
    return "\n".join([*lines, "", *by_survivors(result)])


def timed(result: dict[str, Any], name: str) -> str:
    return f"**{result[f'{name}_median']:.2f}** ({result[f'{name}_max']:.2f})"


def of_time(result: dict[str, Any]) -> Iterator[Row]:
    if not result["time"]:
        return
    most = 0.5 + result["step_median"]
    commit, found = timed(result, "next_commit"), result["next_commit_median"]
    yield "next commit", f"0.5 and a step of {result['step_median']:.2f}", commit, found <= most
    yield "first step in the new shape", "3", timed(result, "reshaped"), result["reshaped_median"] <= 3
    parts = f"{result['crossed_median']:.2f} + {result['own_median']:.2f} = **{result['bytes_ratio']:.2f}**"
    whole = round(result["bytes_ratio"], 4) == 1
    yield "moved: from others, from itself, together, of the new state", "1.00", parts, whole
    busiest = result["busiest_max"]
    yield "busiest source over the mean of all", "1.25", f"**{busiest:.2f}**", busiest <= 1.25


def of_losses(result: dict[str, Any]) -> Iterator[Row]:
    for name, what in LOSSES.items():
        if name in result["loss"]:
            found = result["loss"][name]
            yield what, "1e-5", f"**{found:.1e}**", found <= 1e-5
    if result["audits"]:
        lost = [result[name] for name in ("steps_lost", "samples_repeated", "samples_skipped")]
        what = f"steps lost, samples repeated and skipped, {len(result['audits'])} runs"
        yield what, "0, 0, 0", f"**{', '.join(map(str, lost))}**", not any(lost)


def of_throughput(result: dict[str, Any]) -> Iterator[Row]:
    for name, what in SHAPES.items():
        rows = result["throughput"].get(name, [])[1:]
        shares = [row["share"] for row in rows]
        if shares:
            span = f"**{min(shares):.2f}** to {max(shares):.2f}"
            yield f"throughput of a survivor against one of 8; {what}", "0.95", span, min(shares) >= 0.95
    for name, what in SHAPES.items():
        if over := result.get(f"over_dropping_{name}"):
            yield f"against dropping the cell, 7 survivors; {what}", "1.5 x", f"**{over['7']:.2f} x**", over["7"] >= 1.5


def of_cluster(result: dict[str, Any]) -> Iterator[Row]:
    if "cluster_reshaped_median" in result:
        times = " and ".join(timed(result, f"cluster_{name}") for name in ("next_commit", "reshaped"))
        yield "on a Ray cluster: next commit, first step in the new shape", "", times, None
    if "ray_train_first_step_median" in result:
        sooner = result.get("sooner_than_ray_train", 0.0)
        found = f"{timed(result, 'ray_train_first_step')}: **{sooner:.0f} x**"
        yield "there Ray Train's elastic training: first step again", "20 x later", found, sooner >= 20


def by_survivors(result: dict[str, Any]) -> Iterator[str]:
    """A column for each number of survivors."""
    runs = result["throughput"]
    if not runs:
        return
    columns = [row["survivors"] for row in next(iter(runs.values()))]
    yield "| survivors | " + " | ".join(map(str, columns)) + " |"
    yield "|---" * (1 + len(columns)) + "|"
    for name, what in SHAPES.items():
        rows = {row["survivors"]: row for row in runs.get(name, [])}
        over = result.get(f"over_dropping_{name}", {})
        lines: dict[str, Callable[[dict[str, Any]], str]] = {
            f"{what}: cells": lambda row: f"{row['cells']} x {row['workers']}",
            "share": lambda row: f"{row['share']:.2f}",
            "by counting micro-batches": lambda row: f"{row['counted']:.2f}",
            "against dropping": lambda row, over=over: (
                f"{over[str(row['survivors'])]:.2f}" if str(row["survivors"]) in over else ""
            ),
        }
        for title, text in lines.items():
            yield f"| {title} | " + " | ".join(text(rows[n]) if n in rows else "" for n in columns) + " |"
