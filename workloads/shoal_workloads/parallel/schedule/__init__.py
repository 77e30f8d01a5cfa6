"""Pipeline schedules: who does what in which order, how long it takes, and which layers each stage holds."""

from shoal_workloads.parallel.schedule.actions import LAYOUTS, ZERO_BUBBLE, Action, Kind, Pair, Schedule, Step
from shoal_workloads.parallel.schedule.balance import split, stage_flops, stage_layers
from shoal_workloads.parallel.schedule.bounded import bounded
from shoal_workloads.parallel.schedule.build import build, needed_micro_batches, schedule_of, stages_of_model
from shoal_workloads.parallel.schedule.picture import mean_times, picture
from shoal_workloads.parallel.schedule.simulate import Costs, Span, Timeline, simulate, timeline
from shoal_workloads.parallel.schedule.turns import Line, Transfer, Turn, channels, turns
from shoal_workloads.parallel.schedule.walk import actions_of, check, needs, product, restrict, walk

__all__ = [
    "LAYOUTS",
    "ZERO_BUBBLE",
    "Action",
    "Costs",
    "Kind",
    "Line",
    "Pair",
    "Schedule",
    "Span",
    "Step",
    "Timeline",
    "Transfer",
    "Turn",
    "actions_of",
    "bounded",
    "build",
    "channels",
    "check",
    "mean_times",
    "needed_micro_batches",
    "needs",
    "picture",
    "product",
    "restrict",
    "schedule_of",
    "simulate",
    "split",
    "stage_flops",
    "stage_layers",
    "stages_of_model",
    "timeline",
    "turns",
    "walk",
]
