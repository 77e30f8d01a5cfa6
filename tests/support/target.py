"""A lab as something that `shoal.chaos` can strike."""

from __future__ import annotations

from shoal.chaos.plan import Seen
from shoal.chaos.strike import seen
from shoal.record import layout
from shoal.testing import Lab

SLOTS = 2


class LabTarget:
    """A node that goes is replaced at once by a fresh one."""

    def __init__(self, one: Lab) -> None:
        self._lab, self._named = one, len(one.alive)

    def workers(self) -> list[Seen]:
        return seen(self._lab.path)

    def nodes(self) -> list[str]:
        return sorted(self._lab.alive)

    def over(self) -> bool:
        return (self._lab.path / layout.RUN).exists()

    def calm(self) -> None:
        """Nothing of it lasts."""

    def strike(self, kind: str, victim: Seen | str | None) -> None:
        match kind, victim:
            case "kill-worker", Seen():
                self._lab.kill(victim.actor)
            case "freeze-worker", Seen():
                self._lab.freeze(victim.actor)
            case "kill-controller", None:
                self._lab.kill_controller()
            case "kill-node", str() if victim in self._lab.alive:
                self._lab.kill_node(victim)
                self._replace()
            case "drain", str() if victim in self._lab.alive:
                self._lab.drain(victim)
                self._replace()

    def _replace(self) -> None:
        self._named += 1
        self._lab.add_node(f"n{self._named}", SLOTS)
