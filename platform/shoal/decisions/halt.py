"""The end of a run, and what is said of its state then. Pure."""

from __future__ import annotations

from dataclasses import replace

from shoal.decisions.actions import Action, End, PutOnRecord
from shoal.decisions.modes import Ended, Halt
from shoal.decisions.state import State

__all__ = ["close", "end", "end_unsaved", "finish"]


def end(state: State, actions: list[Action]) -> None:
    """The run is over for the reason that it cannot go on."""
    halt = state.halt
    assert halt is not None
    saved = f"its state is saved up to step {state.checkpoint} of {state.committed} committed ones"
    close(state, End(halt.status, f"{halt.reason}; {saved}", halt.by_controller), actions)


def end_unsaved(state: State, why: str, actions: list[Action]) -> None:
    """The last state cannot be saved either."""
    halt = state.halt
    assert halt is not None
    state.halt = replace(halt, reason=f"{halt.reason}; its state could not be saved ({why})")
    end(state, actions)


def finish(state: State, actions: list[Action]) -> None:
    """Every worker is through. A run is not done without its last state."""
    if state.halt is None and state.checkpoint < state.committed:
        state.halt = Halt(f"every step is committed, but the last state could not be saved ({state.unsaved})")
    if state.halt is None:
        close(state, End("done", "every step is committed"), actions)
    else:
        end(state, actions)


def close(state: State, how: End, actions: list[Action]) -> None:
    """The run is over, whatever is saved of it. All that is known of it goes on record."""
    actions += [PutOnRecord(word, state.live) for _, word in sorted(state.unrecorded.items())]
    state.unrecorded.clear()
    state.mode = Ended(how.status, how.reason)
    actions.append(how)
