"""Which workers share a line of a picture of nodes over time. Pure."""

from __future__ import annotations

from collections.abc import Container, Iterable

from shoal.report.history import Stay

__all__ = ["MOST_LANES", "lanes"]

MOST_LANES = 64


def lanes(stays: Iterable[Stay], struck: Container[str | None]) -> list[tuple[str, list[Stay]]]:
    """`(node, stays)` a lane: workers one after the other on one slot of a node share a lane. When there are more than
    `MOST_LANES`, those of the nodes that were `struck` (that saw a death) come first and the rest is left out."""
    found: list[tuple[str, list[Stay]]] = []
    by_actor: dict[tuple[str, str], list[Stay]] = {}
    for stay in stays:
        by_actor.setdefault((stay.node, stay.actor), []).append(stay)
    for (node, _), mine in sorted(by_actor.items(), key=lambda item: (item[0][0], item[1][0].start)):
        free = (lane for name, lane in found if name == node and lane[-1].end <= mine[0].start)
        lane = next(free, None)
        if lane is None:
            found.append((node, list(mine)))
        else:
            lane.extend(mine)
    if len(found) > MOST_LANES:
        found = sorted(found, key=lambda item: item[0] not in struck)[:MOST_LANES]
    return sorted(found, key=lambda item: item[0])
