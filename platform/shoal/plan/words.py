"""What a plan reaches, and what it does not and why, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from shoal.plan.cluster import LEVELS, Level, Site
from shoal_core.errors import UserError
from shoal_core.mesh import Mesh, Seat

__all__ = ["apart", "crowding", "split_groups", "too_few", "too_small"]


def crowding(seats: Mapping[Seat, str], site: Callable[[str], Site]) -> dict[Level, int]:
    """The most copies of one shard (same rank, different cells) that one domain holds, by level."""
    found = {}
    for level in LEVELS:
        names = {node: site(node).domain(level, node) for node in set(seats.values())}
        counts = Counter((seat.rank, names[node]) for seat, node in seats.items())
        found[level] = max(counts.values(), default=0)
    return found


def apart(
    seats: Mapping[Seat, str], cells: int, nodes: Mapping[str, Site], *, kept: bool = False
) -> tuple[Level | None, str]:
    """The widest domain by which copies are kept apart (None: not even by node), in a word and in a sentence.

    `nodes`: those with slots; `kept`: survivors were left where they are.
    """
    if cells < 2:
        return None, "one cell: there are no copies to keep apart"
    most = crowding(seats, lambda node: nodes[node])
    reached = [level for level in LEVELS if most[level] == 1]
    best = reached[-1] if reached else None
    missed = [level for level in LEVELS if most[level] > 1]
    head = f"copies are kept apart by {best}" if best else "copies are not kept apart"
    reasons = [why_not(level, most[level], cells, nodes, kept) for level in missed]
    return best, "; ".join([head, *reasons])


def why_not(level: Level, most: int, cells: int, nodes: Mapping[str, Site], kept: bool) -> str:
    names = {site.domain(level, node) for node, site in nodes.items()}
    if level != "node" and not any(getattr(site, level) for site in nodes.values()):
        return f"by {level} unknown: no node with slots has a {level} label"
    have = f"1 {level} has" if len(names) == 1 else f"{len(names)} {level}s have"
    worst = f"up to {most} copies of a shard in one"
    if len(names) < cells:
        return f"by {level} impossible: only {have} slots for {cells} cells ({worst})"
    if kept:
        return f"by {level} not now: nobody who lives is moved for it, and the free slots do not allow it ({worst})"
    return f"by {level} impossible: {have} slots, but too unevenly ({worst})"


def split_groups(seats: Mapping[Seat, str], mesh: Mesh, slots: int) -> list[str]:
    """Sentences on expert groups that are not inside one node, and on ranks that `ep_node` takes for one node's and
    are not; none if there are none. `slots`: of the largest node."""
    found = []
    groups = spans(seats, mesh.ep)
    if split := sum(n > 1 for n in groups):
        few = f"the largest node has {slots} slots" if slots < mesh.ep else "single nodes have too few free slots"
        found.append(f"{split} of {len(groups)} expert groups of {mesh.ep} span up to {max(groups)} nodes: {few}")
    runs = spans(seats, mesh.ep_node)
    if split := sum(n > 1 for n in runs):
        found.append(
            f"{split} of {len(runs)} times {mesh.ep_node} ranks (ep_node) are not on one node: between them, what is "
            "counted as inside a node is sent between nodes; nothing else changes"
        )
    return found


def spans(seats: Mapping[Seat, str], size: int) -> list[int]:
    """On how many nodes each run of `size` ranks lies; of single ranks there is nothing to say."""
    if size == 1:
        return []
    nodes: dict[tuple[int, int], set[str]] = {}
    for seat, node in seats.items():
        nodes.setdefault((seat.cell, seat.rank // size), set()).add(node)
    return [len(run) for run in nodes.values()]


def too_few(mesh: Mesh, slots: Mapping[str, int]) -> UserError:
    """Not even one cell fits: with the numbers and the nearest settings that would."""
    total = sum(slots.values())
    have = ", ".join(f"{name}: {n}" for name, n in sorted(slots.items())[:8]) or "no node has any"
    have += f", and {len(slots) - 8} more nodes" if len(slots) > 8 else ""
    remedy = "add nodes (`shoal cluster add-node`), end another run, or lower workers_per_cell"
    if fits := nearest(mesh, total):
        remedy += " (nearest that fit: " + "; ".join(fits) + ")"
    cell = f"a cell (pp {mesh.pp} x fsdp {mesh.fsdp} x ep {mesh.ep})"
    return UserError(f"{cell} needs {mesh.workers} slots, the cluster has {total} free ({have})", remedy)


def too_small(mesh: Mesh, slots: Mapping[str, int]) -> UserError:
    """No node has the slots that `ep_node` counts on."""
    most = max(slots.values())
    fits = max(n for n in range(1, most + 1) if mesh.ep % n == 0)
    return UserError(
        f"expert groups of {mesh.ep} count on {mesh.ep_node} ranks a node (ep_node), the largest node has {most} slots",
        f"set parallel.ep_node to {fits}, or add nodes of {mesh.ep_node} slots",
    )


def nearest(mesh: Mesh, total: int) -> list[str]:
    """One axis lowered so that a cell fits `total` slots: to the largest size, or for pp and ep divisor, that does."""
    found = []
    for axis in ("fsdp", "pp", "ep"):
        size = int(getattr(mesh, axis))
        rest = mesh.workers // size
        fitting = [n for n in range(1, size) if n * rest <= total and (axis == "fsdp" or size % n == 0)]
        if fitting:
            found.append(f"{axis} {fitting[-1]}: {fitting[-1] * rest} slots")
    return found
