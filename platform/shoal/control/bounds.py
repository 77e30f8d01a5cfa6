"""What is counted while a run gets nowhere, and where patience with it ends. Pure.

Every attempt to go on costs workers, spares and time. The counts start anew with a committed step (those of a node
with a worker that starts on it), so a run that gets on reaches no bound however often it recovers.
"""

from __future__ import annotations

from shoal.control.messages import Action, Journal
from shoal.control.state import State

__all__ = [
    "FATAL",
    "FRUITLESS",
    "SPENT",
    "STILL",
    "STRIKES",
    "UNBORN",
    "WINDOW",
    "committed",
    "count_fatal",
    "exhausted",
    "strike",
    "unborn",
]

FRUITLESS = 20
"""Generations and formations without a committed step after which a run ends instead of healing in circles."""
FATAL = 4
"""Generations in a row that a worker's death ended at the same step: it is the step that kills, not the nodes."""
SPENT = 8
"""Workers, beside twice those that the run has seats for, that may die without a committed step between them."""
STILL = 1
"""Standstills without a new step between them that are answered by forming again; one more ends the run."""
UNBORN = 3
"""Workers in a row that die before their first word: on one node it is set aside, on all the run ends."""
STRIKES, WINDOW = 4, 50
"""A node that loses workers at STRIKES different steps within WINDOW committed ones is set aside."""


def exhausted(state: State) -> str:
    """Why the run is to be given up; "" while it is not."""
    tries = sum(state.unborn.values())
    if tries >= UNBORN and not state.workers and not state.expected:
        return f"workers cannot start: {state.cause} (the last of {tries}, on {', '.join(sorted(state.unborn))})"
    step, times = state.fatal
    if times >= FATAL and step == state.committed:
        return f"step {step} killed workers {FATAL} times in a row, whoever took it: not a fault of the nodes"
    if state.still > STILL:
        return f"{state.cause}, {state.still} times without a new step between them"
    if state.fruitless > FRUITLESS:
        return f"{state.fruitless} attempts in a row committed no step; the last: {state.cause}"
    if state.spent > SPENT + 2 * state.shape.cells * state.shape.workers:
        return f"{state.spent} workers died without a committed step between them; the last: {state.cause}"
    return ""


def committed(state: State, steps: int) -> None:
    """The run gets on; what it does again after it went back is no news."""
    state.committed = steps
    state.fruitless = state.spent = 0
    if steps > state.furthest:
        state.furthest, state.still = steps, 0


def count_fatal(state: State) -> None:
    """A death ended the generation."""
    step, times = state.fatal
    state.fatal = (state.committed, times + 1 if step == state.committed else 1)


def strike(state: State, node: str, actions: list[Action]) -> None:
    """Count a node's failures by step (a node that dies takes all its workers at once)."""
    steps = tuple(s for s in state.strikes.get(node, ()) if s > state.committed - WINDOW and s != state.committed)
    state.strikes[node] = (*steps, state.committed)
    if len(state.strikes[node]) >= STRIKES:
        set_aside(state, node, f"it lost workers at {STRIKES} of the last {WINDOW} steps", actions)


def unborn(state: State, node: str, why: str, actions: list[Action]) -> None:
    """Count a worker that could not start. A node where none can is set aside."""
    state.cause = why
    state.unborn[node] = state.unborn.get(node, 0) + 1
    if state.unborn[node] >= UNBORN:
        set_aside(state, node, f"{UNBORN} workers in a row could not start on it ({why})", actions)


def set_aside(state: State, node: str, reason: str, actions: list[Action]) -> None:
    if node not in state.aside:
        state.aside |= {node}
        actions.append(Journal("node_aside", {"node": node, "reason": f"{reason}: no cell is put on it any more"}))
