"""Estimates by what runs before them took: the factors of a table's entry (`hardware.Learned`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoal_workloads.estimate.step import Estimate, Piped
    from shoal_workloads.estimate.torchmodel import TorchEstimate

__all__ = ["corrected", "corrected_torch", "grown"]


def corrected(found: Estimate) -> Estimate:
    """An estimate as the entry of its hardware has learned."""
    learned = found.cluster.hardware.learned
    if learned is None:
        return found
    pipeline = found.pipeline and slowed(found.pipeline, learned.step)
    return replace(
        found,
        memory=replace(found.memory, parts=grown(found.memory.parts, learned.memory)),
        step=times(found.step, learned.step),
        phases=times(found.phases, learned.step),
        pipeline=pipeline,
    )


def corrected_torch(found: TorchEstimate) -> TorchEstimate:
    """The same of a user's own model."""
    learned = found.cluster.hardware.learned
    if learned is None:
        return found
    return replace(found, memory=grown(found.memory, learned.memory), step=times(found.step, learned.step))


def times(parts: Mapping[str, float], factor: float) -> dict[str, float]:
    return {name: factor * seconds for name, seconds in parts.items()}


def grown(parts: Mapping[str, int], factor: float) -> dict[str, int]:
    """Bytes by part, all of them by so much."""
    return {name: round(factor * size) for name, size in parts.items()}


def slowed(found: Piped, factor: float) -> Piped:
    """What is done when, and the exchange of it."""
    timeline = found.timeline
    spans = tuple(
        tuple(replace(span, start=factor * span.start, end=factor * span.end) for span in rank)
        for rank in timeline.spans
    )
    idle = tuple(factor * seconds for seconds in timeline.idle)
    exchange = [
        [one._replace(hidden=factor * one.hidden, exposed=factor * one.exposed) for one in rank]
        for rank in found.exchange
    ]
    timeline = replace(timeline, spans=spans, makespan=factor * timeline.makespan, idle=idle)
    return found._replace(timeline=timeline, exchange=exchange)
