"""What to ask of the cluster's autoscaler, and when: for what a run lacks, anew after a while if nothing comes of it.
Pure.

A run asks only once it has lacked something for `LASTING`, since workers that end are replaced on the slots that they
leave. What it asks for stands until nodes have come for some of it, the run lacks less, or nothing has come for the
job's `wait_s`. A node that dies within `SHORT` of coming counts as nothing: each such failure doubles the pause before
the run asks again, and none of them is of any other consequence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from shoal.decisions.actions import Journal
from shoal.decisions.modes import Ended
from shoal.decisions.state import State
from shoal.plan import Node
from shoal.plan.lack import lacking

__all__ = ["Asking", "Standing", "lack_of", "step"]

LASTING = 5.0
"""Seconds for which something must have been lacking before it is asked for."""
SHORT = 120.0
"""Seconds: a node that dies sooner after it has come was none."""
PAUSE, LONGEST = 15.0, 900.0
"""Seconds before a run asks again: after the first failure, and after many."""


@dataclass(frozen=True)
class Standing:
    """What has become of what was asked for: slots of each piece that is `open`; those that `came` (Ray's id of the
    node, slots); slots whose node was `lost` before anybody saw it."""

    open: tuple[int, ...] = ()
    came: tuple[tuple[str, int], ...] = ()
    lost: int = 0


@dataclass(frozen=True)
class Asking:
    """`since`: when (monotonic time, as all here) something was last asked for or came; `lacks`: since when more is
    lacking than is asked for; `failures` in a row; `again`: when the run may ask again; `fresh`: nodes (by Ray's id)
    that came lately, and when."""

    since: float = 0.0
    lacks: float | None = None
    failures: int = 0
    again: float = 0.0
    fresh: Mapping[str, float] = field(default_factory=dict)


def lack_of(state: State, nodes: Mapping[str, Node], started: Mapping[str, str], spares: int) -> tuple[int, ...]:
    """What a run lacks (see `plan.lack.lacking`) for its seats and so many spares.

    Args:
        nodes: that live, by name.
        started: node of each of its workers, living or starting.
    """
    if state.halt is not None or isinstance(state.mode, Ended):
        return ()
    usable = [node for node in nodes.values() if state.may_be_used(node.name) and not node.draining]
    given = state.now < state.spares_from  # spares, to another run
    wanted = state.shape.wanted + (0 if given else spares)
    return lacking(usable, Counter(started.values()), wanted, state.shape.mesh.ep_node)


def step(
    asking: Asking, stands: Standing, lack: tuple[int, ...], living: Mapping[str, str], now: float, wait: float
) -> tuple[Asking, tuple[int, ...], list[Journal]]:
    """What is to stand from now on, and lines for the journal.

    Args:
        lack: what the run lacks now.
        living: name of each node that lives, by Ray's id.
        wait: seconds in which something must come.
    """
    lines: list[Journal] = []
    asking = went(asking, stands, living, now, lines)
    wanted, there = sum(lack), sum(stands.open)
    if stands.came:
        slots = sum(slots for _, slots in stands.came)
        names = sorted({living.get(node, node[:12]) for node, _ in stands.came})  # one may have come a moment ago
        lines.append(Journal("nodes_came", {"nodes": names, "slots": slots, "seconds": now - asking.since}))
        fresh = {**asking.fresh, **{node: now for node, _ in stands.came}}
        # all is taken back: what still waits would take the very slots that are let go for workers
        return replace(asking, since=now, lacks=now, fresh=fresh), (), lines
    if wanted < there:
        lines.append(Journal("nodes_withdrawn", {"slots": there - wanted, "left": wanted}))
        return replace(asking, lacks=None), lack, lines
    if there and now - asking.since >= wait:
        asking = failed(asking, now)
        fields = {"slots": there, "seconds": now - asking.since, "again": asking.again - now}
        lines.append(Journal("nodes_not_given", fields))
        return replace(asking, lacks=now), (), lines
    if wanted == there:
        return replace(asking, lacks=None), stands.open, lines
    if asking.lacks is None:
        return replace(asking, lacks=now), stands.open, lines
    if now - asking.lacks < LASTING or now < asking.again:
        return asking, stands.open, lines
    lines.append(Journal("nodes_asked", {"slots": wanted, "each": max(lack)}))
    return replace(asking, since=now, lacks=None), lack, lines


def went(asking: Asking, stands: Standing, living: Mapping[str, str], now: float, lines: list[Journal]) -> Asking:
    """Nodes that came and are gone again count as a failure, and one that stays ends all former ones."""
    dead = [node for node, came in asking.fresh.items() if node not in living and now - came >= LASTING]
    stayed = [node for node, came in asking.fresh.items() if node in living and now - came >= SHORT]
    asking = replace(asking, fresh={node: at for node, at in asking.fresh.items() if node not in {*dead, *stayed}})
    if stayed:
        asking = replace(asking, failures=0)
    if dead or stands.lost:
        asking = failed(asking, now)
        lines.append(Journal("nodes_short_lived", {"nodes": len(dead) or None, "again": asking.again - now}))
    return asking


def failed(asking: Asking, now: float) -> Asking:
    """Asking came to nothing once more."""
    pause = min(LONGEST, PAUSE * 2.0**asking.failures)
    return replace(asking, failures=asking.failures + 1, again=now + pause)
