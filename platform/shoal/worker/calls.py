"""What calls a worker's training thread away from what it does."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Calls"]


@dataclass
class Calls:
    """The link's thread writes what was ordered: `stopped`, `pausing`: the newest generations that are to be left at
    once, or in order; `formations`: how often a cell was to be formed. The training thread writes what it is at:
    `living`: the generation it is in; `formed`: formations that it has turned to; `over`: only what peers of its cell
    wait for is still done."""

    stopped: int = -1
    pausing: int = -1
    formations: int = 0
    living: int | None = None
    formed: int = 0
    over: bool = False

    def off(self) -> bool:
        """Whether to walk away from what others have a part in."""
        stopped = self.living is not None and self.living <= self.stopped
        return self.over or stopped or self.formed < self.formations
