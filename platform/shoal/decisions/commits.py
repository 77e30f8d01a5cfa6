"""What is said of committed steps: their record, and whether their figures can be trusted. Pure."""

from __future__ import annotations

from shoal.decisions import bounds
from shoal.decisions.actions import Action, Fence, Journal, PutOnRecord
from shoal.decisions.figures import diverged, finite, suspects
from shoal.decisions.leaving import commit_late, damage, give_up
from shoal.decisions.seating import spares
from shoal.decisions.state import State
from shoal.protocol.said import Committed

__all__ = ["committed", "put_on_record"]

SLOW = "slow step after step"


def committed(state: State, event: Committed, actions: list[Action]) -> None:
    """A worker of the current generation has committed. The first word of a step is its record. One word of a step says
    how every worker did; it need not be the first."""
    if event.steps > state.known and event.steps >= state.committed:
        state.newest = event
    news = event.steps > state.committed
    if news:
        bounds.committed(state, event.steps)
    if event.steps > state.recorded:
        state.unrecorded.setdefault(event.steps, event)
        seat = state.seats.get(event.worker)
        if event.steps == state.recorded + 1 or (seat is not None and seat.rank == 0):
            put_on_record(state, event.steps, actions)
    if news:
        commit_late(state, list(state.acks), actions)
    mistrust(state, event, actions)
    pace(state, event, actions)


def put_on_record(state: State, steps: int | None, actions: list[Action]) -> None:
    """Put what is known of committed steps on record, up to `steps` or all of it, and make of it what is to be made.

    The first worker of a cell says every step, in order. Any other says its last one only, which may be heard before
    what the first ones said of the steps before: such a word waits for theirs, or for the end of the generation.
    """
    for step in sorted(state.unrecorded):
        if steps is None or step <= steps or step == state.recorded + 1:
            word = state.unrecorded.pop(step)
            state.recorded = step
            state.watchdog.step(word.seconds)
            actions.append(PutOnRecord(word, state.live))
            count(state, word, actions)
            roll_back(state, word, actions)


def count(state: State, event: Committed, actions: list[Action]) -> None:
    """End a run whose steps are no numbers any more: its state does not come back by itself."""
    tally = state.tally
    tally.not_finite = 0 if finite(event.metrics) else tally.not_finite + 1
    if tally.not_finite > state.shape.not_finite:
        give_up(state, diverged(tally.not_finite), actions)


def roll_back(state: State, event: Committed, actions: list[Action]) -> None:
    """Tell of a bad step that was taken back; end a run that has too many."""
    step, back, tally = event.steps - 1, event.rolled_back, state.tally
    if back is None:
        return
    samples = (state.shape.samples(back)[0], state.shape.samples(step)[1])
    actions.append(Journal("rolled_back", {"step": step, "to": back, "samples": samples}))
    tally.roll_backs += 1
    if tally.roll_backs > state.shape.roll_backs:
        give_up(state, f"rolled back more than {state.shape.roll_backs} times, last at step {step}", actions)


def mistrust(state: State, event: Committed, actions: list[Action]) -> None:
    """Break cells whose state differs from that of most, to be healed from them."""
    step = event.steps - 1
    if not event.checksums:
        return
    for cell in suspects(event.checksums, state.live, state.shape.workers):
        actions.append(Journal("disagreement", {"step": step, "cell": cell, "checksums": event.checksums}))
        state.tainted.update(state.members([cell]))
        first = next(state.members([cell]), f"cell {cell}")
        damage(state, cell, f"{first}: cell {cell}'s state differed from the others' at step {step}", actions)


def pace(state: State, event: Committed, actions: list[Action]) -> None:
    """Name stragglers, and replace them if the job says so and somebody is there to take their seat."""
    crew = state.crew() if event.pace else []
    if not crew or len(event.pace) != len(crew):
        return  # committed late, not voted; or the membership changed since
    if state.shape.choose is not None:
        state.seen = state.seen.paced(state.shape.mesh, event.pace)
    cells = [state.seats[worker].cell for worker in crew]
    for slow in state.stragglers.step(crew, cells, event.pace):
        fields = {"actor": slow.worker, "node": state.workers[slow.worker].node}
        actions.append(Journal("straggler", fields | {"seconds": slow.seconds, "typical": slow.typical}))
        if state.shape.replace_stragglers and spares(state):
            actions.append(Fence(slow.worker, SLOW))
