"""Zero-bubble schedules: gradients of weights wait and fill the gaps (arXiv 2401.10241).

ZB1P keeps 1F1B's memory (the paper's ZB-H1); ZBV puts the two ends of the model on rank 0 (its section 6).
"""

from __future__ import annotations

from collections import Counter

from shoal_workloads.parallel.schedule.actions import Action, Kind, Step

__all__ = ["zb1p", "zbv"]


def zb1p(rank: int, ranks: int, micro_batches: int) -> list[Step]:
    """The order on `rank`: 1F1B's, with the weights' gradients `rank` micro-batches later than the inputs'."""
    warm = min(ranks - 1 - rank, micro_batches)
    order: list[Step] = [Action("F", rank, i) for i in range(warm)]
    for i in range(micro_batches):
        if warm + i < micro_batches:
            order.append(Action("F", rank, warm + i))
        order.append(Action("I", rank, i))
        if i >= rank:
            order.append(Action("W", rank, i - rank))
    return order + [Action("W", rank, i) for i in range(max(0, micro_batches - rank), micro_batches)]


def zbv(rank: int, ranks: int, micro_batches: int) -> list[Step]:
    """The order on `rank`, which holds the stages `rank` ("down") and 2 * ranks - 1 - rank ("up").

    No bubble but that of filling where F = I = W. It is made for at least 2 * ranks - 1 micro-batches; with fewer, the
    actions of those that are not there are left out.
    """
    down, up = rank, 2 * ranks - 1 - rank
    count = max(2 * ranks - 1, micro_batches)
    done: Counter[tuple[Kind, int]] = Counter()
    order: list[Step] = []

    def add(kind: Kind, stage: int) -> None:
        if done[kind, stage] < micro_batches:
            order.append(Action(kind, stage, done[kind, stage]))
        done[kind, stage] += 1

    # Fill the pipeline, down and then up.
    for _ in range(2 * (ranks - rank) - 1):
        add("F", down)
    for _ in range(rank):
        add("F", up)
        add("F", down)
    # The first backwards, each with its weights' gradients.
    for _ in range(ranks - rank):
        add("F", up)
        add("I", up)
        add("W", up)
    # The steady state: F, I and W of both stages in turn.
    while done["F", up] < count:
        if done["F", down] < count:
            add("F", down)
        add("I", down)
        add("W", down)
        add("F", up)
        add("I", up)
        add("W", up)
    # Empty it: inputs' gradients first, weights' gradients in the gaps.
    for _ in range(rank):
        add("I", down)
        add("I", up)
    for _ in range(ranks - rank):
        add("I", down)
        add("W", down)
    for stage in (up, down):
        while done["W", stage] < done["I", stage]:
            add("W", stage)
    return order
