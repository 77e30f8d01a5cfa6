"""What is counted while a run gets nowhere, and where patience with it ends. Pure.

Every attempt to go on costs workers, spares and time. The counts start anew with a committed step (those of a node
with a worker that starts on it), so a run that gets on reaches no bound however often it recovers.
"""

from __future__ import annotations

from shoal.decisions.actions import Action, Journal
from shoal.decisions.state import State

__all__ = [
    "ERRED",
    "FATAL",
    "FRUITLESS",
    "SPENT",
    "STILL",
    "STRIKES",
    "UNBORN",
    "WINDOW",
    "committed",
    "count_fatal",
    "counted",
    "erred",
    "exhausted",
    "out_of_memory",
    "strike",
    "struck",
    "turned_back",
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
ERRED = 20
"""Times that the controller's own code may fail over words of workers without a step put on record between them."""
STRIKES, WINDOW = 4, 50
"""A node that loses workers at STRIKES different steps within WINDOW committed ones is set aside."""


def exhausted(state: State) -> str:
    """Why the run is to be given up; "" while it is not."""
    tally = state.tally
    tries = sum(tally.unborn.values())
    if tries >= UNBORN and not state.workers and not state.expected:
        return f"workers cannot start: {tally.cause} (the last of {tries}, on {', '.join(sorted(tally.unborn))})"
    step, times = tally.fatal
    if times >= FATAL and step == state.committed:
        return f"step {step} killed workers {FATAL} times in a row, whoever took it: not a fault of the nodes"
    if tally.still > STILL:
        return f"{tally.cause}, {tally.still} times without a new step between them"
    if tally.fruitless > FRUITLESS:
        return f"{tally.fruitless} attempts in a row committed no step; the last: {tally.cause}"
    if tally.spent > SPENT + 2 * state.shape.wanted:
        return f"{tally.spent} workers died without a committed step between them; the last: {tally.cause}"
    return ""


def erred(state: State, why: str) -> str:
    """Count a failure of the controller's own. Returns why the run is to be given up for it, or ""."""
    state.tally.erred += 1
    times = state.tally.erred
    return f"the controller failed over {times} words of workers in a row, the last time {why}" if times > ERRED else ""


def committed(state: State, steps: int) -> None:
    """The run gets on; what it does again after it went back is no news."""
    state.committed, tally = steps, state.tally
    state.formers = ()
    tally.fruitless = tally.spent = 0
    if steps > tally.furthest:
        tally.furthest, tally.still = steps, 0


def struck(deaths: tuple[int, int], *, announced: bool) -> tuple[int, int]:
    """A worker with a seat died, on a node that was announced to go or not."""
    return deaths[0] + announced, deaths[1] + (not announced)


def counted(backs: tuple[int, int], deaths: tuple[int, int]) -> tuple[int, int]:
    """The run goes back to what was saved: for a preemption, if all who died stood on nodes that were announced."""
    announced, others = deaths
    preempted = bool(announced) and not others
    return backs[0] + (not preempted), backs[1] + preempted


def turned_back(state: State) -> str:
    """Count that the run goes back to what was saved. Returns why it is to be given up instead, or ""."""
    tally, shape = state.tally, state.shape
    tally.backs = counted(tally.backs, tally.deaths)
    for times, most, what in zip(
        tally.backs, (shape.failures, shape.preemptions), ("failures", "preemptions"), strict=True
    ):
        if most is not None and times > most:
            allowed = "none is allowed" if not most else f"{most} are allowed"
            return f"no living cell holds every shard, after {what}: to go back to what was saved, {allowed}"
    return ""


def out_of_memory(state: State, node: str, message: str) -> str:
    """Count a device whose memory was full at the pending step. Returns why the run is to be given up for it, or "":
    on one node it may be another process's doing, on two it is what the step takes."""
    tally = state.tally
    at, full = tally.full
    full = {**(full if at == state.committed else {}), node: message}
    tally.full = (state.committed, full)
    if len(full) < 2:
        return ""
    told = "; ".join(f"{node}: {message}" for node, message in sorted(full.items()))
    return (
        f"step {state.committed} does not fit into the devices' memory, on {len(full)} nodes: it is the job, "
        f"not a node ({told}): take smaller micro-batches, recompute more, or give each cell more workers"
    )


def count_fatal(state: State) -> None:
    """A death ended the generation."""
    step, times = state.tally.fatal
    state.tally.fatal = (state.committed, times + 1 if step == state.committed else 1)


def strike(state: State, node: str, actions: list[Action]) -> None:
    """Count a node's failures by step (a node that dies takes all its workers at once)."""
    strikes, now = state.tally.strikes, state.committed
    strikes[node] = (*(s for s in strikes.get(node, ()) if s > now - WINDOW and s != now), now)
    if len(strikes[node]) >= STRIKES:
        set_aside(state, node, f"it lost workers at {STRIKES} of the last {WINDOW} steps", actions)


def unborn(state: State, node: str, why: str, actions: list[Action]) -> None:
    """Count a worker that could not start. A node where none can is set aside."""
    counts = state.tally.unborn
    state.tally.cause, counts[node] = why, counts.get(node, 0) + 1
    if counts[node] >= UNBORN:
        set_aside(state, node, f"{UNBORN} workers in a row could not start on it ({why})", actions)


def set_aside(state: State, node: str, reason: str, actions: list[Action]) -> None:
    if node not in state.aside:
        state.aside |= {node}
        actions.append(Journal("node_aside", {"node": node, "reason": f"{reason}: no cell is put on it any more"}))
