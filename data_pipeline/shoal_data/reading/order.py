"""Which sample stands at a position of the global order: pure functions, no files.

Without weights an epoch takes every sample once, through one keyed permutation. With weights, positions are dealt to
the sources by a fixed round of 65,536 turns in which each source has its share, spread as evenly as integers allow; so
a mixture keeps its weights at every prefix, and each source runs through its own epochs, each with its own permutation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shoal_data.reading.permutation import Permutation

__all__ = ["ROUND", "Mixture", "SampleOrder", "turns_of"]

#: turns in a round: weights are kept to one part in this many
ROUND = 1 << 16

Ints = npt.NDArray[np.int64]


#: how far the sum of weights may lie from 1: decimal fractions written by people, and rounding
_TOLERANCE = 1e-6


def turns_of(weights: Sequence[float]) -> Ints:
    """Turns of each source in a round: its share of `ROUND` rounded down, and what that leaves to the largest rests.

    A source that weighs less than a turn may get none; who calls must refuse that.

    Raises:
        ValueError: the weights are not finite numbers above 0 that add up to 1.
    """
    share = np.asarray(weights, np.float64) * ROUND
    if not (np.isfinite(share).all() and (share > 0).all()):
        raise ValueError("a weight is a finite number above 0")
    if abs(share.sum() / ROUND - 1) > _TOLERANCE:
        raise ValueError(f"they add up to {share.sum() / ROUND:.9g}, not 1")
    turns = np.floor(share).astype(np.int64)
    turns[np.argsort(-(share - turns), kind="stable")[: ROUND - int(turns.sum())]] += 1
    return turns


class Mixture:
    """Deals positions to sources.

    Args:
        weights: one for each source, adding up to 1.

    Raises:
        ValueError: they do not (see `turns_of`).
    """

    def __init__(self, weights: Sequence[float]) -> None:
        turns = turns_of(weights)
        # Turn k of a source with n turns falls at (k + 1/2) / n of the round: the even spread of each, then merged.
        when = np.concatenate([(np.arange(count) + 0.5) / count for count in turns])
        whose = np.repeat(np.arange(len(turns)), turns)
        rank = np.concatenate([np.arange(count) for count in turns])
        order = np.lexsort((whose, when))
        self._turns, self._whose, self._rank = turns, whose[order].astype(np.int32), rank[order].astype(np.int32)

    def __call__(self, position: Ints) -> tuple[Ints, Ints]:
        """Source of each position, and how many positions before it were that source's."""
        rounds, turn = np.divmod(position, ROUND)
        source = self._whose[turn].astype(np.int64)
        return source, rounds * self._turns[source] + self._rank[turn]


class SampleOrder:
    """Position -> (stream, sample of the stream).

    Args:
        samples: samples an epoch of each stream; one stream without weights, one a source with them.
        weights: mixture weights of the streams, or None for a single stream.
        seed: names the order.
    """

    def __init__(self, samples: Sequence[int], weights: Sequence[float] | None, seed: int) -> None:
        self.samples, self.seed = list(samples), seed
        self._mixture = Mixture(weights) if weights is not None else None

    def __call__(self, position: Ints) -> tuple[Ints, Ints]:
        """Stream and sample index of each position (n,), 0-based, of any epoch."""
        if self._mixture is None:
            stream, turn = np.zeros_like(position), position
            lap = int(position[0]) // self.samples[0] if len(position) else 0
            index = position - lap * self.samples[0]
            if len(position) and index.min() >= 0 and index.max() < self.samples[0]:  # one epoch, as nearly always
                return stream, Permutation(self.samples[0], self.seed, 0, lap)(index)
        else:
            stream, turn = self._mixture(position)
        sample = np.empty_like(position)
        for one in np.unique(stream).tolist():
            mine = np.flatnonzero(stream == one)
            epoch, index = np.divmod(turn[mine], self.samples[one])
            for lap in np.unique(epoch).tolist():
                here = epoch == lap
                sample[mine[here]] = Permutation(self.samples[one], self.seed, one, lap)(index[here])
        return stream, sample
