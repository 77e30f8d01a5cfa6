"""The ladder: the ways on after something went wrong, cheapest first, and what is said of each. Pure words.

When a rung can be taken and what taking it does stands in `decisions/rungs.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["LADDER", "Rung", "Words"]


class Rung(StrEnum):
    """A way on; the values are what the record says."""

    DRAIN = "drain"
    RETRY = "retry"
    HEAL = "heal"
    RESHAPE = "reshape"
    SHRINK = "shrink"
    GROW = "grow"
    COMBINE = "combine"
    RECALL = "recall"
    RESTORE = "restore"


@dataclass(frozen=True)
class Words:
    """What is said of a rung. `when`, `lost`: for docs/architecture.md; `decided`: what a decision for it means, with
    `{cells}`; `done`: what a recovery by it came to, with `{cell}`."""

    when: str
    lost: str
    decided: str
    done: str


LADDER: Mapping[Rung, Words] = {
    Rung.DRAIN: Words(
        "a node is announced to go: successors of its cells are formed on spares and take over at a step boundary",
        "nothing",
        "move {cells} in good time",
        "cell {cell} left at a step boundary and was formed again on other nodes",
    ),
    Rung.RETRY: Words(
        "a collective failed, nobody died",
        "nothing",
        "run the same step again in a new generation",
        "the same step was run again",
    ),
    Rung.HEAL: Words(
        "spares are there",
        "nothing",
        "heal {cells} on a spare from a living peer",
        "cell {cell} was healed from a living peer",
    ),
    Rung.RESHAPE: Words(
        "no spare, but cells of another shape use more of the living workers: at a step boundary, from memory",
        "nothing",
        "form {cells} of all living workers, in another shape",
        "the living workers took another shape, cell {cell} among it",
    ),
    Rung.SHRINK: Words(
        "no spare",
        "nothing",
        "go on without {cells}",
        "no spare was left, so the other cells took cell {cell}'s share",
    ),
    Rung.GROW: Words("a spare comes later", "nothing", "bring back {cells}", "cell {cell} came back"),
    Rung.COMBINE: Words(
        "no cell is whole, but each shard lives somewhere",
        "nothing",
        "put one cell together from what is left of {cells}",
        "one cell was put together from what was left of all",
    ),
    Rung.RECALL: Words(
        "a shard lives in no cell; copies of all shards lie in other nodes' memory",
        "steps since the last copies",
        "go back to the copies of {cells} that other nodes hold in memory",
        "no cell was whole, so the run went back to copies in the memory of other nodes",
    ),
    Rung.RESTORE: Words(
        "a shard is in nobody's memory",
        "steps since the last checkpoint",
        "go back to the last checkpoint",
        "no cell was whole, so the run went back to its last checkpoint",
    ),
}
