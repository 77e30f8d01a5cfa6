"""The end of a generation: what is committed, and so who goes on and by which rung. Pure.

Decided only when every living worker has answered. The rule: if anyone committed a step, everyone alive commits it. See
docs/commit-protocol.md.
"""

from __future__ import annotations

from shoal.decisions.actions import Action
from shoal.decisions.commits import put_on_record
from shoal.decisions.generation import begin
from shoal.decisions.halt import end
from shoal.decisions.modes import Draining, Gathering, Pausing
from shoal.decisions.rungs import descend, go_on
from shoal.decisions.state import State

__all__ = ["conclude"]


def conclude(state: State, mode: Pausing | Draining, actions: list[Action]) -> None:
    """Nobody alive owes an answer: end the generation `mode`."""
    steps = state.committed
    put_on_record(state, None, actions)
    state.evaluated = max([state.evaluated, *(ack.evaluated for ack in mode.acks.values())])
    broken = mode.broken if isinstance(mode, Draining) else frozenset()
    healthy = [c for c in mode.live if c not in broken]
    whole = [c for c in healthy if all(mode.acks[w].steps == steps for w in state.crew([c]))]
    if not whole:
        start_over(state, mode, actions)
    elif state.halt is None:
        go_on(state, mode, whole, actions)
    elif state.checkpoint < steps:
        begin(state, whole[:1], {}, actions)  # it saves, and halts
    else:
        end(state, actions)


def start_over(state: State, mode: Pausing | Draining, actions: list[Action]) -> None:
    """No cell is whole any more: go on from what living workers still hold, else from copies or a checkpoint."""
    held = {
        worker: ack.rank
        for worker, ack in mode.acks.items()
        if ack.rank >= 0 and ack.steps == state.committed and worker not in state.tainted
    }
    state.mode, state.successors = Gathering(held), {}
    state.generation += 1  # nothing that is still said of the one that ended counts any more
    state.tally.fruitless += 1
    descend(state, actions)
