"""What a run lacks of the cluster: slots beyond those that it holds or could have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from shoal.plan.cluster import Node

__all__ = ["lacking"]


def lacking(nodes: Iterable[Node], held: Mapping[str, int], wanted: int, unit: int = 1) -> tuple[int, ...]:
    """Slots on nodes that are not there yet, for a run that wants so many in all; () if it lacks none.

    Args:
        nodes: those that may be used; how many slots each has does not matter.
        held: the run's workers, living or starting, by node.
        unit: slots that are to be on one node.

    Returns:
        Slots to ask for at once on one node, for each such piece: units first, then what is left, one by one.
    """
    reach = sum(max(node.slots, held.get(node.name, 0)) for node in nodes)
    units, rest = divmod(max(0, wanted - reach), unit)
    return (unit,) * units + (1,) * (rest if unit > 1 else 0)
