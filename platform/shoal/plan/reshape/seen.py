"""What a run has seen itself of what things take, in place of what is assumed of them. Values only, fed by events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from shoal.plan.reshape.costs import Costs
from shoal.saving.interval import mean_time
from shoal_core.mesh import Mesh

__all__ = ["Seen", "Took", "learnt"]

LAST = 9
"""Steps, and changes, by whose median things are judged."""
ENOUGH = 5
"""Steps after which what a micro-batch takes in a mesh is known."""


@dataclass(frozen=True)
class Took:
    """What a change of shape took, or a heal (of one cell, so it tells less). `seconds`: all but `fill`, in which
    shards were filled, and the steps that were trained meanwhile, if it was known how long one takes; `most`: bytes of
    whoever received most, or gave, if all gave as much; 0: not known."""

    seconds: float
    fill: float
    most: float = 0.0
    heal: bool = False

    @classmethod
    def told(cls, event: Mapping[str, Any]) -> Took | None:
        """As a line of the journal tells it; None if the line tells of neither."""
        phases = event.get("phases") or {}
        if event["kind"] == "reshaped":
            trained = event["expected"]["steps"]
            seconds = max(phases["form"], event["seconds"] - trained) - phases["fill"]
            return cls(seconds, phases["fill"], float(event["most"]))
        if event["kind"] != "recovery" or phases.get("join") is None:
            return None
        times = [phases[name] for name in ("decide", "place", "join", "first_step")]
        return cls(sum(times), phases["state"], heal=True)


@dataclass(frozen=True)
class Seen:
    """Of one session, which began at `since` (monotonic).

    `state_bytes`: of a replica's state, 0 if nobody said; `rounds`: seconds of the last micro-batches, by mesh;
    `changes`: the last ones. When another shape is asked for: `failures`: deaths that ended a generation, in so many
    `seconds`; `step`: seconds of one, 0 if none was seen; `behind`: steps since the newest state that outlives a cell.
    """

    since: float = 0.0
    state_bytes: float = 0.0
    rounds: Mapping[Mesh, tuple[float, ...]] = field(default_factory=dict)
    changes: tuple[Took, ...] = ()
    failures: int = 0
    seconds: float = 0.0
    step: float = 0.0
    behind: int = 0

    def paced(self, mesh: Mesh, pace: Sequence[float]) -> Seen:
        """What a micro-batch of the last step took of every worker: a step waits for the slowest."""
        return replace(self, rounds={**self.rounds, mesh: (*self.rounds.get(mesh, ()), max(pace))[-LAST:]})

    def changed(self, took: Took) -> Seen:
        """Cells took another shape, or one was healed."""
        return replace(self, changes=(*self.changes, took)[-LAST:])

    def held(self, size: int, workers: int) -> Seen:
        """A worker of a cell of so many has a shard of this size: shards are taken for equally large."""
        return replace(self, state_bytes=float(size * workers)) if size else self


def learnt(costs: Costs, seen: Seen, mesh: Mesh, workers: int) -> Costs:
    """The costs by what a run of so many living workers, in cells of a mesh, has seen: deaths, what moved how fast,
    what a micro-batch takes."""
    own = [took for took in seen.changes if not took.heal]
    rates = [took.most / took.fill for took in own if took.most and took.fill]
    times = [took.seconds for took in own or seen.changes]
    rounds = {one: median(last) for one, last in seen.rounds.items() if len(last) >= ENOUGH and min(last) > 0}
    step = seen.step or costs.step
    return replace(
        costs,
        state_bytes=seen.state_bytes or costs.state_bytes,
        leave=median(times) if times else costs.leave,
        bandwidth=median(rates) if rates else costs.bandwidth,
        rounds={mesh: rounds[mesh]} | rounds if mesh in rounds else {},
        step=step,
        alone=mean_time(workers, seen.failures, seen.seconds, costs.alone) * max(1, workers),
        behind=seen.behind * step,
    )
