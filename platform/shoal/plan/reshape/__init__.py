"""Cells of another shape, when that uses more of the workers that live: which shapes a run may take, what each is worth
and costs, who would sit where. Pure; how a run gets there stands in `decisions/`."""

from shoal.plan.reshape.bounds import Bounds, Limits, bounds_of, check_limits, remark
from shoal.plan.reshape.choose import Choice, Present, Stay, choose
from shoal.plan.reshape.costs import Costs, Load, busy, speed
from shoal.plan.reshape.place import Survivor
from shoal.plan.reshape.room import Room
from shoal.plan.reshape.seen import Seen, Took, learnt

__all__ = [
    "Bounds",
    "Choice",
    "Costs",
    "Limits",
    "Load",
    "Present",
    "Room",
    "Seen",
    "Stay",
    "Survivor",
    "Took",
    "bounds_of",
    "busy",
    "check_limits",
    "choose",
    "learnt",
    "remark",
    "speed",
]
