"""What a worker still holds of worlds that it has left: its shards of the state, by the numbers of their shapes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from shoal.protocol.said import Ack
from shoal.worker.courier import Courier
from shoal.worker.lastresort import LastResort
from shoal.worker.membership import ack_without
from shoal.worker.world import RetainedState, World, make_room

__all__ = ["KeptStates"]


class KeptStates:
    """Of one worker, until it joins a generation. `courier`: gives others ranges of what they were told of."""

    def __init__(self, courier: Courier) -> None:
        self._courier = courier
        self._held: dict[int, RetainedState] = {}

    def of(self, shape: int) -> RetainedState | None:
        """That of a shape, if there is one."""
        return self._held.get(shape)

    def told(self) -> tuple[tuple[int, int, int], ...]:
        """Shape, steps and rank of each. Any thread."""
        return tuple((state.shape, state.steps, state.rank) for state in self._held.values())

    def close(self, world: World) -> None:
        """Leave a world, and keep the state if there is a whole one."""
        state = world.close()
        if state is not None:
            self._held = {**self._held, state.shape: state}  # other threads may look at it
            self._lay_out()

    def only(self, shapes: Collection[int]) -> None:
        """What was filled from those of `shapes`, and came to nothing, is not kept."""
        self._held = {number: state for number, state in self._held.items() if number in shapes}
        self._courier.put_away(shapes)

    def make_room(self, last: LastResort) -> None:
        """Have nothing of it on a device: see `world.make_room`."""
        self._held = make_room(self._held, last)
        self._lay_out()

    def let_go(self, shape: int) -> None:
        """A generation of this shape is joined: nobody needs it any more. Of the shape's own others may have ranges
        until the first commit, if they may already."""
        self._held = {}
        self._courier.put_away([shape])

    def answer(self, shape: int, standing: Ack | None) -> Ack:
        """An answer about the state of `shape`: that of the world which the worker stands in, else what is kept."""
        ack = ack_without(self.of(shape)) if standing is None else standing
        return replace(ack, former=any(number != shape for number in self._held))

    def _lay_out(self) -> None:
        """Have others find it where it is now."""
        for state in self._held.values():
            self._courier.lay_out(state.shape, state.steps, state.tensors)
