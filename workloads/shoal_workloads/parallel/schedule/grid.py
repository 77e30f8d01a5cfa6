"""A schedule's timeline as text: a row a rank, time to the right, to be read in a terminal."""

from __future__ import annotations

from itertools import pairwise

from shoal_workloads.parallel.schedule.actions import Pair, Schedule, Step
from shoal_workloads.parallel.schedule.simulate import Timeline
from shoal_workloads.parallel.schedule.walk import actions_of

__all__ = ["KEY", "grid"]

KEY = """F forward, B backward, I gradient of the input, W of the weights, & two at once,
small letters: the second stage of a rank, . idle"""
MOST_BLOCKS = 4


def grid(schedule: Schedule, timeline: Timeline, width: int) -> list[str]:
    """The lines of the picture, none longer than `width` characters where that can be; blocks of time one below the
    other. A schedule that would take more than `MOST_BLOCKS` blocks loses the numbers of the micro-batches."""
    unit = min(span.end - span.start for rank in timeline.spans for span in rank if span.end > span.start)
    columns = round(timeline.makespan / unit)
    margin = len(f"rank {schedule.ranks - 1}") + 2
    cell = len(str(schedule.micro_batches - 1)) + 2
    if columns > MOST_BLOCKS * ((width - margin) // cell):
        cell = 1
    rows = []
    for rank, spans in enumerate(timeline.spans):
        row = [".".ljust(cell)] * columns
        for span in spans:
            start = min(round(span.start / unit), columns - 1)
            length = max(1, round(span.end / unit) - start)
            text = _label(schedule, rank, span.step) if cell > 1 else _letter(schedule, rank, span.step) * length
            text = text[: cell * length - (cell > 1)].ljust(cell * length)
            row[start : start + length] = [text[at : at + cell] for at in range(0, len(text), cell)]
        rows.append(row)
    a_line = max(1, (width - margin) // cell)
    lines: list[str] = []
    for start, end in pairwise([*range(0, columns, a_line), columns]):
        lines.append(f"{'time':<{margin}}{start * unit:g}")
        for rank, row in enumerate(rows):
            lines.append(f"{f'rank {rank}':<{margin}}{''.join(row[start:end])}".rstrip())
        lines.append("")
    return lines[:-1]


def _letter(schedule: Schedule, rank: int, step: Step) -> str:
    """The kind of a step, small where the micro-batch meets the rank's second stage (third, ...)."""
    if isinstance(step, Pair):
        return "&"
    return step.kind if step.stage == schedule.stages_of(rank)[0] else step.kind.lower()


def _label(schedule: Schedule, rank: int, step: Step) -> str:
    return "&".join(_letter(schedule, rank, action) + str(action.micro_batch) for action in actions_of(step))
