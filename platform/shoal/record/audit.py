"""Did every sample enter exactly one committed step? Answered from the record alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shoal.record import layout, read

__all__ = ["SampleAudit", "committed_ids_audit"]


@dataclass(frozen=True)
class SampleAudit:
    """Counts over the committed steps. A clean run has `repeated == skipped == 0`."""

    steps: int  # committed steps looked at
    expected: int  # samples that those steps stand for: [0, end of the last)
    seen: int  # ids recorded, repeats included
    repeated: int  # ids beyond an id's first occurrence
    skipped: int  # expected ids that never occur
    outside: int  # different ids past the end of the last step
    source: str  # "samples" (ids that workers reported) or "ranges" (the steps' own [first, last))


def committed_ids_audit(path: Path, steps: Iterable[Mapping[str, Any]] | None = None) -> SampleAudit:
    """Hold the ids of `samples.jsonl` against the committed steps; without that file, the steps' own ranges.

    Lines of `samples.jsonl` for steps that were not committed do not count. Holds all ids in memory (8 bytes each).
    """
    committed = list(read.steps(path) if steps is None else steps)
    ranges = [(int(step["samples"][0]), int(step["samples"][1])) for step in committed]
    expected = max((last for _, last in ranges), default=0)
    if not (Path(path) / layout.SAMPLES).exists():
        return _audit_of_ranges(ranges, expected)
    numbers = {int(step["step"]) for step in committed}
    parts = [np.asarray(line["ids"], dtype=np.int64) for line in read.samples(path) if line["step"] in numbers]
    ids = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
    different = np.unique(ids)
    inside = int(np.count_nonzero((different >= 0) & (different < expected)))
    return SampleAudit(
        steps=len(committed),
        expected=expected,
        seen=int(ids.size),
        repeated=int(ids.size - different.size),
        skipped=expected - inside,
        outside=int(different.size) - inside,
        source="samples",
    )


def _audit_of_ranges(ranges: list[tuple[int, int]], expected: int) -> SampleAudit:
    """By the ranges alone, however long they are: nothing of them lies past the end of the last."""
    different, reached = 0, 0
    for first, last in sorted(ranges):
        different += max(0, last - max(first, reached))
        reached = max(reached, last)
    seen = sum(last - first for first, last in ranges)
    return SampleAudit(len(ranges), expected, seen, seen - different, expected - different, 0, "ranges")
