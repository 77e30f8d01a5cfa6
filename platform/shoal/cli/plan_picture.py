"""The picture of `shoal plan --picture`, from an estimate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoal.cli.bill import Failing
    from shoal.report.pipeline import Bar
    from shoal_workloads.estimate import Reckoned

__all__ = ["draw_plan"]


def draw_plan(found: Reckoned, failing: Failing | None, path: Path) -> None:
    """Write the picture of an estimate.

    Raises:
        UserError: it cannot be written.
    """
    from shoal.report.pipeline import Bar
    from shoal.report.planned import Cost, Saved, Traffic, plan_figure
    from shoal.report.style import draw
    from shoal_workloads.estimate import Estimate, memory_over_step

    lanes: list[list[Bar]] = []
    traffic = None
    memory: Sequence[tuple[float, Mapping[str, int]]] = [(0.0, found.parts)]
    if isinstance(found, Estimate):
        memory = memory_over_step(found)
    if isinstance(found, Estimate) and found.pipeline is not None:
        lanes = [[Bar(str(span.step), span.start, span.end) for span in rank] for rank in found.pipeline.timeline.spans]
        hidden, exposed = ([[one[place] for one in rank] for rank in found.pipeline.exchange] for place in (0, 1))
        after = ("gather and reduce", "sum across cells", "optimizer")
        traffic = Traffic(hidden, exposed, {name: found.step[name] for name in after if found.step.get(name)})
    policies, intervals = ([], []) if failing is None else (failing.policies, failing.intervals)
    costs = [Cost(one.tried.policy.name, one.dollars, one.least, one.most) for one in policies if one.most < inf]
    saved = [Saved(one.every, one.dollars, one.reckoned) for one in intervals if one.dollars < inf]
    figure = plan_figure(memory, found.cluster.hardware.memory_gb * 1e9, lanes, costs, saved, traffic)
    draw(figure, "The plan of a run", path)
