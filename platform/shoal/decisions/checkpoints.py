"""Checkpoints: one is whole, one turned out to be damaged. Pure."""

from __future__ import annotations

from shoal.decisions.actions import Action, Journal
from shoal.decisions.events import PassedOver
from shoal.decisions.halt import end
from shoal.decisions.leaving import give_up
from shoal.decisions.modes import Gathering
from shoal.decisions.rungs import descend
from shoal.decisions.state import State
from shoal.ladder import Rung
from shoal.protocol.said import Checkpointed

__all__ = ["pass_over", "saved"]


def saved(state: State, event: Checkpointed, actions: list[Action]) -> None:
    """A checkpoint is whole."""
    state.saving = ""
    if event.steps > state.checkpoint:
        state.checkpoint = event.steps
        fields = {"step": event.steps, "path": event.path, "seconds": event.seconds, "bytes": event.bytes}
        actions.append(Journal("checkpoint", fields))
    if state.halt is not None and state.checkpoint >= state.committed:
        end(state, actions)


def pass_over(state: State, event: PassedOver, actions: list[Action]) -> None:
    """Go back behind a checkpoint that is damaged, once, however many cells say so."""
    mode = state.mode
    if not isinstance(mode, Gathering):
        return
    mode.damaged = False
    if event.steps != state.checkpoint:
        return
    if event.older is None:
        give_up(state, f"{event.reason}; no older checkpoint is left", actions)
    else:
        state.checkpoint = event.older
        descend(state, mode, actions, Rung.RESHAPE)
