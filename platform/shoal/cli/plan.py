"""`shoal plan`: what a run takes and costs before anything is rented, and where its workers would sit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli.options import COSTS, COUNTS, FAILURES, FITS, OUTPUT, REAL, SEATS, way_of
from shoal.cli.pictures import check_picture
from shoal.cli.seats import live, mesh_of, seated, thought_of
from shoal_core.errors import UserError

if TYPE_CHECKING:
    from shoal.cli.estimate import Asked
    from shoal.config import Job
    from shoal_core.workload import Workload

__all__ = ["plan"]


def plan(
    context: typer.Context,
    job_file: Annotated[
        Path | None, typer.Argument(help="The job: a YAML file, see docs/configuration.md.", metavar="JOB.yaml")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings to change.", metavar="[KEY.SUB=VALUE]...")
    ] = None,
    *,
    model: Annotated[str | None, typer.Option(help="Instead of a job: a model's preset.", rich_help_panel=FITS)] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="NODESxGPUSxKIND, such as 256x8xH800: whether the job or the --model fits there, how fast, what it "
            "costs. Of a job also NODESxSLOTS, such as 256x8: who would sit where; none: on the cluster this runs in.",
            rich_help_panel=FITS,
        ),
    ] = None,
    hardware: Annotated[
        Path | None,
        typer.Option(
            help="A YAML file with devices of your own, beside the shipped table and ~/.config/shoal/hardware.yaml "
            "(or $SHOAL_HARDWARE); with --calibrate: the file to write instead of that.",
            rich_help_panel=FITS,
        ),
    ] = None,
    pp: Annotated[
        int | None, typer.Option(min=1, help="Pipeline ranks; none: what is best.", rich_help_panel=FITS)
    ] = None,
    ep: Annotated[
        int | None, typer.Option(min=1, help="Workers that share experts; none: what is best.", rich_help_panel=FITS)
    ] = None,
    workers_per_cell: Annotated[
        int | None, typer.Option(min=1, help="None: pp x ep, or what is best.", rich_help_panel=FITS)
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help="Of the pipeline; none: dualpipe, or what is best.", rich_help_panel=FITS)
    ] = None,
    recompute: Annotated[
        str | None,
        typer.Option(
            help="What backward makes again: none, norms, ffn or dispatch; none said: norms, or what is best.",
            rich_help_panel=FITS,
        ),
    ] = None,
    waiting: Annotated[
        int | None, typer.Option(min=0, help="Micro-batches whose gradients of weights may wait.", rich_help_panel=FITS)
    ] = None,
    seq_len: Annotated[int, typer.Option(min=2, help="Tokens of a sample.", rich_help_panel=FITS)] = 4096,
    global_batch: Annotated[int, typer.Option(min=1, help="Samples of a step.", rich_help_panel=FITS)] = 15_360,
    micro_batch: Annotated[
        int, typer.Option(min=1, help="Samples a worker takes at a time.", rich_help_panel=FITS)
    ] = 1,
    precision: Annotated[str, typer.Option(help="bf16 or fp8.", rich_help_panel=FITS)] = "fp8",
    routing: Annotated[
        str | None,
        typer.Option(
            help="A quantile: the share of micro-batches and layers whose rows of experts must fit; none: p99, or as "
            "the job says.",
            rich_help_panel=FITS,
        ),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            metavar="RUN", help="Experts are used as unevenly as in this run, by its MaxVio.", rich_help_panel=FITS
        ),
    ] = None,
    search: Annotated[
        bool,
        typer.Option(
            "--search",
            help="The best layouts, and why, with what else is said of the layout held; also without --pp or --ep.",
            rich_help_panel=FITS,
        ),
    ] = False,
    scaling: Annotated[
        bool,
        typer.Option(
            "--scaling",
            help="Whether experts' rows stay hidden as model and cluster grow together.",
            rich_help_panel=FITS,
        ),
    ] = False,
    tokens: Annotated[str | None, typer.Option(help="Of the run, such as 14.8T.", rich_help_panel=COSTS)] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=1e12,
            help="Dollars: how many tokens they are enough for, instead of --tokens; without a model: of which.",
            rich_help_panel=COSTS,
        ),
    ] = None,
    days: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=100_000,
            help="How many tokens so many days are enough for, instead of --tokens; without a model: of which.",
            rich_help_panel=COSTS,
        ),
    ] = None,
    price: Annotated[
        float | None, typer.Option(min=0, help="Dollars a GPU and hour; none: the table's.", rich_help_panel=COSTS)
    ] = None,
    failures: Annotated[
        bool,
        typer.Option(
            "--failures",
            help="What failures cost, simulated: without spares, in other shapes, with spare nodes; how often to save; "
            "the cheapest first.",
            rich_help_panel=FAILURES,
        ),
    ] = False,
    rate: Annotated[
        float, typer.Option(min=0, max=1000, help="A factor on Llama 3's rates.", rich_help_panel=FAILURES)
    ] = 1.0,
    spot: Annotated[
        bool, typer.Option("--spot", help="Nodes too that may be taken away at any time.", rich_help_panel=FAILURES)
    ] = False,
    spot_price: Annotated[
        float | None,
        typer.Option(
            min=0, help="With --spot: dollars a GPU and hour; none: half of the price.", rich_help_panel=FAILURES
        ),
    ] = None,
    preemptions: Annotated[
        float, typer.Option(min=0, help="With --spot: how often a day a node is taken away.", rich_help_panel=FAILURES)
    ] = 0.1,
    seeds: Annotated[int, typer.Option(min=1, help="Simulated so many times.", rich_help_panel=FAILURES)] = 3,
    seed: Annotated[int, typer.Option(help="The first.", rich_help_panel=FAILURES)] = 0,
    validate: Annotated[
        bool,
        typer.Option(
            "--validate",
            help="How far such estimates are from published figures; of runs that are named in the job's place, or of "
            "all in --storage, how far what was predicted as they began is from what they took.",
            rich_help_panel=REAL,
        ),
    ] = False,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Measure the device this runs on (a GPU, else one thread of this CPU) in less than two minutes, and "
            "keep it in your own table, for --cluster NODESxSLOTSxNAME.",
            rich_help_panel=REAL,
        ),
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="With --calibrate; none: after the device.", rich_help_panel=REAL)
    ] = None,
    learn: Annotated[
        bool,
        typer.Option(
            "--learn",
            help="Correct later plans by what the runs that are named, or all in --storage, took of what was "
            "predicted: factors in your own table of hardware.",
            rich_help_panel=REAL,
        ),
    ] = False,
    storage: Annotated[
        str | None,
        typer.Option(
            help="With --learn or --validate: where the runs lie; none: $SHOAL_STORAGE, or runs.", rich_help_panel=REAL
        ),
    ] = None,
    per_rack: Annotated[int, typer.Option(min=1, help="With --cluster: nodes of a rack.", rich_help_panel=SEATS)] = 16,
    zones: Annotated[
        int, typer.Option(min=1, help="With --cluster: zones, of whole racks.", rich_help_panel=SEATS)
    ] = 1,
    lose: Annotated[
        str | None,
        typer.Option(help="Node whose loss is shown; by default the first that is used.", rich_help_panel=SEATS),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Nodes to list at most.", rich_help_panel=SEATS)] = 64,
    picture: Annotated[
        Path | None,
        typer.Option(
            help="Memory over the step, the pipeline and what failures cost: a .svg or .png file.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the whole plan as JSON.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """What training takes before anything is rented: --model NAME (or JOB.yaml) --cluster NODESxGPUSxKIND says whether
    it fits, how long a step takes, and what a run costs; --budget or --days without a model, which models could be
    trained, and how far. Of a JOB.yaml without a kind of GPU: who would sit where (cell.stage.shard by node), how far
    copies are kept apart, and what a node's loss would move.

    Exit code 2: it does not fit; by how much, and the nearest settings that would, is said.
    """
    from shoal.cli.estimate import Asked, estimated
    from shoal.cli.failing import Rates
    from shoal.cli.learned import learn as learned
    from shoal.cli.overviews import scaling as scaled
    from shoal.cli.overviews import trainable
    from shoal.cli.validate import validated

    way = way_of([option for option in COUNTS if given(context, option)], cluster)
    check_picture("--picture", picture)
    if way == "calibrate":
        from shoal.cli.calibrate import calibrated

        calibrated(hardware, name, as_json=as_json)
        return
    if way in ("validate", "learn"):
        runs = [] if job_file is None else [str(job_file), *(overrides or [])]
        if way == "learn":
            learned(runs, storage, as_json)
        else:
            validated(as_json, runs, storage)
        return
    rates = Rates(rate, spot, spot_price, preemptions, seeds, seed) if failures else None
    asked = Asked(
        model=model or str(job_file or ""), cluster=cluster or "", pp=pp, ep=ep, schedule=schedule,
        workers_per_cell=workers_per_cell, seq_len=seq_len, global_batch=global_batch, micro_batch=micro_batch,
        precision=precision, recompute=recompute, waiting=waiting, tokens=tokens, budget=budget, days=days, price=price,
        hardware=hardware, rates=rates, picture=picture, routing=routing, like=like,
    )  # fmt: skip
    fits = True
    if way == "models":
        trainable(asked, as_json=as_json)
    elif way == "scaling":
        scaled(asked, as_json=as_json)
    elif way == "model":
        fits = estimated(asked, search=search, as_json=as_json)
    else:
        assert job_file is not None
        job, workload = read(job_file, overrides or [])
        if way == "job":
            fits = on_gpus(job, workload, asked, as_json=as_json)
        else:
            nodes = live(job) if cluster is None else thought_of(cluster, per_rack, zones)
            seated(job, workload, nodes, rows=rows, lose=lose, as_json=as_json)
    if not fits:
        raise typer.Exit(2)


def given(context: typer.Context, name: str) -> bool:
    """Whether an option was given, and does not stand as it does by default."""
    source, value = context.get_parameter_source(name), context.params[name]
    return source is not None and source.name != "DEFAULT" and value is not None and value is not False and value != []


def read(path: Path, overrides: list[str]) -> tuple[Job, Workload]:
    """A job and its workload.

    Raises:
        UserError: as `load_job` and `parse`.
    """
    from shoal.config import load_job, parse
    from shoal_core.loading import load_workload, own_settings

    job = load_job(path, overrides)
    kind = load_workload(str(job.workload.get("path")))
    return job, kind(parse(kind.Config, own_settings(job.workload), source=str(path), prefix="workload."))


def on_gpus(job: Job, workload: Workload, asked: Asked, *, as_json: bool) -> bool:
    """Print what a job takes on GPUs. Returns whether it fits.

    Raises:
        UserError: it is of a kind of which that is not known; or as `of_job` and `of_torch_job`.
    """
    from shoal.cli.estimate import of_job
    from shoal.cli.estimate_torch import of_torch_job
    from shoal_workloads.pretrain import Pretrain
    from shoal_workloads.torchmodel.workload import TorchWorkload

    mesh_of(job, workload)  # refuses what no cell can be
    if isinstance(workload, Pretrain):
        return of_job(job, workload.config, asked, as_json=as_json)
    if isinstance(workload, TorchWorkload):
        return of_torch_job(job, workload, asked, as_json=as_json)
    raise UserError(
        f"--cluster {asked.cluster}: what a {type(workload).__name__} takes on such GPUs is not known",
        "--cluster NODESxSLOTS says who would sit where",
    )
