"""How much of one mesh's shards lies in those of another: an estimate by axes, for choosing and placing.

Stages split the layers, experts the rest by their number (`ep`) and width (`fsdp`), everything else by rank within the
stage. Layers are taken for equally large, so what really moves is told only by the plan that reads the ranges.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shoal_core.mesh import Mesh

__all__ = ["Overlap", "overlaps"]

LEAST = 0.02
"""Of a new shard, that an old one must have of it to count."""
Overlap = list[tuple[float, int, int]]
"""(share of the whole state, rank in the old mesh, rank in the new one)."""


class Pairs(NamedTuple):
    """Parts of one split that have something in common with parts of another: which, and how much of the latter."""

    old: NDArray[np.int64]
    new: NDArray[np.int64]
    share: NDArray[np.float64]

    def counting(self) -> Pairs:
        """Those that have enough in common."""
        kept = self.share >= LEAST
        return Pairs(self.old[kept], self.new[kept], self.share[kept])


def overlaps(old: Mesh, new: Mesh, experts: float) -> Overlap:
    """The pairs of ranks that share anything that counts, those that share most first. `experts`: their share of the
    state."""
    stages = split(old.pp, new.pp)
    by_rank = split(old.per_stage, new.per_stage)
    by_expert = crossed(split(old.fsdp, new.fsdp), split(old.ep, new.ep), old.ep, new.ep)
    rest, held = (crossed(stages, inner, old.per_stage, new.per_stage) for inner in (by_rank, by_expert))
    keys = np.concatenate([part.old * new.workers + part.new for part in (rest, held)])
    found, where = np.unique(keys, return_inverse=True)
    shares = np.bincount(where, np.concatenate([rest.share * (1.0 - experts), held.share * experts]), len(found))
    order = np.argsort(-shares.round(9), kind="stable")
    olds, news = np.divmod(found[order], new.workers)
    sizes = shares[order] / new.workers
    return [pair for pair in zip(sizes.tolist(), olds.tolist(), news.tolist(), strict=True) if pair[0] > 0]


def split(old: int, new: int) -> Pairs:
    """One line cut into `old` equal parts and into `new`."""
    cuts = np.unique(np.concatenate([np.arange(old) * new, np.arange(new) * old]))  # in old x new-ths of the line
    return Pairs(cuts // new, cuts // old, np.diff(np.append(cuts, old * new)) / old).counting()


def crossed(outer: Pairs, inner: Pairs, old: int, new: int) -> Pairs:
    """Two axes in one: parts are numbered by the outer one, in each of which `old` or `new` of the inner one lie."""
    return Pairs(
        (outer.old[:, None] * old + inner.old).ravel(),
        (outer.new[:, None] * new + inner.new).ravel(),
        (outer.share[:, None] * inner.share).ravel(),
    ).counting()
