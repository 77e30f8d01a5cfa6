"""The data a step waits for, and the order in which all ranks together can run a schedule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import replace

from shoal_workloads.parallel.schedule.actions import Action, Kind, Pair, Schedule, Step

__all__ = ["actions_of", "check", "needs", "product", "restrict", "walk"]


def actions_of(step: Step) -> tuple[Action, ...]:
    """The one or two actions of a step."""
    return (step.forward, step.backward) if isinstance(step, Pair) else (step,)


def restrict(schedule: Schedule, present: Collection[int]) -> Schedule:
    """The schedule without the micro-batches that are not `present`; a pair that loses one action becomes the other."""

    def left(step: Step) -> Step | None:
        actions = [action for action in actions_of(step) if action.micro_batch in present]
        return step if len(actions) == len(actions_of(step)) else actions[0] if actions else None

    orders = (tuple(found for step in order if (found := left(step)) is not None) for order in schedule.orders)
    return replace(schedule, orders=tuple(orders))


def needs(action: Action, stages: int) -> tuple[tuple[Kind, int, int], ...]:
    """What must be done before: (kind, stage, micro-batch), where `B` stands for the input's gradient, I or B."""
    stage, micro_batch = action.stage, action.micro_batch
    if action.kind == "F":
        return (("F", stage - 1, micro_batch),) if stage else ()
    if action.kind == "W":
        return (("B", stage, micro_batch),)
    own: tuple[Kind, int, int] = ("F", stage, micro_batch)
    return (own,) if stage == stages - 1 else (own, ("B", stage + 1, micro_batch))


def product(action: Action) -> tuple[Kind, int, int]:
    """What the action is to those that need it: see `needs`."""
    return ("B" if action.kind == "I" else action.kind, action.stage, action.micro_batch)


def walk(schedule: Schedule) -> Iterator[tuple[int, Step]]:
    """(rank, step) of all ranks, in an order in which nothing is asked for before it is there.

    Raises:
        ValueError: the orders wait for each other for ever.
    """
    done: set[tuple[Kind, int, int]] = set()
    places = [0] * schedule.ranks
    waiting: dict[tuple[Kind, int, int], list[int]] = {}
    ready = list(range(schedule.ranks))
    while ready:
        rank = ready.pop()
        while places[rank] < len(schedule.orders[rank]):
            step = schedule.orders[rank][places[rank]]
            missing = [n for a in actions_of(step) for n in needs(a, schedule.stages) if n not in done]
            if missing:
                waiting.setdefault(missing[0], []).append(rank)
                break
            yield rank, step
            places[rank] += 1
            for action in actions_of(step):
                done.add(product(action))
                ready += waiting.pop(product(action), [])
    stuck = [rank for rank in range(schedule.ranks) if places[rank] < len(schedule.orders[rank])]
    if stuck:
        first = stuck[0]
        raise ValueError(
            f"{schedule.name}: ranks {stuck} wait for each other; rank {first} at "
            f"{schedule.orders[first][places[first]]}"
        )


def check(schedule: Schedule) -> None:
    """Prove that the schedule is one: it can run to its end, and every micro-batch goes forward and backward through
    every stage once, on the rank that holds the stage.

    Raises:
        ValueError: it is not; the first thing that is wrong.
    """
    seen: Counter[tuple[str, int, int]] = Counter()
    for rank, step in walk(schedule):
        if isinstance(step, Pair) and (step.forward.kind, step.backward.kind) != ("F", "B"):
            raise ValueError(f"{schedule.name}: {step} does not pair a forward with a full backward")
        for action in actions_of(step):
            if schedule.rank_of(action.stage, action.micro_batch) != rank:
                raise ValueError(f"{schedule.name}: {action} is not at home on rank {rank}")
            for part in ("I", "W") if action.kind == "B" else (action.kind,):
                seen[part, action.stage, action.micro_batch] += 1
    wanted = {
        (part, stage, micro_batch)
        for part in ("F", "I", "W")
        for stage in range(schedule.stages)
        for micro_batch in range(schedule.micro_batches)
    }
    wrong = sorted(key for key in wanted | set(seen) if seen[key] != 1 or key not in wanted)
    if wrong:
        part, stage, micro_batch = wrong[0]
        raise ValueError(f"{schedule.name}: {part}{stage}.{micro_batch} happens {seen[wrong[0]]} times")
