"""Who sits where on a cluster: what `shoal plan` prints of a job whose nodes, not whose GPUs, are named."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING

from shoal.printable import printable
from shoal_core.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from shoal.config import Job
    from shoal.plan import Assignment, Node, Wanted
    from shoal_core.mesh import Mesh
    from shoal_core.workload import Workload

__all__ = ["live", "mesh_of", "seated", "thought_of"]


def mesh_of(job: Job, workload: Workload) -> Mesh:
    """Of the job's cells.

    Raises:
        UserError: as `cell_mesh`.
    """
    from shoal.plan import cell_mesh

    return cell_mesh(workload, job.workers_per_cell)


def seated(job: Job, workload: Workload, nodes: list[Node], *, rows: int, lose: str | None, as_json: bool) -> None:
    """Print who would sit where on these nodes, and what the loss of one, `lose` or the first, would move."""
    from rich.console import Console

    from shoal.plan import Wanted
    from shoal.plan import plan as assign

    mesh = mesh_of(job, workload)
    wanted = Wanted(mesh, job.cells, None if job.spares == "all" else job.spares)
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
