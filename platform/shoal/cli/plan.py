"""`shoal plan`: where a job's stages and expert groups would sit, on the cluster or on one that is only thought of."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.printable import printable
from shoal_core.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from shoal.config import Job
    from shoal.plan import Assignment, Node, Wanted

__all__ = ["plan"]


def plan(
    job_file: Annotated[
        Path | None, typer.Argument(help="The job: a YAML file, see docs/configuration.md.", metavar="JOB.yaml")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings to change.", metavar="[KEY.SUB=VALUE]...")
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Plan for NODESxSLOTS, such as 256x8, instead of the cluster this runs in; NODESxGPUSxKIND, such as "
            "256x8xH800: whether the job or the --model fits there, how fast, what it costs."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Instead of a job: a model's preset. Says whether it fits, how fast, what it costs."),
    ] = None,
    pp: Annotated[int | None, typer.Option(min=1, help="With --model: pipeline ranks; none: what is best.")] = None,
    ep: Annotated[int | None, typer.Option(min=1, help="With --model: workers that share experts; none: best.")] = None,
    workers_per_cell: Annotated[int | None, typer.Option(min=1, help="With --model; none: pp x ep.")] = None,
    schedule: Annotated[str, typer.Option(help="With --model: of the pipeline.")] = "dualpipe",
    recompute: Annotated[
        str, typer.Option(help="With --model: what backward makes again: none, norms, ffn or dispatch.")
    ] = "norms",
    waiting: Annotated[
        int | None, typer.Option(min=0, help="With --model: micro-batches whose gradients of weights may wait.")
    ] = None,
    seq_len: Annotated[int, typer.Option(min=2, help="With --model: tokens of a sample.")] = 4096,
    global_batch: Annotated[int, typer.Option(min=1, help="With --model: samples of a step.")] = 15_360,
    micro_batch: Annotated[int, typer.Option(min=1, help="With --model: samples a worker takes at a time.")] = 1,
    precision: Annotated[str, typer.Option(help="With --model: bf16 or fp8.")] = "fp8",
    tokens: Annotated[str | None, typer.Option(help="With --model: of the run, such as 14.8T.")] = None,
    budget: Annotated[
        float | None, typer.Option(min=0.01, help="Dollars: how many tokens they are enough for, instead of --tokens.")
    ] = None,
    days: Annotated[
        float | None, typer.Option(min=0.01, help="How many tokens so many days are enough for, instead of --tokens.")
    ] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Dollars a GPU and hour; none: the table's.")] = None,
    hardware: Annotated[Path | None, typer.Option(help="A YAML file with GPUs of your own.")] = None,
    search: Annotated[bool, typer.Option("--search", help="With --model: the best layouts, and why.")] = False,
    scaling: Annotated[
        bool,
        typer.Option("--scaling", help="With --model: whether experts' rows stay hidden as model and cluster grow."),
    ] = False,
    failures: Annotated[
        bool,
        typer.Option(
            "--failures",
            help="With --model: what failures cost, simulated: without spares, in other shapes, with spare nodes; "
            "how often to save; the cheapest first.",
        ),
    ] = False,
    rate: Annotated[float, typer.Option(min=0, help="With --failures: a factor on Llama 3's rates.")] = 1.0,
    spot: Annotated[
        bool, typer.Option("--spot", help="With --failures: nodes too that may be taken away at any time.")
    ] = False,
    spot_price: Annotated[
        float | None, typer.Option(min=0, help="With --spot: dollars a GPU and hour; none: half of the price.")
    ] = None,
    preemptions: Annotated[float, typer.Option(min=0, help="With --spot: how often a day a node is taken away.")] = 0.1,
    seeds: Annotated[int, typer.Option(min=1, help="With --failures: simulated so many times.")] = 3,
    seed: Annotated[int, typer.Option(help="With --failures: the first.")] = 0,
    picture: Annotated[
        Path | None,
        typer.Option(
            help="With --model: memory over the step, the pipeline and what failures cost: a .svg or .png file."
        ),
    ] = None,
    validate: Annotated[
        bool, typer.Option("--validate", help="How far such estimates are from published figures.")
    ] = False,
    per_rack: Annotated[int, typer.Option(min=1, help="With --cluster: nodes of a rack.")] = 16,
    zones: Annotated[int, typer.Option(min=1, help="With --cluster: zones, of whole racks.")] = 1,
    lose: Annotated[
        str | None, typer.Option(help="Node whose loss is shown; by default the first that is used.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Nodes to list at most.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole plan as JSON.")] = False,
) -> None:
    """Who would sit where (cell.stage.shard by node), how far copies are kept apart, and what a node's loss would move;
    or, with --model: whether it fits, how long a step takes, and what a run costs; or, with --budget or --days and no
    model: which models could be trained, and how far.

    Exit code 2: not even one cell fits; the message names the nearest settings that would.
    """
    from shoal.cli.bill import validated
    from shoal.cli.estimate import Asked, estimated, of_job
    from shoal.cli.estimate_torch import of_torch_job
    from shoal.cli.failing import Rates
    from shoal.cli.overviews import scaling as scaled
    from shoal.cli.overviews import trainable

    if validate:
        validated(as_json)
        return
    rates = Rates(rate, spot, spot_price, preemptions, seeds, seed) if failures else None
    asked = Asked(
        model=model or str(job_file or ""), cluster=cluster or "", pp=pp, ep=ep, schedule=schedule,
        workers_per_cell=workers_per_cell, seq_len=seq_len, global_batch=global_batch, micro_batch=micro_batch,
        precision=precision, recompute=recompute, waiting=waiting, tokens=tokens, budget=budget, days=days, price=price,
        hardware=hardware, rates=rates, picture=picture,
    )  # fmt: skip
    if spot and not failures:
        raise UserError("--spot: what it costs that nodes are taken away is simulated", "--failures --spot")
    if scaling and model is None:
        raise UserError("--scaling: of which model?", "shoal plan --scaling --model deepseek-v3 --cluster 256x8xH800")
    if model is not None and job_file is not None:
        raise UserError(f"--model {model} and {job_file} both say what is trained", "name one of them")
    if job_file is None and model is None and (budget or days):
        if failures or picture:
            raise UserError(
                "--failures and --picture: of which model?", "--model NAME, one of those that the table shows"
            )
        trainable(asked, as_json=as_json)
        return
    if model is not None:
        if scaling:
            scaled(asked, as_json=as_json)
        elif not estimated(asked, search=search, as_json=as_json):
            raise typer.Exit(2)
        return
    if job_file is None:
        raise UserError("shoal plan: no job and no model", "shoal plan JOB.yaml, or shoal plan --model deepseek-v3 ...")
    from rich.console import Console

    from shoal.config import load_job, parse
    from shoal.plan import Wanted, cell_mesh
    from shoal.plan import plan as assign
    from shoal_core.workload import load_workload, own_settings
    from shoal_workloads.pretrain import Pretrain
    from shoal_workloads.torchmodel.workload import TorchWorkload

    job = load_job(job_file, overrides or [])
    kind = load_workload(str(job.workload.get("path")))
    workload = kind(parse(kind.Config, own_settings(job.workload), source=str(job_file), prefix="workload."))
    mesh = cell_mesh(workload, job.workers_per_cell)
    if cluster is not None and cluster.count("x") > 1:
        if isinstance(workload, Pretrain):
            fits = of_job(job, workload.config, asked, as_json=as_json)
        elif isinstance(workload, TorchWorkload):
            fits = of_torch_job(job, workload, asked, as_json=as_json)
        else:
            raise UserError(
                f"--cluster {cluster}: what a {kind.__name__} takes on such GPUs is not known",
                "--cluster NODESxSLOTS says who would sit where",
            )
        if not fits:
            raise typer.Exit(2)
        return
    wanted = Wanted(mesh, job.cells, None if job.spares == "all" else job.spares)
    nodes = live(job) if cluster is None else thought_of(cluster, per_rack, zones)
    found = assign(nodes, wanted)
    if as_json:
        print(json.dumps(as_values(found), indent=2))
        return
    console = Console(markup=False, highlight=False)
    console.print(
        f"{len(found.cells)} cells of pp {mesh.pp} x fsdp {mesh.fsdp} x ep {mesh.ep} on {len(nodes)} nodes; "
        f"{len(found.spares)} spares"
    )
    for note in found.notes:
        console.print(f"- {printable(note)}")
    console.print(table(found, nodes, rows))
    console.print(printable(loss(found, nodes, wanted, lose)))


def live(job: Job) -> list[Node]:
    """The cluster this runs in, without what other runs hold."""
    from shoal.on_ray.join import connect
    from shoal.on_ray.nodes import view
    from shoal.on_ray.slots import Slot

    connect()
    return view(Slot.of(job))


def thought_of(cluster: str, per_rack: int, zones: int) -> list[Node]:
    """NODESxSLOTS in racks of `per_rack` nodes, the racks split between the zones.

    Raises:
        UserError: written otherwise, or fewer racks than zones.
    """
    from shoal.plan import Node, Site
    from shoal.simulate.settings import parse_cluster

    count, slots = parse_cluster(cluster)
    racks = -(-count // per_rack)
    if zones > racks:
        raise UserError(
            f"--zones {zones}: {count} nodes in racks of {per_rack} make {racks} racks", "ask for as many zones at most"
        )
    digits = len(str(count - 1))
    nodes = []
    for number in range(count):
        rack, name = number // per_rack, f"n{number:0{digits}}"
        nodes.append(Node(name, name, slots, site=Site(f"r{rack}", f"z{rack * zones // racks}")))
    return nodes


def held(found: Assignment) -> dict[str, list[str]]:
    """What sits on each node: runs of shards, as cell.stage.first-last."""
    runs: dict[str, dict[tuple[int, int], list[int]]] = defaultdict(lambda: defaultdict(list))
    for seat in sorted(found.places):
        stage, shard = found.mesh.coords(seat.rank)
        runs[found.places[seat].node][seat.cell, stage].append(shard)
    return {node: [in_words(*key, shards) for key, shards in stages.items()] for node, stages in runs.items()}


def in_words(cell: int, stage: int, shards: list[int]) -> str:
    spans: list[tuple[int, int]] = []
    for shard in shards:
        if spans and shard == spans[-1][1] + 1:
            spans[-1] = (spans[-1][0], shard)
        else:
            spans.append((shard, shard))
    return f"{cell}.{stage}." + ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def table(found: Assignment, nodes: list[Node], rows: int) -> Table:
    """One line a node."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    shown = Table("node", "rack", "zone", "cell.stage.shards", "spares", box=SIMPLE_HEAD)
    on = held(found)
    spare = [place.node for place in found.spares]
    for node in nodes[:rows]:
        count = spare.count(node.name)
        what = "  ".join(on.get(node.name, []))
        names = (Text(printable(name)) for name in (node.name, node.site.rack, node.site.zone))
        shown.add_row(*names, what, str(count) if count else "")
    if len(nodes) > rows:
        shown.caption = f"and {len(nodes) - rows} more nodes (--rows)"
    return shown


def loss(found: Assignment, nodes: list[Node], wanted: Wanted, name: str | None) -> str:
    """What the loss of one node would move.

    Raises:
        UserError: no node of that name.
    """
    from shoal.plan import plan as assign

    used = sorted({place.node for place in found.places.values()})
    lost = name or used[0]
    if lost not in {node.name for node in nodes}:
        raise UserError(f"--lose {lost}: no such node", f"name one of the cluster's, such as {used[0]}")
    there = [seat for seat, place in found.places.items() if place.node == lost]
    cells = ", ".join(str(cell) for cell in sorted({seat.cell for seat in there})) or "none"
    head = f"if {lost} is lost ({len(there)} shards, of cells {cells}): "
    try:
        again = assign([node for node in nodes if node.name != lost], wanted, found)
    except UserError as error:
        return f"{head}{error.problem}"
    to = sorted({again.places[seat].node for seat in again.moved})
    where = f" (to {', '.join(to[:4])}{' and others' if len(to) > 4 else ''})" if to else ""
    return f"{head}{len(again.moved)} shards get another place{where}, all others stay; {'; '.join(again.notes)}"


def as_values(found: Assignment) -> dict[str, object]:
    """The plan for a program: places as `[cell, stage, shard, node, slot]`."""
    places = [
        [seat.cell, *found.mesh.coords(seat.rank), place.node, place.slot]
        for seat, place in sorted(found.places.items())
    ]
    spares = [list(place) for place in found.spares]
    return {"apart": found.apart, "notes": list(found.notes), "places": places, "spares": spares}
