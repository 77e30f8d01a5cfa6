"""Which options of `shoal plan` count for what is asked: one that would be left out is refused by its name."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from shoal_core.errors import UserError

__all__ = ["COSTS", "COUNTS", "FAILURES", "FITS", "OUTPUT", "REAL", "SEATS", "way_of"]

FITS = "What fits, and how fast"
COSTS = "What it costs"
FAILURES = "What failures cost (--failures)"
SEATS = "Who sits where (a job, without a kind of GPU)"
REAL = "How right it is"
OUTPUT = "Output"
"""Panels of `--help`."""

WAYS = {
    "model": "--model",
    "scaling": "--scaling",
    "models": "--budget or --days without a model",
    "job": "a job on NODESxGPUSxKIND",
    "seats": "a job without a kind of GPU",
    "validate": "--validate",
    "calibrate": "--calibrate",
    "learn": "--learn",
}
"""What can be asked, in the words of a message."""

LAYOUT = (
    "pp", "ep", "workers_per_cell", "schedule", "recompute", "waiting", "seq_len", "global_batch", "micro_batch",
    "precision",
)  # fmt: skip
"""Options whose values a job's file gives."""
COUNTS: Mapping[str, str] = {
    "job_file": "job seats validate learn",
    "overrides": "job seats validate learn",
    "cluster": "model scaling models job seats",
    "model": "model scaling",
    "pp": "model",
    "ep": "model scaling",
    "workers_per_cell": "model",
    "schedule": "model",
    "recompute": "model scaling",
    "waiting": "model",
    "seq_len": "model scaling models",
    "global_batch": "model models",
    "micro_batch": "model scaling models",
    "precision": "model scaling models",
    "search": "model",
    "routing": "model models job",
    "like": "model models job",
    "scaling": "scaling",
    "hardware": "model scaling models job calibrate",
    "tokens": "model job",
    "budget": "model models job",
    "days": "model models job",
    "price": "model models job",
    "failures": "model job",
    "rate": "model job",
    "spot": "model job",
    "spot_price": "model job",
    "preemptions": "model job",
    "seeds": "model job",
    "seed": "model job",
    "per_rack": "seats",
    "zones": "seats",
    "lose": "seats",
    "rows": "seats",
    "validate": "validate",
    "calibrate": "calibrate",
    "name": "calibrate",
    "learn": "learn",
    "storage": "validate learn",
    "picture": "model scaling job",
    "as_json": "model models scaling job seats validate calibrate learn",
}
"""The ways of asking in which each option counts."""
NEEDS = {
    **dict.fromkeys(("rate", "spot", "seeds", "seed"), "failures"),
    **dict.fromkeys(("spot_price", "preemptions"), "spot"),
    **dict.fromkeys(("per_rack", "zones"), "cluster"),
}
"""Options that say more of another."""


def way_of(given: Collection[str], cluster: str | None) -> str:
    """What is asked by the options that were given (their names in Python): one of `WAYS`.

    Raises:
        UserError: something is asked of nothing, or an option would be left out.
    """
    gpus = cluster is not None and cluster.count("x") > 1
    of_itself = [one for one in ("validate", "calibrate", "learn") if one in given]
    if of_itself:
        way = of_itself[0]
    elif "scaling" in given:
        if "model" not in given:
            raise UserError(
                "--scaling: of which model?", "shoal plan --scaling --model deepseek-v3 --cluster 256x8xH800"
            )
        way = "scaling"
    elif "model" in given:
        way = "model"
    elif "job_file" in given:
        way = "job" if gpus else "seats"
    elif {"budget", "days"} & set(given):
        way = "models"
    else:
        raise UserError("shoal plan: no job and no model", "shoal plan JOB.yaml, or shoal plan --model deepseek-v3 ...")
    refuse(given, way)
    if cluster is None and way not in ("seats", "validate", "calibrate", "learn"):
        raise UserError(f"{WAYS[way]}: on which cluster?", "--cluster NODESxGPUSxKIND, such as 8x8xH100")
    return way


def refuse(given: Collection[str], way: str) -> None:
    """Raises: UserError: an option does not count there."""
    if "model" in given and "job_file" in given:
        raise UserError("--model and a job both say what is trained", "name one of them")
    left_out = [name for name in given if way not in COUNTS[name].split()]
    if left_out:
        raise UserError(f"{said(left_out)}: not for {WAYS[way]}", remedy(left_out, way))
    for name, other in NEEDS.items():
        if name in given and other not in given:
            raise UserError(f"{said([name])} says nothing without {said([other])}", f"{said([other])} {said([name])}")


def remedy(names: Collection[str], way: str) -> str:
    """What to do with options that do not count."""
    if way in ("job", "seats") and all(name in LAYOUT for name in names):
        return "the job's file says that, or SETTING=VALUE behind its name"
    if way == "models" and any("model" in COUNTS[name] for name in names):
        return "--model NAME, one of those that the table shows, or leave it out"
    if way == "seats" and any("job" in COUNTS[name].split() for name in names):
        return "--cluster NODESxGPUSxKIND, such as 8x8xH100"
    first = [WAYS[one] for one in COUNTS[next(iter(names))].split()]
    return f"leave it out: it is for {' or '.join(first)}"


def said(names: Collection[str]) -> str:
    """Options by the names that people type."""
    spelled = {"as_json": "--json", "job_file": "JOB.yaml", "overrides": "KEY=VALUE"}
    return ", ".join(spelled.get(name, "--" + name.replace("_", "-")) for name in names)
