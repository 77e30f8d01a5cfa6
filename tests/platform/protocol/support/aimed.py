"""A model whose faults but the first strike on the way to another shape only: few states, looked at in seconds."""

from __future__ import annotations

from collections.abc import Iterator

from shoal.decisions.modes import Pausing
from tests.platform.protocol.support.actors import World
from tests.platform.protocol.support.model import Model

__all__ = ["Aimed"]


class Aimed(Model):
    """The last worker dies in the sums over cells; the other faults strike from the word to pause for another shape on,
    until a step is committed in it."""

    def moves(self, world: World) -> Iterator[tuple[str, World]]:
        state, last = self.states[world.controller], len(self.names) - 1
        on_the_way = bool(state.formers) or (isinstance(state.mode, Pausing) and state.mode.reshapes)
        dies = self.crew[world.workers[last]].doing == "across"
        for label, after in super().moves(world):
            strikes = after.faults != world.faults
            first = strikes and world.faults == self.start.faults
            if not strikes or (first and dies and label == f"w{last}: crash") or (not first and on_the_way):
                yield label, after
