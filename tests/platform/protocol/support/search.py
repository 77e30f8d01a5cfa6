"""Exhaustive search, depth first: every state is visited once, and every path ends."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from shoal.decisions.modes import Ended, Gathering
from tests.platform.protocol.support.actors import Violation, World
from tests.platform.protocol.support.model import Model
from tests.platform.protocol.support.shapes import fits

__all__ = ["Found", "explore"]


@dataclass
class Found:
    """What a search saw. `ends`: how many final states, by what they are."""

    states: int = 0
    moves: int = 0
    ends: Counter[str] = field(default_factory=Counter)


def ending(model: Model, world: World) -> str:
    """What a state is in which nothing can happen any more.

    Raises:
        Violation: it is no state to stop in.
    """
    state = model.states[world.controller]
    if isinstance(state.mode, Ended):
        if len(world.log) == model.steps:
            return "done"
        raise Violation(f"I6: the run ended with {len(world.log)} steps on record")
    living = sum(model.crew[number].life == "alive" for number in world.workers)
    if isinstance(state.mode, Gathering) and not fits(state.shape, living):
        return "waits for a worker"
    raise Violation(f"I6: nothing can happen, and the run is {type(state.mode).__name__} with {living} living workers")


def explore(model: Model, limit: int = 10_000_000) -> Found:
    """Visit everything that can be reached.

    Raises:
        Violation: an invariant does not hold, with the moves that led there; a path runs in a circle, or `limit` states
            were not enough.
    """
    found = Found()
    open_path = {model.start}
    seen = {model.start}
    stack = [("start", model.start, iter(model.moves(model.start)), [0])]
    try:
        while stack:
            _, world, moves, count = stack[-1]
            step = next(moves, None)
            if step is None:
                if not count[0]:
                    found.ends[ending(model, world)] += 1
                stack.pop()
                open_path.discard(world)
                continue
            label, after = step
            found.moves += 1
            count[0] += label.split(": ")[-1] not in ("crash", "cut", "glitch", "nothing moves")
            if after in open_path:
                raise Violation(f"I6: a circle, by: {label}")
            if after not in seen:
                seen.add(after)
                open_path.add(after)
                stack.append((label, after, iter(model.moves(after)), [0]))
                if len(seen) > limit:
                    raise Violation(f"more than {limit} states")
    except Violation as broken:
        path = [label for label, *_ in stack]
        raise Violation("\n".join([str(broken), *path])) from broken
    found.states = len(seen)
    return found
