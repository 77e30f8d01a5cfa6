"""1F1B (PipeDream-flush) and interleaved 1F1B (Megatron-LM, arXiv 2104.04473, section 2.2)."""

from __future__ import annotations

from collections import Counter

from shoal_workloads.parallel.schedule.actions import Action, Kind, Step

__all__ = ["interleaved", "one_f_one_b", "rounds"]


def one_f_one_b(rank: int, ranks: int, micro_batches: int) -> list[Step]:
    """The order on `rank`: forwards until the first backward can come, then one of each in turn."""
    warm = min(ranks - 1 - rank, micro_batches)
    order: list[Step] = [Action("F", rank, i) for i in range(warm)]
    for i in range(warm, micro_batches):
        order += [Action("F", rank, i), Action("B", rank, i - warm)]
    return order + [Action("B", rank, i) for i in range(micro_batches - warm, micro_batches)]


def rounds(ranks: int, micro_batches: int) -> int:
    """Into how many rounds interleaved 1F1B cuts the micro-batches; they must divide evenly."""
    return max(1, micro_batches // ranks)


def interleaved(rank: int, ranks: int, virtual: int, micro_batches: int) -> list[Step]:
    """The order on `rank` with `virtual` stages: a round of micro-batches through one stage, then through the next.

    `micro_batches` is a multiple of `rounds`, not of `ranks` as in the paper (as in torch's schedule).
    """
    a_round = micro_batches // rounds(ranks, micro_batches)
    total = virtual * micro_batches
    warm = min((virtual - 1) * a_round + 2 * (ranks - 1 - rank), total)
    seen: Counter[tuple[Kind, int]] = Counter()

    def take(kind: Kind, local: int) -> Action:
        seen[kind, local] += 1
        return Action(kind, local * ranks + rank, seen[kind, local] - 1)

    def forward(place: int) -> Action:
        return take("F", place // a_round % virtual)

    def backward(place: int) -> Action:
        return take("B", virtual - 1 - place // a_round % virtual)

    order: list[Step] = [forward(place) for place in range(warm)]
    for place in range(warm, total):
        order += [forward(place), backward(place - warm)]
    return order + [backward(place) for place in range(total - warm, total)]
