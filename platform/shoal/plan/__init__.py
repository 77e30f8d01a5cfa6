"""Who sits where: pure functions from the cluster's nodes to the seats of cells. See docs/parallel.md."""

from shoal.plan.assign import Assignment, Place, Wanted, first_plan, plan
from shoal.plan.cluster import LEVELS, NOWHERE, Level, Node, Site, Slots
from shoal.plan.heal import Healer
from shoal.plan.spares import spare_slots
from shoal_core.mesh import Mesh, Seat, cell_mesh

__all__ = [
    "LEVELS",
    "NOWHERE",
    "Assignment",
    "Healer",
    "Level",
    "Mesh",
    "Node",
    "Place",
    "Seat",
    "Site",
    "Slots",
    "Wanted",
    "cell_mesh",
    "first_plan",
    "plan",
    "spare_slots",
]
