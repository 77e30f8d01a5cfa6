"""How ranks of a cell on nodes that are about to go judge a save, by what each says of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shoal.saving.deadline import Choice, Notice, choose, weights
from shoal_core.ckpt.together import TooLate

__all__ = ["Judging", "Leaves"]


@dataclass(frozen=True)
class Leaves:
    """Of a worker of a cell some of whose nodes go: whether its own does, and when (monotonic time), if it is known."""

    going: bool
    until: float | None

    @classmethod
    def by(cls, node: str, going: Mapping[str, float | None], heard: float) -> Leaves:
        """As it was `heard` in how many seconds which nodes go."""
        left = going.get(node)
        return cls(node in going, None if left is None else heard + left)

    def left(self, now: float) -> float | None:
        """Seconds."""
        return None if self.until is None else max(0.0, self.until - now)


@dataclass(frozen=True)
class Judging:
    """`notice`: this rank's word; `chosen`: is called with what was chosen, if anybody knows how much time is left. See
    `together.Leaving`."""

    notice: Notice
    chosen: Callable[[Choice], None]

    def told(self) -> dict[str, Any]:
        return self.notice.told()

    def weights(self, said: Sequence[Any]) -> dict[int, float]:
        return weights([Notice(**word) for word in said])

    def judge(self, said: Sequence[Any], written: Sequence[int], held: Sequence[int]) -> None:
        choice = choose([Notice(**word) for word in said], written, held)
        if choice.left is not None:
            self.chosen(choice)
        if choice.way != "save":
            raise TooLate
